"""ONNX's parts of tensors: slices, splits and concats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import Dim, dim, from_one
from llmc.compiler.frontends.composed import size, taken
from llmc.compiler.frontends.imported import HUGE
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_index import wrapped
from llmc.compiler.frontends.onnx_values import known
from llmc.compiler.frontends.ranges import is_nonnegative
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant

_MOST = (2**31 - 1, 2**63 - 1)  # bounds of a slice that ONNX Runtime takes for the end whichever way it runs
_FAR = 1 << 31  # a bound of a slice that means the end


def backwards(call: Call, x: Node, axis: int) -> Node:
    """x with the order along an axis turned round."""
    length = x.shape[axis]
    if length == 1:
        return x
    if isinstance(length, int):
        return taken(call, x, constant(np.arange(length)[::-1].copy(), source=call.source), axis)
    return taken(call, x, call.op("iota", length=length, start=dim(length - 1), step=-1), axis)


@onnx_op("Slice")
def _slice(call: Call) -> Node:
    """Bounds were attributes before opset 10."""
    x = call.node(0)
    if "starts" in call.attributes:
        starts, ends = (tuple(call.attributes[name]) for name in ("starts", "ends"))
        axes, steps = call.attribute("axes", range(len(starts))), (1,) * len(starts)
    else:
        if any(call.has(i) and known(call.value(i)) is None for i in range(1, 5)):
            return _running_slice(call, x)
        starts, ends = call.dims(1, "the start of a slice"), call.dims(2, "the end of a slice")
        axes = call.dims(3, "axes") if call.has(3) else range(len(starts))
        steps = call.dims(4, "steps") if call.has(4) else (1,) * len(starts)
    for end, step in zip(ends, steps, strict=True):
        both = "a slice backwards to INT_MAX: nothing to the standard, all to ONNX Runtime"
        call.require(not (isinstance(step, int) and step < 0 and end in _MOST), both, "end it at INT_MIN")
    if (array := known(x)) is not None and all(isinstance(n, int) for n in (*starts, *ends)):
        return _slice_constant(call, array, zip(starts, ends, axes, steps, strict=True))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        call.require(isinstance(step, int) and step != 0, f"a slice by steps of {step}")
        call.require(-x.type.rank <= axis < x.type.rank, f"axis {axis} of {x.type.rank}")
        x = _cut(call, x, axis % x.type.rank, start, end, int(step))
    return x


def _cut(call: Call, x: Node, axis: int, start: Dim, end: Dim, step: int) -> Node:
    length = x.shape[axis]
    if step < 0:  # of the axis turned round a slice that runs forwards; -1 is in front of the first element
        x = backwards(call, x, axis)
        start, end = (_turned(bound, length) for bound in (start, end))
    first = _place(start, length)
    return call.sliced(x, axis, first, _after(first, _place(end, length)), abs(step))


def _turned(bound: Dim, length: Dim) -> Dim:
    """A bound of a slice that runs backwards, on the axis turned round."""
    if isinstance(bound, int) and bound < 0:
        return -bound - 1 if bound > -_FAR else _FAR
    if isinstance(bound, int) and isinstance(length, int):
        return max(length - 1 - bound, 0)
    if isinstance(bound, int) and bound >= _FAR - 1:
        return 0
    return from_one(dim(sympy.Max(0, length - 1 - bound)))


def _slice_constant(call: Call, array: Any, cuts: Any) -> Node:
    index = [slice(None)] * array.ndim
    for start, end, axis, step in cuts:
        index[axis] = slice(start, None if step < 0 and end < -array.shape[axis] else end, step)
    return constant(np.ascontiguousarray(array[tuple(index)]), source=call.source)


def _place(index: Dim, length: Dim) -> Dim:
    """A slice's bound, counted from the start and kept within the axis.

    A symbolic bound on an axis of fixed size is taken to be inside: the axis then limits the dim (`ranges.py`).
    """
    if isinstance(index, int):
        if isinstance(length, int):
            return min(max(index + length if index < 0 else index, 0), length)
        if index < 0:
            return 0 if index < -_FAR else from_one(dim(sympy.Max(0, length + index)))
        if index <= 1:
            return index  # dims are at least 1
        far = HUGE if isinstance(length, sympy.Symbol) else _FAR - 1
        return length if index >= far else from_one(sympy.Min(index, length))
    return index if isinstance(length, int) or dim(index - length) != 0 else length


def _after(start: Dim, stop: Dim) -> Dim:
    """The end of a slice, not before its start."""
    if isinstance(start, int) and isinstance(stop, int):
        return max(start, stop)
    return stop if is_nonnegative(dim(stop - start)) else from_one(dim(sympy.Max(start, stop)))


def _running_slice(call: Call, x: Node) -> Node:
    """Bounds that are given at run time: the file says how long the result is; an axis not named is left whole."""
    wanted, rank = call.shape_of_result("the start of a slice"), x.type.rank
    starts = call.cast(call.node(1), "i64")
    call.value(2)
    (count,) = starts.shape
    axes = call.node(3) if call.has(3) else constant(np.arange(int(count)), source=call.source)
    axes = wrapped(call, call.cast(axes, "i64"), rank)
    steps = call.cast(call.node(4), "i64") if call.has(4) else call.expand(call.number(1, "i64"), (count,))
    for axis in range(rank):
        here = call.op("eq", axes, call.number(axis, "i64"))
        start, step = (picked(call, here, v, d) for v, d in ((starts, 0), (steps, 1)))
        x = _stepped(call, x, axis, start, step, wanted[axis])
    return x


def picked(call: Call, here: Node, numbers: Node, default: int) -> Node:
    """The number of the axis, or what holds without one."""
    away = call.op("sub", numbers, call.number(default, "i64"))
    own = call.op("where", here, away, call.number(0, "i64"))
    return call.op("add", call.op("sum", own, axes=(0,), keepdims=False), call.number(default, "i64"))


def _stepped(call: Call, x: Node, axis: int, start: Node, step: Node, length: int) -> Node:
    """`length` elements from `start` on, which lies within the axis, or, backwards, on its last element."""
    whole, zero = size(call, x.shape[axis]), call.number(0, "i64")
    start = call.op("where", call.op("lt", start, zero), call.op("add", start, whole), start)
    last = call.op("sub", whole, call.number(1, "i64"))
    top = call.op("where", call.op("lt", step, zero), last, whole)
    start = call.op("maximum", call.op("minimum", start, top), zero)
    places = call.op("add", start, call.op("mul", call.op("iota", length=length), step))
    return taken(call, x, places, axis)


@onnx_op("Split")
def _split(call: Call) -> tuple[Node, ...]:
    x = call.node(0)
    axis = call.axis(x.type.rank, 0)
    call.attribute("num_outputs", None)
    ends = np.cumsum(_sizes(call, x, axis)).tolist()
    call.require(
        ends[-1] == x.shape[axis] or not isinstance(x.shape[axis], int), "parts that are not the whole"
    )
    starts = [0, *ends[:-1]]
    return tuple(call.sliced(x, axis, start, end) for start, end in zip(starts, ends, strict=True))


def _sizes(call: Call, x: Node, axis: int) -> Sequence[int]:
    """How long each part is."""
    if call.has(1) and known(call.value(1)) is None:
        return [call.shape_of_result("split", i)[axis] for i in range(call.outputs)]
    sizes = call.ints(1, "split")
    if sizes is not None:
        return sizes
    whole = x.shape[axis]
    call.require(isinstance(whole, int), "a Split of an axis of dynamic size")
    part = -(-int(whole) // call.outputs)
    return [min(part, int(whole) - i * part) for i in range(call.outputs)]


@onnx_op("Concat")
def _concat(call: Call) -> Node:
    """Before opset 4 along axis 1, if none is named."""
    nodes = call.nodes()
    axis = call.axis(nodes[0].type.rank, 1 if call.opset < 4 else None)
    parts = [p for p in nodes if p.shape[axis] != 0] or nodes[:1]
    for part in parts if len(parts) > 1 else ():
        call.may_be_empty(part.shape[axis])  # as a past is, before what is new
    return parts[0] if len(parts) == 1 else call.op("concat", *parts, axis=axis)
