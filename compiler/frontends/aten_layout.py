"""ATen's ops that repeat, turn and lay out elements anew."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.dims import dim, product
from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.aten_index import take
from llmc.compiler.frontends.parts import expanded, sliced, tiled, transposed
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import broadcast


@aten("repeat_interleave.self_int")
def _repeat_interleave(call: Call) -> Node:
    """An axis n becomes [n, 1], is expanded to [n, times] and merged again."""
    x, times = call["self"], dim(call["repeats"])
    if call.get("dim") is None:
        x = call.reshape(x, (product(x.shape),))
    axis = call.axis(call.get("dim", 0), x.type.rank)
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    apart = call.reshape(x, (*before, size, 1, *after))
    return call.reshape(expanded(call, apart, (*before, size, times, *after)), call.shape)


@aten("tile.default")
def _tile(call: Call) -> Node:
    x, times = call["self"], [dim(t) for t in call["dims"]]
    return tiled(call, x, [1] * (x.type.rank - len(times)) + times)


@aten("flip.default", "fliplr.default", "flipud.default")
def _flip(call: Call) -> Node:
    """Indices from the last to the first."""
    x: Node = call["self"]
    axes = call.get("dims", [1 if "fliplr" in str(call.target) else 0])
    for axis in (call.axis(a) for a in axes):
        size = x.shape[axis]
        index = call.op("iota", length=size, start=dim(size - 1), step=-1)
        x = take(call, x, index, axis)
    return x


@aten("movedim.int", "movedim.intlist", "moveaxis.int", "moveaxis.intlist")
def _movedim(call: Call) -> Node:
    sources, targets = (v if isinstance(v, list) else [v] for v in (call["source"], call["destination"]))
    sources, targets = ([call.axis(a) for a in axes] for axes in (sources, targets))
    others = iter(a for a in range(len(call.shape)) if a not in sources)
    places = dict(zip(targets, sources, strict=True))
    perm = tuple(places[a] if a in places else next(others) for a in range(len(call.shape)))
    return transposed(call, call["self"], perm)


@aten("adjoint.default", "matrix_H.default", "mH.default")
def _adjoint(call: Call) -> Node:
    rank = len(call.shape)
    return transposed(call, call["self"], (*range(rank - 2), rank - 1, rank - 2))


@aten("meshgrid.default", "meshgrid.indexing")
def _meshgrid(call: Call) -> tuple[Node, ...]:
    """Each vector along an axis of its own; "xy" has the first two axes in the other order."""
    vectors = call["tensors"]
    axes = list(range(len(vectors)))
    if call.get("indexing", "ij") == "xy" and len(axes) > 1:
        axes[:2] = [1, 0]
    made = []
    for vector, axis in zip(vectors, axes, strict=True):
        shape = [1] * len(axes)
        shape[axis] = product(vector.shape)
        made.append(expanded(call, call.reshape(vector, shape), call.shape))
    return tuple(made)


@aten("broadcast_tensors.default")
def _broadcast_tensors(call: Call) -> tuple[Node, ...]:
    shape = broadcast(*(x.shape for x in call["tensors"]))
    return tuple(expanded(call, x, shape) for x in call["tensors"])


@aten("diagonal.default")
def _diagonal(call: Call) -> Node:
    """The two axes go to the end and are merged; their diagonal is every (columns + 1)-th element."""
    x, offset = call["self"], call.get("offset", 0)
    rank = x.type.rank
    first, second = (call.axis(call.get(n, d), rank) for n, d in (("dim1", 0), ("dim2", 1)))
    call.require(isinstance(offset, int), "a diagonal at a computed place")
    x = transposed(call, x, (*(a for a in range(rank) if a not in (first, second)), first, second))
    start, columns = max(offset, 0) + max(-offset, 0) * x.shape[-1], x.shape[-1]
    flat = call.reshape(x, (*x.shape[:-2], product(x.shape[-2:])))
    return sliced(call, flat, rank - 2, dim(start), call.shape[-1], dim(columns + 1))


@aten("eye.default", "eye.m")
def _eye(call: Call) -> Node:
    rows, columns = (call.op("iota", length=n) for n in call.shape)
    return call.cast(call.op("eq", call.reshape(rows, (call.shape[0], 1)), columns), call.dtype)


@aten("linspace.default")
def _linspace(call: Call) -> Node:
    start, end, steps = call["start"], call["end"], call.shape[0]
    numbers = all(isinstance(n, (int, float)) for n in (start, end, steps))
    call.require(numbers, "linspace between computed numbers", "compute it from arange")
    from llmc.compiler.ops import constant

    values = np.linspace(start, end, steps).astype(np.float32)
    return call.cast(constant(values, source=call.source), call.dtype)


@aten("one_hot.default")
def _one_hot(call: Call) -> Node:
    x, classes = call["self"], call.shape[-1]
    call.require(call.get("num_classes", -1) != -1, "one_hot without num_classes", "give num_classes")
    each = call.op("iota", length=classes, dtype=x.dtype)
    return call.cast(call.op("eq", call.reshape(x, (*x.shape, 1)), each), call.dtype)


@aten(
    "atleast_1d.default", "atleast_2d.default", "atleast_3d.default", "view.dtype", "_reshape_alias.default"
)
def _reshaped(call: Call) -> Any:
    x = call["self"]
    call.require(x.dtype == call.dtype, "the bits of a tensor as another dtype")
    return call.reshape(x, call.shape)
