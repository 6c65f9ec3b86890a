"""ATen's orders along an axis: of equal elements the lowest index comes first, as PyTorch's stable sorts have it."""

from __future__ import annotations

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.parts import sliced, to_end, transposed
from llmc.compiler.graph import Node


def _ordered(call: Call, count: Dim | None, descending: bool) -> tuple[Node, Node]:
    """Values and indices of the first `count` along the axis `dim`, all if None."""
    x = call["self"]
    if not x.type.rank:
        return x, call.scalar(0, "i64")
    axis = call.axis(call.get("dim", -1), x.type.rank)
    perm = to_end(x.type.rank, axis)
    last = transposed(call, x, perm)
    compared = call.cast(last, "u8") if x.dtype == "bool" else last
    count = last.shape[-1] if count is None else dim(count)
    index = call.op("argsort", compared, count=count, descending=descending)
    values = call.op("gather", last, index, axis=x.type.rank - 1)
    return transposed(call, values, perm), transposed(call, index, perm)


@aten("topk.default")
def _topk(call: Call) -> tuple[Node, ...]:
    return _ordered(call, call["k"], bool(call.get("largest", True)))


@aten("sort.default", "sort.stable")
def _sort(call: Call) -> tuple[Node, ...]:
    return _ordered(call, None, bool(call.get("descending", False)))


@aten("argsort.default", "argsort.stable")
def _argsort(call: Call) -> Node:
    return _ordered(call, None, bool(call.get("descending", False)))[1]


@aten("msort.default")
def _msort(call: Call) -> Node:
    x = call["self"]
    perm = to_end(x.type.rank, 0)
    last = transposed(call, x, perm)
    index = call.op("argsort", last, count=last.shape[-1])
    return transposed(call, call.op("gather", last, index, axis=x.type.rank - 1), perm)


@aten("kthvalue.default")
def _kthvalue(call: Call) -> tuple[Node, ...]:
    x, k = call["self"], call["k"]
    axis = call.axis(call.get("dim", -1), x.type.rank)
    kept = (sliced(call, part, axis, k - 1, 1) for part in _ordered(call, k, False))
    return tuple(call.reshape(part, call.shape) for part in kept)


# --- places among sorted numbers


@aten("bucketize.Tensor", "searchsorted.Tensor")
def _bucketize(call: Call) -> Node:
    """How many boundaries are below a number, or, with `right`, not above it: all are compared."""
    x, bounds = call["self"], call.get("boundaries", call.get("sorted_sequence"))
    right = bool(call.get("right", False)) or call.get("side") == "right"
    call.require(call.get("sorter") is None, "searchsorted with a sorter", "sort first")
    x, bounds = _alike(call, x, bounds)
    x = call.reshape(x, (*x.shape, 1))
    if bounds.type.rank > 1:
        bounds = call.reshape(bounds, (*bounds.shape[:-1], 1, bounds.shape[-1]))
    below = call.op("le" if right else "lt", bounds, x)
    counted = call.op("sum", call.cast(below, "i64"), axes=(len(below.shape) - 1,))
    return call.cast(call.reshape(counted, call.shape), call.dtype)


def _alike(call: Call, x: Node, bounds: Node) -> tuple[Node, Node]:
    """Both as f32 if one is, as i64 if not."""
    dtype = "f32" if "f32" in (x.dtype, bounds.dtype) else "i64" if x.dtype != bounds.dtype else x.dtype
    return call.cast(x, dtype), call.cast(bounds, dtype)
