"""How ops that move elements walk their input: extents and strides, for every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import same_dim
from llmc.targets.tir.emit import Emitter, Expr, i64
from llmc.targets.tir.later import tirx

Axis = tuple[Dim, Dim]  # extent, stride of the input in elements
Strides = tuple[list[Axis], Dim]  # the axes, and the element the walk starts at


def _dense(shape: Sequence[Dim]) -> list[Dim]:
    """Strides of a dense array."""
    return [product(shape[i + 1 :]) for i in range(len(shape))]


def merge_strides(axes: Sequence[Axis]) -> list[Axis]:
    """The same walk with as few axes as possible; at least one."""
    merged: list[Axis] = []
    for extent, stride in axes:
        if same_dim(extent, 1):
            continue
        if merged and same_dim(merged[-1][1], dim(stride * extent)):
            merged[-1] = (dim(merged[-1][0] * extent), stride)
        else:
            merged.append((extent, stride))
    return merged or [(1, 1)]


def transpose(node: Node) -> Strides:
    """Axes in another order; axes that stay neighbours are copied as one."""
    x, perm = node.inputs[0], node.attributes["perm"]
    steps = _dense(x.shape)
    return [(x.shape[p], steps[p]) for p in perm], 0


def expand(node: Node) -> Strides:
    """Broadcast axes are walked with stride 0."""
    x = node.inputs[0]
    missing = len(node.shape) - len(x.shape)
    steps: list[Dim] = [0] * missing + _dense(x.shape)
    repeated = [i < missing or same_dim(x.shape[i - missing], 1) for i in range(len(node.shape))]
    return [(e, 0 if r else s) for e, r, s in zip(node.shape, repeated, steps, strict=True)], 0


def slice_(node: Node) -> Strides:
    """A part of one axis."""
    x, axis = node.inputs[0], node.attributes["axis"]
    steps = _dense(x.shape)
    start = dim(dim(node.attributes["start"]) * steps[axis])
    steps[axis] = dim(steps[axis] * node.attributes["step"])
    return list(zip(node.shape, steps, strict=True)), start


# How the input of an op is walked, for every target.
STRIDES: dict[str, Callable[[Node], Strides]] = {"transpose": transpose, "expand": expand, "slice": slice_}


def pad_axes(node: Node) -> list[tuple[Dim, Dim, int]]:
    """(input extent, output extent, elements before), unpadded axes joined to the one before them."""
    x, before, after = node.inputs[0], node.attributes["before"], node.attributes["after"]
    merged: list[tuple[Dim, Dim, int]] = []
    for has, gets, left, right in zip(x.shape, node.shape, before, after, strict=True):
        if merged and left == right == 0 and isinstance(has, int):
            old_has, old_gets, old_left = merged[-1]
            merged[-1] = (dim(old_has * has), dim(old_gets * has), old_left * has)
        else:
            merged.append((has, gets, left))
    return merged or [(1, 1, 0)]


def clamped(k: Emitter, index: Expr, size: Expr) -> Expr:
    """`index` as int64 within 0..size-1: an index from outside must not reach memory it does not own."""
    wide = k.let(tirx.Cast("int64", index))
    return k.let(tirx.max(tirx.min(wide, size - i64(1)), i64(0)))
