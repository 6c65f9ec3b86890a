"""The statistics of one walk over samples in a file: arrays, and what they are of.

An .npz file as `weight_file.py` writes them, so nothing is unpickled: "SITE.PART" -> array, and `walk.json`. How many
samples were seen, and a digest of these, says where to go on; the digest of the graph, weights included, whether the
statistics are of this model at all.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.gathering import Statistic, Walk
from llmc.compiler.graph import Weight
from llmc.compiler.npz import NpzError, as_npz_errors
from llmc.compiler.weight_file import key_of, read_weights, write_weights
from llmc.compiler.whole_file import renamed
from llmc.errors import LlmcError

FORMAT = 1
FACTS = "walk.json"
_LEFT = "remove it, and what it held is gathered again"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Facts:
    """What statistics are of.

    Args:
        kind, key, sites, weights: of the walk, as `Walk` has them.
        samples, data: how many were seen, and a digest of them.
        complete: whether these were all.
        after: a digest of the samples that the walks before had seen.
    """

    kind: str
    key: str
    sites: Sequence[str]
    weights: Mapping[str, str]
    samples: int
    data: str
    complete: bool
    after: str

    def difference(self, walk: Walk) -> str:
        """In what they are not those of a walk."""
        if self.kind != walk.kind:
            return f"{self.kind}, where {walk.kind} are gathered"
        for name, digest in walk.weights.items():
            if self.weights.get(name, digest) != digest:
                return f"other values of the weight {name}"
        there = {*self.weights, *self.sites}
        for place in (*walk.weights, *walk.names):
            if place not in there:
                return f"nothing of {place}"
        if len(self.sites) != len(walk.names):
            return f"{len(self.sites)} sites, where {len(walk.names)} are watched"
        return "the same weights, in another graph or with other ranges"


@dataclass(frozen=True)
class Kept:
    """A file that is there."""

    path: Path
    facts: Facts

    @cached_property
    def arrays(self) -> Mapping[str, Array]:
        """Mapped into memory.

        Raises:
            LlmcError: they are not as they were written.
        """
        try:
            weights = read_weights(self.path).weights
        except LlmcError as error:
            raise _damaged(self.path, error.problem) from None
        for name, weight in weights.items():
            if key_of(Weight(weight.array, name.rpartition(".")[0])) != name:
                raise _damaged(self.path, f"{name} has other values")
        return {name.rpartition(".")[0]: weight.array for name, weight in weights.items()}

    def put(self, number: int, into: Statistic) -> None:
        """Let `into` become what site `number` was.

        Raises:
            LlmcError: the file does not hold such a statistic, or numbers that are none.
        """
        found = {}
        for name, like in into.parts().items():
            array = self.arrays.get(f"{number}.{name}")
            if array is None or not _is_such(name, array, like):
                said = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
                place = f"{name} of {self.facts.sites[number]}"
                raise _damaged(
                    self.path, f"{place}: {said}, where {like.dtype} {list(like.shape)} numbers are"
                )
            found[name] = array
        into.take(found)


def _is_such(name: str, array: Array, like: Array) -> bool:
    """Whether an array has dtype and shape of another, but for the count of rows that wait, and holds numbers."""
    first = 1 if name == "waiting" else 0
    if (array.dtype, array.ndim, array.shape[first:]) != (like.dtype, like.ndim, like.shape[first:]):
        return False
    if name == "products":  # which may overflow: whoever rounds by them says so, and where
        return True
    return bool(np.isfinite(array).all() and (array.dtype.kind == "f" or (array >= 0).all()))


def _damaged(path: Path, found: str | None) -> LlmcError:
    return LlmcError("calibration: damaged statistics", at=str(path), found=found, hint=_LEFT)


def read(path: Path) -> Kept:
    """The statistics of a walk, without their arrays yet.

    Raises:
        LlmcError: the file cannot be read, is damaged, or is of a newer llmc.
    """
    try:
        with as_npz_errors(), zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read(FACTS))
            version = facts.pop("format")
    except (OSError, NpzError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, getattr(error, "strerror", None) or str(error)) from None
    if version != FORMAT:
        raise LlmcError(
            f"calibration: statistics of version {version!r}, this llmc reads {FORMAT}",
            at=str(path),
            hint="use the llmc that wrote them",
        )
    if {name: type(value) for name, value in facts.items()} != _TYPES:
        raise _damaged(path, f"{FACTS} has other fields")
    return Kept(path, Facts(**facts))


_TYPES = {
    **dict.fromkeys(("kind", "key", "data", "after"), str),
    **{"sites": list, "weights": dict, "samples": int, "complete": bool},
}


def write(path: Path, facts: Facts, seen: Sequence[Statistic]) -> None:
    """Into a file that takes its name once it is whole.

    Raises:
        LlmcError: it cannot be written.
    """
    parts = (
        Weight(array, f"{number}.{name}")
        for number, statistic in enumerate(seen)
        for name, array in statistic.parts().items()
    )
    try:
        with renamed(path) as file:
            write_weights(file, parts, {FACTS: json.dumps({"format": FORMAT, **asdict(facts)})})
    except OSError as error:
        problem = f"calibration: cannot keep statistics: {error.strerror or error}"
        raise LlmcError(problem, at=str(path)) from None
