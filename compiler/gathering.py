"""One walk over the samples: what the sites of a graph hold is added up, one sample after the other, none kept.

Where a walk is kept as it goes (`compiler/kept_statistics.py`), it goes on after the samples that are there, and what
was gathered of other parts of the data is merged in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np

from llmc.compiler.calibration import want_finite
from llmc.compiler.given import Given, Recorder, Sample
from llmc.compiler.graph import Graph
from llmc.compiler.text import print_graph, weights_of
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
_LINE = re.compile(
    r" \([^()\n]*:\d+\)$", re.MULTILINE
)  # of a source file, which another release has elsewhere


class Statistic(Protocol):
    """What is known of the values of one site: `Moments`, `Columns`, `Magnitudes`, `Noise`."""

    @property
    def kind(self) -> str:
        """What its class is called in a file."""

    def add(self, x: Array, /) -> None:
        """Take values into account."""

    def merge(self, other: Any, /) -> None:
        """Take in what another of the kind has seen."""

    def empty(self) -> Statistic:
        """One of the kind and sizes that has seen nothing."""

    def parts(self) -> dict[str, Array]:
        """All there is, by name, to be kept in a file."""

    def take(self, parts: Mapping[str, Array], /) -> None:
        """Become what `parts` was called of."""


class WaitsForParts(LlmcError):
    """A part of the data has not been seen by this walk yet; what could be gathered is kept."""


@dataclass(frozen=True)
class Walk:
    """What one walk adds up.

    Args:
        watched: a graph whose outputs are the sites.
        names: of the sites, for messages.
        seen: a statistic of each.
        also: what these depend on besides the graph.
    """

    watched: Graph
    names: Sequence[str]
    seen: Sequence[Statistic]
    also: Sequence[Array] = field(default=())

    @property
    def kind(self) -> str:
        return self.seen[0].kind

    @cached_property
    def weights(self) -> dict[str, str]:
        """Name -> digest of each weight of the graph."""
        return {weight.name: digest for digest, weight in weights_of(self.watched).items()}

    @cached_property
    def key(self) -> str:
        """A digest of all that the statistics depend on but the samples, in hex."""
        made = hashlib.sha256(f"{self.kind}\0{_LINE.sub('', print_graph(self.watched))}".encode())
        for digest in weights_of(self.watched):  # the text has its first digits
            made.update(digest.encode())
        for array in self.also:
            made.update(f"\0{array.dtype} {array.shape}\0".encode() + np.ascontiguousarray(array).tobytes())
        return made.hexdigest()


def gather(walk: Walk, known: Given) -> None:
    """Add what the sites hold in each sample to the statistics of `walk`.

    Raises:
        LlmcError: there is no sample, or a value is not finite; `at` names the site. What is kept is of no use.
        WaitsForParts: it is to be merged with parts that are not there.
    """
    record = None if known.kept is None else known.kept.record(walk)
    if known.read is not None or record is None:
        _take(walk, known, record)
    if record is not None:
        record.merge()


def _take(walk: Walk, known: Given, record: Recorder | None) -> None:
    samples = known.samples(walk.watched)
    there = 0 if record is None else record.resume(samples)
    first = list(islice(samples, 1))  # data that does not fit the model is refused before native code is made
    if not (first or there):
        hint = "give some, or use --calib auto"
        raise LlmcError("calibration: there are no samples", at=known.place, hint=hint)
    if first:
        _run(walk, known, record, enumerate(chain(first, samples), there + 1))
    if record is not None:
        record.end()


def _run(walk: Walk, known: Given, record: Recorder | None, numbered: Iterable[tuple[int, Sample]]) -> None:
    with known.running(walk.watched) as run, record or nullcontext():
        for number, sample in numbered:
            values = run(sample)
            want_finite(walk.names, values, number)
            with nullcontext() if record is None else record.adding(sample):
                for seen, value in zip(walk.seen, values, strict=True):
                    seen.add(value)
