"""ONNX's selections by index."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.compiler.dims import Dim, product
from llmc.compiler.frontends.onnx_call import Call, known, onnx_op
from llmc.compiler.frontends.ranges import Ranges, is_nonnegative
from llmc.compiler.graph import Node


def wrapped(call: Call, index: Node, size: Dim) -> Node:
    """Negative indices count from the end; most are known not to be negative."""
    index = index if index.dtype in ("i32", "i64") else call.cast(index, "i64")
    if is_nonnegative(Ranges()[index].low):
        return index
    negative = call.op("lt", index, call.number(0, index.dtype))
    whole = call.cast(call.op("dim", value=size), index.dtype)
    return call.op("where", negative, call.op("add", index, whole), index)


@onnx_op("Gather")
def _gather(call: Call) -> Node:
    """x[..., index, ...] with the index at `axis`: the axis goes to the front and back."""
    x = call.node(0)
    rank = x.type.rank
    axis = call.axis(rank, 0)
    place = known(call.value(1))
    if place is not None and place.ndim == 0 and x.op != "constant":
        return _element(call, x, axis, place.item())
    index = wrapped(call, call.node(1), x.shape[axis])
    front = call.transpose(x, (axis, *(a for a in range(rank) if a != axis)))
    rows = call.op("embedding", front, index)
    taken = tuple(range(index.type.rank))
    rest = tuple(range(index.type.rank, index.type.rank + rank - 1))
    return call.transpose(rows, (*rest[:axis], *taken, *rest[axis:]))


def _element(call: Call, x: Node, axis: int, place: Dim) -> Node:
    """x[:, place], with the axis dropped."""
    start = place + x.shape[axis] if isinstance(place, int) and place < 0 else place
    part = call.sliced(x, axis, start, start + 1)
    return call.reshape(part, (*x.shape[:axis], *x.shape[axis + 1 :]))


@onnx_op("GatherElements")
def _gather_elements(call: Call) -> Node:
    """The index may have fewer rows than x; the IR wants them equal."""
    x, axis = call.node(0), call.axis(call.node(0).type.rank, 0)
    index = wrapped(call, call.node(1), x.shape[axis])
    for other in range(x.type.rank):
        if other != axis and x.shape[other] != index.shape[other]:
            x = call.sliced(x, other, 0, index.shape[other])
    return call.op("gather", x, index, axis=axis)


@onnx_op("GatherND")
def _gather_nd(call: Call) -> Node:
    """The last axis of the indices holds k coordinates: they are merged into one over the first k axes."""
    x, indices = call.node(0), call.node(1)
    count = indices.shape[-1]
    call.require(call.attribute("batch_dims", 0) == 0, "GatherND with batch_dims")
    call.require(isinstance(count, int), "GatherND with a dynamic number of coordinates")
    places = [_coordinate(call, indices, k, x.shape[k]) for k in range(count)]
    index = places[0]
    for size, place in zip(x.shape[1:count], places[1:], strict=True):
        whole = call.cast(call.op("dim", value=size), index.dtype)
        index = call.op("add", call.op("mul", index, whole), place)
    return call.op("embedding", call.reshape(x, _merged(x.shape, count)), index)


def _coordinate(call: Call, indices: Node, k: int, size: Dim) -> Node:
    """Coordinate k of all indices; a concat of coordinates is looked through."""
    shape = indices.shape[:-1]
    apart = indices.op == "concat" and indices.attributes["axis"] == len(shape)
    if apart and all(part.shape[-1] == 1 for part in indices.inputs):
        return wrapped(call, call.reshape(indices.inputs[k], shape), size)
    part = call.sliced(indices, len(shape), k, k + 1)
    return wrapped(call, call.reshape(part, shape), size)


def _merged(shape: Sequence[Dim], count: int) -> tuple[Dim, ...]:
    return (product(shape[:count]), *shape[count:])
