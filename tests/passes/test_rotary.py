"""Rotary positions in the forms in which models write them, and what only looks like them."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.passes.fuse import Fuse

B, S = symbol("batch"), symbol("seq")
X = input_("x", "f32", (B, S, 2, 12))
rng = np.random.default_rng(4)
VALUE = {"x": rng.normal(size=(2, 3, 2, 12)).astype(np.float32)}
FIRST = constant(rng.normal(size=(1, 2, 12)).astype(np.float32), "cos")
SECOND = constant(rng.normal(size=(2, 12)).astype(np.float32), "sin")


def of(**outputs: Node) -> Graph:
    return Graph((X,), outputs, {"batch": (1, 4), "seq": (1, 16)})


def cut(x: Node, start: int, stop: int, step: int = 1) -> Node:
    return make("slice", (x,), axis=x.type.rank - 1, start=start, stop=stop, step=step)


def joined(*parts: Node) -> Node:
    return make("concat", parts, axis=parts[0].type.rank - 1)


def turned(x: Node, half: int = 6) -> Node:
    return joined(make("neg", (cut(x, half, x.shape[-1]),)), cut(x, 0, half))


def times(a: Node, b: Node) -> Node:
    return make("mul", (a, b))


def plus(a: Node, b: Node) -> Node:
    return make("add", (a, b))


def narrow(table: Node) -> Node:
    return constant(table.attributes["value"].array[..., :8].copy(), "narrow")


def in_part(x: Node) -> Node:
    part = cut(x, 0, 8)
    y = plus(times(part, narrow(FIRST)), times(turned(part, 4), narrow(SECOND)))
    return joined(y, cut(x, 8, 12))


def pairs(x: Node, negated_last: bool = False) -> Node:
    """-x[1], x[0], -x[3], x[2] ..."""
    whole = (*x.shape[:-1], x.shape[-1] // 2, 1)
    first, second = cut(x, 0, x.shape[-1], 2), cut(x, 1, x.shape[-1], 2)
    if negated_last:
        second = make("reshape", (make("neg", (second,)),), shape=whole)
    else:
        second = make("neg", (make("reshape", (second,), shape=whole),))
    stacked = joined(second, make("reshape", (first,), shape=whole))
    return make("reshape", (stacked,), shape=x.shape)


def pairs_in_part(x: Node) -> Node:
    part = cut(x, 0, 8)
    y = plus(times(part, narrow(FIRST)), times(pairs(part), narrow(SECOND)))
    return joined(y, cut(x, 8, 12))


WAYS = {
    "as written": plus(times(X, FIRST), times(turned(X), SECOND)),
    "turned first": plus(times(turned(X), SECOND), times(X, FIRST)),
    "tables first": plus(times(FIRST, X), times(SECOND, turned(X))),
    "in part": in_part(X),
    "pairs": plus(times(X, FIRST), times(pairs(X), SECOND)),
    "pairs negated first": plus(times(X, FIRST), times(pairs(X, True), SECOND)),
    "pairs in part": pairs_in_part(X),
}
OTHERS = {
    "another half": plus(times(X, FIRST), times(turned(X, 4), SECOND)),
    "not negated": plus(times(X, FIRST), times(joined(cut(X, 6, 12), cut(X, 0, 6)), SECOND)),
    "of another": plus(times(X, FIRST), times(turned(make("exp", (X,))), SECOND)),
    "in steps": plus(
        times(X, FIRST), times(joined(make("neg", (cut(X, 1, 12, 2),)), cut(X, 0, 12, 2)), SECOND)
    ),
    "a difference": make("sub", (times(X, FIRST), times(turned(X), SECOND))),
    "pairs the other way": plus(
        times(X, FIRST),
        times(make("reshape", (joined(*pairs(X).inputs[0].inputs[::-1]),), shape=X.shape), SECOND),
    ),
    "numbers": plus(times(X, constant(np.float32(2))), times(constant(np.float32(3)), X)),
    "a table of one": plus(times(X, FIRST), times(turned(X), constant(np.float32(0.5)))),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_writing(way, same_output):
    after = same_output(Fuse(), of(y=WAYS[way]), VALUE)
    (found,) = (n for n in after.nodes if n.op not in ("input", "constant"))
    assert (found.op, found.attributes["interleaved"]) == ("rotary", way.startswith("pairs"))


@pytest.mark.parametrize("other", OTHERS)
def test_what_looks_like_it(other, same_output):
    after = same_output(Fuse(), of(y=OTHERS[other]), VALUE)
    assert "rotary" not in {n.op for n in after.nodes}


def test_what_else_reads_the_part_that_is_turned(same_output):
    """The part alone is an output too: the whole is joined from it."""
    whole = WAYS["in part"]
    after = same_output(Fuse(), of(y=whole, part=whole.inputs[0]), VALUE)
    assert [n.op for n in after.nodes if n.op in ("rotary", "concat")] == ["rotary", "concat"]


def test_golden(golden, same_output):
    golden(same_output(Fuse(), of(y=WAYS["in part"]), VALUE))
