"""Small walks over samples, and what gathers them: of the tests of statistics that are kept and merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from llmc.compiler import interpret
from llmc.compiler.calibration import Noise
from llmc.compiler.dims import symbol
from llmc.compiler.gathering import Statistic, Walk, gather
from llmc.compiler.given import Given
from llmc.compiler.graph import Graph, Source, Weight
from llmc.compiler.kept_statistics import Statistics
from llmc.compiler.moments import Columns, Moments
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ranges import Magnitudes

Array = np.ndarray[Any, Any]
WIDTH = 12
ROWS = 130  # of a sample: two of them are multiplied at once, one waits


def rows(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network(second: int = 2, layer: str = "second") -> Graph:
    """Two products, one after the other."""
    x = input_("x", "f32", (symbol("batch"), ROWS, WIDTH))
    w, v = (
        constant(Weight(rows(s, WIDTH, WIDTH), f"{n}.weight")) for s, n in ((1, "first"), (second, layer))
    )
    y = make("linear", (x, w), Source("first"))
    return Graph((x,), {"y": y, "z": make("linear", (y, v), Source(layer))}, {"batch": (1, 8)})


def samples(first: int = 0, last: int = 7) -> list[dict[str, Array]]:
    """Each larger than the one before."""
    return [{"x": rows(10 + i, 1, ROWS, WIDTH) * (1 + i)} for i in range(first, last)]


KINDS: dict[str, Callable[[], Statistic]] = {
    "moments": lambda: Moments(WIDTH),
    "columns": lambda: Columns(WIDTH),
    "magnitudes": Magnitudes,
    "noise": lambda: Noise(np.square(rows(3, WIDTH)), 0.1),
}


def walk(kind: str = "moments", graph: Graph | None = None) -> Walk:
    return Walk(graph or network(), ["first", "second"], [KINDS[kind](), KINDS[kind]()])


class Stopped(BaseException):
    """As an interrupt."""


def known(data: Sequence[Any], kept: Statistics | None = None, stop: int | None = None) -> Given:
    """What is given by samples, of which the run of number `stop` is interrupted."""

    @contextmanager
    def native(graph: Graph) -> Iterator[Any]:
        count = 0

        def run(sample: Any) -> list[Array]:
            nonlocal count
            if count == stop:
                raise Stopped
            count += 1
            return list(interpret.run(graph, sample).values())

        yield run

    return Given(lambda graph: iter(data), native=native, kept=kept)


def gathered(
    walk: Walk, data: Sequence[Any], kept: Statistics | None = None, stop: int | None = None
) -> Walk:
    if kept is None:
        gather(walk, known(data, stop=stop))
    else:
        with kept.opened():
            gather(walk, known(data, kept, stop))
    return walk


def same(a: Walk, b: Walk) -> None:
    """To the last bit, of all that there is."""
    for left, right in zip(a.seen, b.seen, strict=True):
        ours, theirs = left.parts(), right.parts()
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], name)
