"""Padding of every kind, and the views that move pixels to channels and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.composed import number, size, taken
from llmc.compiler.frontends.parts import Maker, sliced, transposed
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant

MODES = ("reflect", "replicate", "circular")


def padded(m: Maker, x: Node, before: Sequence[int], after: Sequence[int], value: Any = 0) -> Node:
    """`value` around x; a negative number cuts off."""
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low < 0 or high < 0:
            first, last = max(-low, 0), max(-high, 0)
            x = sliced(m, x, axis, first, dim(x.shape[axis] - first - last))
    before, after = (tuple(max(p, 0) for p in pads) for pads in (before, after))
    return m.op("pad", x, before=before, after=after, value=value) if any((*before, *after)) else x


def mirrored(m: Maker, x: Node, axis: int, before: int, after: int, mode: str) -> Node:
    """Elements of x itself around it: of "reflect" behind its edge, the edge, or those of the other side."""
    if not before and not after:
        return x
    length = x.shape[axis]
    if isinstance(length, int):
        places = np.arange(-before, length + after)
        return taken(m, x, constant(_places(places, length, mode), source=m.source), axis)
    index = m.op("iota", length=dim(length + before + after), start=-before, dtype="i64")
    return taken(m, x, _index(m, index, length, mode), axis)


def _places(i: np.ndarray[Any, Any], length: int, mode: str) -> np.ndarray[Any, Any]:
    match mode:
        case "reflect":
            return np.asarray((length - 1) - np.abs((length - 1) - np.abs(i)))
        case "replicate":
            return np.asarray(np.clip(i, 0, length - 1))
    return np.asarray(i % length)


def _index(m: Maker, i: Node, length: Dim, mode: str) -> Node:
    """`_places` for a size that is not known."""
    last = size(m, dim(length - 1))
    match mode:
        case "reflect":
            return m.op("sub", last, m.op("abs", m.op("sub", last, m.op("abs", i))))
        case "replicate":
            return m.op("minimum", m.op("maximum", i, number(m, 0, i)), last)
    return m.op("mod", i, size(m, length))


# --- pixels and channels


def shuffled(m: Maker, x: Node, factor: int, columns_first: bool = False) -> Node:
    """[..., c*r*r, h, w] -> [..., c, h*r, w*r]; "columns first": channels are [r, r, c]."""
    *lead, c, h, w = x.shape
    n = len(lead)
    c = dim(c / factor**2) if not isinstance(c, int) else c // factor**2
    split = (factor, factor, c) if columns_first else (c, factor, factor)
    wide = m.reshape(x, (*lead, *split, h, w))
    order = (2, 3, 0, 4, 1) if columns_first else (0, 3, 1, 4, 2)
    moved = transposed(m, wide, (*range(n), *(n + a for a in order)))
    return m.reshape(moved, (*lead, c, dim(h * factor), dim(w * factor)))


def unshuffled(m: Maker, x: Node, factor: int, columns_first: bool = False) -> Node:
    """The inverse of `shuffled`."""
    *lead, c, h, w = x.shape
    n = len(lead)
    h, w = (d // factor if isinstance(d, int) else dim(d / factor) for d in (h, w))
    wide = m.reshape(x, (*lead, c, h, factor, w, factor))
    order = (2, 4, 0, 1, 3) if columns_first else (0, 2, 4, 1, 3)
    moved = transposed(m, wide, (*range(n), *(n + a for a in order)))
    return m.reshape(moved, (*lead, dim(c * factor**2), h, w))
