"""ATen's writes: at indices along an axis, and into parts. In-place forms arrive as these."""

from __future__ import annotations

from typing import Any

from llmc.compiler.dims import product
from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.aten_index import wrapped
from llmc.compiler.frontends.parts import expanded, from_start, replaced, sliced
from llmc.compiler.graph import Node

_REDUCTIONS: dict[Any, str] = {
    **{None: "none", "add": "add", "multiply": "mul"},
    **{"sum": "add", "prod": "mul", "amax": "max", "amin": "min"},
}
_NEUTRAL = {"add": 0, "mul": 1}


@aten(
    *(f"scatter.{kind}" for kind in ("src", "value", "reduce", "value_reduce")),
    "scatter_add.default",
    "scatter_reduce.two",
)
def _scatter(call: Call) -> Node:
    """The index may have fewer lines than x and the source: the others stay as they are."""
    x, index, axis = call["self"], call["index"], call.axis(call["dim"])
    if not x.type.rank:
        x, index = call.reshape(x, (1,)), call.reshape(index, (product(index.shape),))
    part = x
    for other in (a for a in range(x.type.rank) if a != axis):
        part = sliced(call, part, other, 0, index.shape[other])
    updates = _updates(call, x, index)
    made = _written(call, part, index, updates, axis)
    for other in (a for a in reversed(range(x.type.rank)) if a != axis):
        if made.shape[other] != x.shape[other]:
            around = x
            for before in (a for a in range(other) if a != axis):
                around = sliced(call, around, before, 0, index.shape[before])
            made = replaced(call, around, made, other, 0)
    return call.reshape(made, call.shape)


def _updates(call: Call, x: Node, index: Node) -> Node:
    """One value for each index."""
    source = call.get("src", call.get("value"))
    if not isinstance(source, Node) or not source.type.rank:
        return expanded(call, call.scalar(source, x.dtype), index.shape)
    for axis, size in enumerate(index.shape):
        source = sliced(call, source, axis, 0, size)
    return source


def _written(call: Call, x: Node, index: Node, updates: Node, axis: int) -> Node:
    stated = "add" if "scatter_add" in str(call.target) else call.get("reduce")
    call.require(stated in _REDUCTIONS, f"scatter that takes the {stated}", "use sum, prod, amax or amin")
    reduce = _REDUCTIONS[stated]
    if "scatter_reduce" in str(call.target) and not call.get("include_self", True):
        first = updates if reduce not in _NEUTRAL else call.scalar(_NEUTRAL[reduce], x.dtype)
        x = call.op("scatter", x, index, expanded(call, first, index.shape), axis=axis)
    return call.op("scatter", x, index, updates, axis=axis, reduce=reduce)


@aten("index_add.default", "index_copy.default", "index_fill.int_Scalar", "index_fill.int_Tensor")
def _index_add(call: Call) -> Node:
    """Whole lines at the places of a one-dimensional index."""
    x, axis = call["self"], call.axis(call["dim"])
    index = call.reshape(call["index"], (product(call["index"].shape),))
    shape = (*x.shape[:axis], index.shape[0], *x.shape[axis + 1 :])
    if "fill" in str(call.target):
        index = wrapped(call, index, x.shape[axis])
        given = expanded(call, call.scalar(call["value"], x.dtype), shape)
        return call.op("scatter", x, index, given, axis=axis)
    source, alpha = call.cast(call["source"], x.dtype), call.get("alpha", 1)
    source = source if alpha == 1 else call.op("mul", source, call.scalar(alpha, x.dtype))
    reduce = "add" if "add" in str(call.target) else "none"
    return call.op("scatter", x, index, call.reshape(source, shape), axis=axis, reduce=reduce)


@aten("slice_scatter.default")
def _slice_scatter(call: Call) -> Node:
    x, axis = call["self"], call.axis(call["dim"])
    start = from_start(call.get("start", 0), x.shape[axis])
    step = call.get("step", 1)
    return replaced(call, x, _source(call, x), axis, start, step) if call["src"].shape[axis] != 0 else x


@aten("select_scatter.default")
def _select_scatter(call: Call) -> Node:
    x, axis = call["self"], call.axis(call["dim"])
    source = call.reshape(_source(call, x), (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return replaced(call, x, source, axis, from_start(call["index"], x.shape[axis]))


def _source(call: Call, x: Node) -> Node:
    return call.cast(call["src"], x.dtype)


@aten("copy.default", "fill.Scalar", "fill.Tensor")
def _copy(call: Call) -> Node:
    """Everything is written over."""
    source = call.scalar(call.get("src", call.get("value")), call.dtype)
    return expanded(call, source, call.shape)


@aten("masked_scatter.default")
def _masked_scatter(call: Call) -> Node:
    """Place number n of those that the mask keeps takes value number n of the source."""
    x, source = call["self"], call["source"]
    mask = expanded(call, call["mask"], x.shape)
    flat = call.reshape(call.cast(mask, "i64"), (product(x.shape),))
    number = call.op("sub", call.op("cumsum", flat, axis=0), call.scalar(1, "i64"))
    values = call.reshape(call.cast(source, x.dtype), (product(source.shape),))
    taken = call.reshape(call.op("embedding", values, number), x.shape)
    return call.op("where", mask, taken, x)
