"""Elements of an image at places that are computed: between pixels, and beyond its edge."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from llmc.compiler.dims import Dim, product
from llmc.compiler.frontends.composed import number, size
from llmc.compiler.frontends.composed_rounding import nearest_even
from llmc.compiler.frontends.parts import Maker
from llmc.compiler.graph import Node

_CUBIC = -0.75


@dataclass(frozen=True)
class Sampling:
    """How an image is read.

    Args:
        mode: "nearest", "linear" or "cubic".
        beyond: "zeros", "border" or "reflection".
        corners: whether -1 and 1 are the middles of the outermost pixels, and not their edges.
    """

    mode: str
    beyond: str
    corners: bool


def sampled(m: Maker, x: Node, grid: Node, how: Sampling) -> Node:
    """x `[n, c, sizes...]` at a grid `[n, outs..., rank]` of places from -1 to 1, the last axis first."""
    batch, channels, *sizes = x.shape
    outs, rank = grid.shape[1:-1], len(sizes)
    count = product(outs)
    flat = m.reshape(grid, (batch, count, rank))
    places = []
    for i, length in enumerate(sizes):
        g = m.op("slice", flat, axis=2, start=rank - 1 - i, stop=rank - i)
        places.append(_unscaled(m, m.reshape(g, (batch, count)), length, how.corners))
    taps = [_taps(m, place, length, how) for place, length in zip(places, sizes, strict=True)]
    pixels = m.reshape(x, (batch, channels, product(sizes)))
    total: Node | None = None
    for chosen in itertools.product(*taps):
        part = _picked(m, pixels, sizes, chosen)
        total = part if total is None else m.op("add", total, part)
    assert total is not None
    return m.reshape(total, (batch, channels, *outs))


def _unscaled(m: Maker, g: Node, length: Dim, corners: bool) -> Node:
    """-1 to 1 in pixels."""
    whole = m.op("cast", size(m, length), dtype=g.dtype)
    raised = m.op("add", g, number(m, 1, g))
    span = m.op("sub", whole, number(m, 1, g)) if corners else whole
    wide = m.op("mul", m.op("mul", raised, span), number(m, 0.5, g))
    return wide if corners else m.op("sub", wide, number(m, 0.5, g))


Tap = tuple[Node, Node | None]  # a place of whole pixels as f32, and the weight there


def _taps(m: Maker, place: Node, length: Dim, how: Sampling) -> list[Tap]:
    if how.mode == "nearest":
        return [_held(m, nearest_even(m, _bent(m, place, length, how)), length, how, None)]
    if how.mode == "linear":
        place = _bent(m, place, length, how)
    low = m.op("floor", place)
    rest = m.op("sub", place, low)
    steps = (0, 1) if how.mode == "linear" else (-1, 0, 1, 2)
    taps = []
    for step in steps:
        at = m.op("add", low, number(m, step, low))
        away = m.op("abs", m.op("sub", rest, number(m, step, low)))
        weight = m.op("sub", number(m, 1, low), away) if how.mode == "linear" else _keys(m, away, step)
        bent = at if how.mode == "linear" else _bent(m, at, length, how)
        taps.append(_held(m, bent, length, how, weight))
    return taps


def _keys(m: Maker, d: Node, step: int) -> Node:
    """Keys' cubic kernel (1981)."""
    a = _CUBIC
    factors = (a + 2, -(a + 3), 0.0, 1.0) if step in (0, 1) else (a, -5 * a, 8 * a, -4 * a)
    total = number(m, factors[0], d)
    for factor in factors[1:]:
        total = m.op("add", m.op("mul", total, d), number(m, factor, d))
    return total


def _bent(m: Maker, place: Node, length: Dim, how: Sampling) -> Node:
    """Places beyond the edge at it, or as far inside it."""
    if how.beyond == "zeros":
        return place
    whole = m.op("cast", size(m, length), dtype=place.dtype)
    last = m.op("sub", whole, number(m, 1, place))
    if how.beyond == "reflection":
        low = number(m, 0 if how.corners else -0.5, place)
        span = last if how.corners else whole
        away = m.op("abs", m.op("sub", place, low))
        both = m.op("maximum", m.op("add", span, span), number(m, 1e-20, place))
        turn = m.op("mod", away, both)
        place = m.op("add", m.op("minimum", turn, m.op("sub", both, turn)), low)
    return m.op("minimum", m.op("maximum", place, number(m, 0, place)), last)


def _held(m: Maker, at: Node, length: Dim, how: Sampling, weight: Node | None) -> Tap:
    """A tap within the image; of one outside it nothing is taken."""
    last = m.op("sub", m.op("cast", size(m, length), dtype=at.dtype), number(m, 1, at))
    inside = m.op("minimum", m.op("maximum", at, number(m, 0, at)), last)
    if how.beyond != "zeros":
        return inside, weight
    there = m.op("cast", m.op("eq", inside, at), dtype=at.dtype)
    return inside, there if weight is None else m.op("mul", weight, there)


def _picked(m: Maker, pixels: Node, sizes: Sequence[Dim], taps: Sequence[Tap]) -> Node:
    """Pixels `[n, c, p]` at a tap of each axis, times its weights."""
    batch, channels, _ = pixels.shape
    place: Node | None = None
    weight: Node | None = None
    for length, (at, share) in zip(sizes, taps, strict=True):
        step = m.op("cast", at, dtype="i64")
        place = step if place is None else m.op("add", m.op("mul", place, size(m, length)), step)
        if share is not None:
            weight = share if weight is None else m.op("mul", weight, share)
    assert place is not None
    count = place.shape[1]
    index = m.op("expand", m.reshape(place, (batch, 1, count)), shape=(batch, channels, count))
    found = m.op("gather", pixels, index, axis=2)
    return found if weight is None else m.op("mul", found, m.reshape(weight, (batch, 1, count)))
