"""ONNX's reductions, cumulative ops and softmax; axes that are given at run time are chosen there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

from llmc.compiler.dims import product
from llmc.compiler.frontends import composed_math
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_choice import Axes, selected
from llmc.compiler.frontends.onnx_parts import backwards
from llmc.compiler.frontends.onnx_values import known
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops.reduction import reduced

_REDUCTIONS = {
    **{"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min"},
    "ReduceProd": "prod",
}


def over_axes(call: Call, x: Node, make: Callable[[Axes], Node]) -> Node:
    """`make` of the axes to reduce; none given means all, unless the node says that it then does nothing."""
    rank = x.type.rank
    if call.has(1) and known(call.value(1)) is None:
        return _chosen(call, x, make)
    axes = call.ints(1, "axes")
    if not axes:
        return make(() if call.attribute("noop_with_empty_axes", 0) else tuple(range(rank)))
    call.attribute("noop_with_empty_axes", 0)
    call.require(all(-rank <= a < rank for a in axes), f"axes {axes} of {rank}")
    return make(tuple(sorted({a % rank for a in axes})))


def _chosen(call: Call, x: Node, make: Callable[[Axes], Node]) -> Node:
    """Axes that are given at run time: of those that the declared shape allows, the one that they are."""
    rank, given = x.type.rank, call.node(1)
    (count,) = given.shape
    call.require(isinstance(count, int), "axes whose number is dynamic")
    if not count:
        return make(() if call.attribute("noop_with_empty_axes", 0) else tuple(range(rank)))
    call.attribute("noop_with_empty_axes", 0)
    wanted = call.shape_of_result("axes")
    keepdims = bool(call.attribute("keepdims", 1))
    options = [c for c in combinations(range(rank), count) if reduced(x.shape, c, keepdims) == wanted]
    return selected(call, given, options, rank, make)


def _reduced(call: Call, op: str, x: Node, axes: Axes) -> Node:
    """Of nothing a sum or product is its neutral element; of bools the extremes are any and all."""
    keepdims = bool(call.attribute("keepdims", 1))
    if not axes:
        return x
    if x.dtype == "bool":
        op = {"max": "any", "min": "all"}.get(op, op)
    if op in _NEUTRAL and any(x.shape[a] == 0 for a in axes):
        fill = _NEUTRAL[op] if x.dtype == "f32" else _ends(op, x.dtype)
        return call.op("full", shape=reduced(x.shape, axes, keepdims), value=fill, dtype=x.dtype)
    return call.op(op, x, axes=axes, keepdims=keepdims)


_NEUTRAL = {"max": float("-inf"), "min": float("inf"), "any": False, "all": True}


def _ends(op: str, dtype: str) -> int | bool:
    if dtype == "bool":
        return op == "all"
    info = np.iinfo(DTYPES[dtype])
    return int(info.min if op == "max" else info.max)


@onnx_op(*_REDUCTIONS)
def _reduce(call: Call) -> Node:
    x, op = call.node(0), _REDUCTIONS[call.type]
    if op == "mean" and x.dtype != "f32":
        raise UnsupportedError("a mean of integers", "cast to float first")
    return over_axes(call, x, lambda axes: _reduced(call, op, x, axes))


@onnx_op("ReduceL2", "ReduceL1", "ReduceSumSquare", "ReduceLogSum")
def _norm(call: Call) -> Node:
    """Of integers a root and a logarithm are computed as floats. Over no axes each element is its own sum."""
    x = call.node(0)
    before = {"ReduceL1": "abs", "ReduceLogSum": ""}.get(call.type, "square")
    after = {"ReduceL2": "sqrt", "ReduceLogSum": "log"}.get(call.type, "")

    def make(axes: Axes) -> Node:
        part = call.op("mul", x, x) if before == "square" else call.op("abs", x) if before else x
        total = _reduced(call, "sum", part, axes)
        return call.cast(call.op(after, call.cast(total, "f32")), x.dtype) if after else total

    return over_axes(call, x, make)


@onnx_op("ReduceLogSumExp")
def _log_sum_exp(call: Call) -> Node:
    x, keepdims = call.node(0), bool(call.attribute("keepdims", 1))

    def make(axes: Axes) -> Node:
        if not axes:
            return x
        if any(x.shape[a] == 0 for a in axes):
            return call.op("full", shape=reduced(x.shape, axes, keepdims), value=float("-inf"), dtype="f32")
        return composed_math.log_sum_exp(call, x, axes, keepdims)

    return over_axes(call, x, make)


@onnx_op("ArgMax", "ArgMin")
def _argmax(call: Call) -> Node:
    """The first of equal extremes, or the last: the first from behind."""
    x = call.node(0)
    axis, keepdims = call.axis(x.type.rank, 0), bool(call.attribute("keepdims", 1))
    if not call.attribute("select_last_index", 0):
        return _first(call, x, axis, keepdims)
    found = _first(call, backwards(call, x, axis), axis, keepdims)
    last = call.op("sub", call.op("dim", value=x.shape[axis]), call.number(1, "i64"))
    return call.op("sub", last, found)


def _first(call: Call, x: Node, axis: int, keepdims: bool) -> Node:
    """The smallest of integers is the largest of what is left to the top: -x has no room for the lowest."""
    if call.type == "ArgMin":
        x = call.op("neg", x) if x.dtype == "f32" else call.op("sub", call.number(-1, x.dtype), x)
    return call.op("argmax", x, axis=axis, keepdims=keepdims)


@onnx_op("CumSum", "CumProd")
def _running(call: Call) -> Node:
    x = call.node(0)
    rank = x.type.rank
    if known(call.value(1)) is None:
        given = call.reshape(call.node(1), (1,))
        options = [(axis,) for axis in range(rank)]
        return selected(call, given, options, rank, lambda axes: _run_along(call, x, axes[0]))
    (axis,) = call.dims(1, "an axis")
    call.require(isinstance(axis, int) and -rank <= axis < rank, f"axis {axis} of {rank}")
    return _run_along(call, x, axis % rank)


def _run_along(call: Call, x: Node, axis: int) -> Node:
    if call.attribute("reverse", 0):
        return backwards(call, _total(call, backwards(call, x, axis), axis), axis)
    return _total(call, x, axis)


def _total(call: Call, x: Node, axis: int) -> Node:
    """Up to each element, or up to the one before, which of the first is nothing."""
    multiplies = call.type == "CumProd"
    if call.attribute("exclusive", 0):
        size = x.shape[axis]
        before = tuple(int(a == axis) for a in range(x.type.rank))
        whole = call.op("pad", x, before=before, after=(0,) * x.type.rank, value=int(multiplies))
        x = call.sliced(whole, axis, 0, size)
    return composed_math.running_product(call, x, axis) if multiplies else call.op("cumsum", x, axis=axis)


@onnx_op("Softmax", "LogSoftmax", "Hardmax")
def _softmax(call: Call) -> Node:
    """Before opset 13 all axes from `axis` on were one."""
    x = call.node(0)
    rank = x.type.rank
    axis = call.axis(rank, -1 if call.opset >= 13 else 1)
    if call.opset >= 13 or axis == rank - 1:
        return _normalised(call, x, axis)
    flat = call.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))
    return call.reshape(_normalised(call, flat, 1), x.shape)


def _normalised(call: Call, x: Node, axis: int) -> Node:
    if call.type != "Hardmax":
        return call.op("softmax" if call.type == "Softmax" else "log_softmax", x, axis=axis)
    best = call.op("argmax", x, axis=axis, keepdims=True)
    shape = tuple(d if a == axis else 1 for a, d in enumerate(x.shape))
    places = call.reshape(call.op("iota", length=x.shape[axis]), shape)
    return call.cast(call.op("eq", places, best), x.dtype)
