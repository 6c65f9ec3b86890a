"""ATen's selections by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim, product
from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.parts import expanded, inverse, sliced, transposed
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant
from llmc.compiler.ops.rules import broadcast


@aten("gather.default")
def _gather(call: Call) -> Node:
    """aten.gather may index fewer rows than x has; the IR wants them equal."""
    x, index, axis = call["self"], call["index"], call.axis(call["dim"])
    for other in range(x.type.rank):
        if other != axis:
            x = sliced(call, x, other, 0, index.shape[other])
    return call.op("gather", x, index, axis=axis)


def wrapped(call: Call, index: Node, size: Any) -> Node:
    """Negative indices count from the end."""
    if index.op == "constant" and bool((index.attributes["value"].array >= 0).all()):
        return index
    negative = call.op("lt", index, call.scalar(0, index.dtype))
    return call.op("where", negative, call.op("add", index, call.scalar(size, index.dtype)), index)


def take(call: Call, x: Node, index: Node, axis: int) -> Node:
    """x[..., index, ...] with the index at `axis`: the axis goes to the front and back."""
    rank = x.type.rank
    front = transposed(call, x, (axis, *(a for a in range(rank) if a != axis)))
    rows = call.op("embedding", front, index)
    taken = tuple(range(index.type.rank))
    rest = tuple(range(index.type.rank, index.type.rank + rank - 1))
    return transposed(call, rows, (*rest[:axis], *taken, *rest[axis:]))


@aten("index_select.default")
def _index_select(call: Call) -> Node:
    return take(call, call["self"], call["index"], call.axis(call["dim"]))


@aten("take_along_dim.default")
def _take_along(call: Call) -> Node:
    """As `gather`, with shapes that broadcast against each other."""
    x, index = call["self"], call["indices"]
    if call.get("dim") is None:
        return call.op(
            "gather", call.reshape(x, (product(x.shape),)), call.reshape(index, call.shape), axis=0
        )
    axis = call.axis(call["dim"], x.type.rank)
    shapes = [(*n.shape[:axis], 1, *n.shape[axis + 1 :]) for n in (x, index)]
    common = broadcast(*shapes)
    x, index = (expanded(call, n, (*common[:axis], n.shape[axis], *common[axis + 1 :])) for n in (x, index))
    return call.op("gather", x, wrapped(call, index, x.shape[axis]), axis=axis)


def merged_index(call: Call, indices: Sequence[Node], sizes: Sequence[Dim]) -> Node:
    """The index over axes of these sizes merged into one."""
    index = wrapped(call, indices[0], sizes[0])
    for place, size in zip(indices[1:], sizes[1:], strict=True):
        place = wrapped(call, place, size)
        index, place = (call.cast(n, "i64") for n in (index, place))
        index = call.op("add", call.op("mul", index, call.scalar(size, "i64")), place)
    return index


def to_front(rank: int, used: Sequence[int]) -> tuple[int, ...]:
    """The order in which the axes `used` come first."""
    return (*used, *(a for a in range(rank) if a not in used))


@aten("index.Tensor", "_unsafe_index.Tensor")
def _index(call: Call) -> Node:
    """x[i], x[:, i], x[i, :, j]: the axes with an index come to the front and are merged.

    What they give goes where they were if they are neighbours, to the front if not.
    """
    x, given = call["self"], _places(call, call["indices"])
    indices = {axis: index for axis, index in enumerate(given) if index is not None}
    used = list(indices)
    if len(used) == 1:
        return take(call, x, wrapped(call, indices[used[0]], x.shape[used[0]]), used[0])
    front = transposed(call, x, to_front(x.type.rank, used))
    sizes = front.shape[: len(used)]
    index = merged_index(call, list(indices.values()), sizes)
    merged = call.reshape(front, (product(sizes), *front.shape[len(used) :]))
    rows = call.op("embedding", merged, index)
    if used != list(range(used[0], used[0] + len(used))):
        return rows
    shift, rest = index.type.rank, len(rows.shape) - index.type.rank
    places = (*range(shift, shift + used[0]), *range(shift), *range(shift + used[0], shift + rest))
    return transposed(call, rows, places)


def _places(call: Call, indices: Sequence[Node | None]) -> list[Node | None]:
    """A constant mask becomes the indices of what it keeps, one for each of its axes.

    PyTorch does not look into constants: to it, how many there are is a size of its own, which is known from here on.
    """
    places: list[Node | None] = []
    for index in indices:
        if index is None or index.dtype not in ("bool", "u8"):
            places.append(index)
            continue
        call.require(index.op == "constant", "indexing by a computed mask", "use torch.where")
        kept = np.nonzero(index.attributes["value"].array)
        call.symbols.settle(call.meta.shape, len(kept[0]))
        places += [constant(axis.astype(np.int64), source=call.source) for axis in kept]
    return places


@aten("nonzero.default", "argwhere.default")
def _nonzero(call: Call) -> Node:
    """Of a constant: where it is not zero."""
    x = call["self"]
    call.require(
        x.op == "constant", "a size that depends on values", "use shapes that follow from the inputs'"
    )
    kept = np.argwhere(x.attributes["value"].array)
    call.symbols.settle(call.meta.shape, len(kept))
    return constant(kept.astype(np.int64), source=call.source)


@aten("embedding.default")
def _embedding(call: Call) -> Node:
    return call.op("embedding", call["weight"], call["indices"])


# --- written at an index


@aten("index_put.default", "_unsafe_index_put.default")
def _index_put(call: Call) -> Node:
    """x[i, :, j] = values: the axes with an index come to the front, are merged, scattered into and put back."""
    x, indices = call["self"], list(call["indices"])
    used = [a for a, i in enumerate(indices) if i is not None]
    if len(used) == 1 and indices[used[0]].dtype == "bool":
        return _masked_put(call, x, indices[used[0]], used[0])
    call.require(all(indices[a].dtype != "bool" for a in used), "writing by several bool masks")
    perm = to_front(x.type.rank, used)
    front = transposed(call, x, perm)
    sizes, rest = front.shape[: len(used)], front.shape[len(used) :]
    index = merged_index(call, [indices[a] for a in used], sizes)
    count = product(index.shape)
    apart = used != list(range(used[0], used[0] + len(used)))
    values = _as_rows(call, call.cast(call["values"], x.dtype), index, rest, 0 if apart else used[0])
    flat = call.reshape(front, (product(sizes), *rest))
    reduce = "add" if call.get("accumulate", False) else "none"
    index, values = call.reshape(index, (count,)), call.reshape(values, (count, *rest))
    made = call.op("scatter", flat, index, values, axis=0, reduce=reduce)
    return transposed(call, call.reshape(made, front.shape), inverse(perm))


def _as_rows(call: Call, values: Node, index: Node, rest: Sequence[Dim], place: int) -> Node:
    """Values of the shape that x[indices] has, the indices' axes at `place`, with these axes first."""
    rank = index.type.rank
    values = expanded(call, values, (*rest[:place], *index.shape, *rest[place:]))
    taken = range(place, place + rank)
    return transposed(call, values, (*taken, *(a for a in range(values.type.rank) if a not in taken)))


def _masked_put(call: Call, x: Node, mask: Node, axis: int) -> Node:
    """x[mask] = one number"""
    values = call["values"]
    call.require(
        all(d == 1 for d in values.shape), "writing several values by a bool mask", "use torch.where"
    )
    call.require(not call.get("accumulate", False), "adding by a bool mask", "use torch.where")
    rest = x.type.rank - axis - mask.type.rank
    mask = call.reshape(mask, (*(1,) * axis, *mask.shape, *(1,) * rest))
    return call.op("where", mask, call.cast(call.reshape(values, ()), x.dtype), x)
