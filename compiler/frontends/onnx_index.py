"""ONNX's selections by index."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.compiler.dims import Dim, product
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_values import known
from llmc.compiler.frontends.ranges import Ranges, is_nonnegative
from llmc.compiler.graph import Node


def wrapped(call: Call, index: Node, size: Dim) -> Node:
    """Negative indices count from the end; most are known not to be negative."""
    index = index if index.dtype in ("i32", "i64") else call.cast(index, "i64")
    if is_nonnegative(Ranges()[index].low):
        return index
    negative = call.op("lt", index, call.number(0, index.dtype))
    known_size = isinstance(size, int)  # with a constant index all of it is known
    whole = (
        call.number(size, index.dtype) if known_size else call.cast(call.op("dim", value=size), index.dtype)
    )
    return call.op("where", negative, call.op("add", index, whole), index)


@onnx_op("Gather")
def _gather(call: Call) -> Node:
    """x[..., index, ...] with the index at `axis`: the axis goes to the front and back."""
    x = call.node(0)
    rank = x.type.rank
    axis = call.axis(rank, 0)
    place = known(call.value(1))
    size = x.shape[axis]
    if place is not None and isinstance(size, int):
        numbers = [n for n in place.reshape(-1) if not hasattr(n, "free_symbols")]
        call.require(all(-size <= n < size for n in numbers), f"an index beyond an axis of {size}")
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
    """The last axis of the indices holds k coordinates: they are merged into one over the first k axes.

    Axes of a batch, which both have, are such coordinates too: each counts for itself.
    """
    x, indices, lead = call.node(0), call.node(1), call.attribute("batch_dims", 0)
    count = indices.shape[-1]
    call.require(isinstance(count, int), "GatherND with a dynamic number of coordinates")
    places = [_own(call, indices, axis) for axis in range(lead)]
    places += [_coordinate(call, indices, k, x.shape[lead + k]) for k in range(count)]
    index = call.cast(places[0], "i64")
    for size, place in zip(x.shape[1 : lead + count], places[1:], strict=True):
        whole = call.op("dim", value=size)
        index = call.op("add", call.op("mul", index, whole), call.cast(place, "i64"))
    index = call.expand(index, indices.shape[:-1])
    return call.op("embedding", call.reshape(x, _merged(x.shape, lead + count)), index)


def _own(call: Call, indices: Node, axis: int) -> Node:
    """Where along an axis of the batch each index is."""
    rank = indices.type.rank - 1
    shape = tuple(d if a == axis else 1 for a, d in enumerate(indices.shape[:-1]))
    return call.expand(call.reshape(call.op("iota", length=indices.shape[axis]), shape), indices.shape[:rank])


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


@onnx_op("ReverseSequence")
def _reverse_sequence(call: Call) -> Node:
    """Of each row the first elements, as many as its length says, in the opposite order."""
    x, lengths = call.node(0), call.cast(call.node(1), "i64")
    batch_axis, time_axis = call.attribute("batch_axis", 1), call.attribute("time_axis", 0)
    call.require({batch_axis, time_axis} == {0, 1}, "ReverseSequence over other axes than the first two")
    steps = call.op("iota", length=x.shape[time_axis])
    steps = call.reshape(steps, (x.shape[time_axis], 1) if time_axis == 0 else (1, x.shape[time_axis]))
    ends = call.reshape(lengths, (1, *lengths.shape) if batch_axis else (*lengths.shape, 1))
    turned = call.op("sub", call.op("sub", ends, call.number(1, "i64")), steps)
    index = call.op("where", call.op("lt", steps, ends), turned, steps)
    index = call.expand(call.reshape(index, (*index.shape, *(1,) * (x.type.rank - 2))), x.shape)
    return call.op("gather", x, index, axis=time_axis)


@onnx_op("TensorScatter")
def _tensor_scatter(call: Call) -> Node:
    """Updates behind what a cache `[batch, ...]` holds already, from each row's own place on; or around its end."""
    cache, updates = call.node(0), call.node(1)
    rank, mode = cache.type.rank, call.attribute("mode", "linear")
    axis = call.attribute("axis", -2) % rank
    length = call.op("iota", length=updates.shape[axis])
    shape = tuple(d if a == axis else 1 for a, d in enumerate(updates.shape))
    places = call.reshape(length, shape)
    if call.has(2):
        first = call.cast(call.node(2), "i64")
        places = call.op("add", places, call.reshape(first, (*first.shape, *(1,) * (rank - 1))))
    if mode == "circular":
        places = call.op("mod", places, call.op("dim", value=cache.shape[axis]))
    call.require(mode in ("linear", "circular"), f"TensorScatter of mode {mode!r}")
    return call.op("scatter", cache, call.expand(places, updates.shape), updates, axis=axis)
