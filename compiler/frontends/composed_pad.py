"""Padding of every kind, and the views that move pixels to channels and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.composed import joined, number, size, taken
from llmc.compiler.frontends.parts import Maker, expanded, sliced, transposed
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant

MODES = ("reflect", "replicate", "circular")


def padded(m: Maker, x: Node, before: Sequence[int], after: Sequence[int], value: Any = 0) -> Node:
    """`value` around x; a negative number cuts off."""
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        x = cut(m, x, axis, low, high)
    before, after = (tuple(max(p, 0) for p in pads) for pads in (before, after))
    return m.op("pad", x, before=before, after=after, value=value) if any((*before, *after)) else x


def surrounded(m: Maker, x: Node, axis: int, pads: tuple[Dim, Dim], fill: Any) -> Node:
    """x between as many elements as pads say, which may depend on sizes; a call in which one is below 0 is refused."""
    value, (*lead, _), rest = number(m, fill, x), x.shape[: axis + 1], x.shape[axis + 1 :]
    before, after = (expanded(m, value, (*lead, pad, *rest)) for pad in pads)
    return joined(m, [p for p in (before, x, after) if p.shape[axis] != 0], axis)


def cut(m: Maker, x: Node, axis: int, before: int, after: int) -> Node:
    """x without as many elements at both ends as the negative ones of two pads say."""
    first, last = max(-before, 0), max(-after, 0)
    return sliced(m, x, axis, first, dim(x.shape[axis] - first - last)) if first or last else x


def mirrored(m: Maker, x: Node, axis: int, before: int, after: int, mode: str) -> Node:
    """Elements of x itself around it: of "reflect" behind its edge, the edge, or those of the other side.

    A negative number cuts off: of "circular" first, of the others what lies beyond is mirrored, too.
    """
    if mode == "circular":
        x, before, after = cut(m, x, axis, before, after), max(before, 0), max(after, 0)
    if not before and not after:
        return x
    length = x.shape[axis]
    if isinstance(length, int):
        places = np.arange(-before, length + after)
        return taken(m, x, constant(_places(places, length, mode), source=m.source), axis)
    if mode == "reflect":
        return _reflected(m, x, axis, before, after)
    index = m.op("iota", length=dim(length + before + after), start=-before, dtype="i64")
    return taken(m, x, _index(m, index, length, mode), axis)


def _places(i: np.ndarray[Any, Any], length: int, mode: str) -> np.ndarray[Any, Any]:
    match mode:
        case "reflect":
            period = max(2 * (length - 1), 1)
            return np.asarray(np.minimum(i % period, period - i % period) % max(length, 1))
        case "replicate":
            return np.asarray(np.clip(i, 0, length - 1))
    return np.asarray(i % length)


def _index(m: Maker, i: Node, length: Dim, mode: str) -> Node:
    """`_places` for a size that is not known."""
    if mode == "replicate":
        return m.op("minimum", m.op("maximum", i, number(m, 0, i)), size(m, dim(length - 1)))
    return m.op("mod", i, size(m, length))


def _reflected(m: Maker, x: Node, axis: int, before: int, after: int) -> Node:
    """Of slices, which say of each call whether the axis is long enough: PyTorch and ONNX Runtime refuse others."""
    length = x.shape[axis]
    parts = [cut(m, x, axis, before, after)]
    if before > 0:
        parts.insert(0, _backwards(m, sliced(m, x, axis, 1, before), axis, before))
    if after > 0:
        parts.append(_backwards(m, sliced(m, x, axis, dim(length - 1 - after), after), axis, after))
    return m.op("concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _backwards(m: Maker, x: Node, axis: int, length: int) -> Node:
    return taken(m, x, constant(np.arange(length - 1, -1, -1), source=m.source), axis)


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
