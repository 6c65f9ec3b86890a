"""Leaves, and ops that make, move or select elements."""

from __future__ import annotations

import numpy as np

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.ranges import is_nonnegative
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.rules import same_dim
from llmc.compiler.to_onnx.emitter import Emitter
from llmc.compiler.to_onnx.table import exports

_SMALL = 64  # elements of what is written out


@exports("constant")
def _constant(e: Emitter, node: Node) -> str:
    return e.tensors.add(node.attributes["value"], name=node.attributes["value"].name or node.source.path)


@exports("input", "state")
def _input(e: Emitter, node: Node) -> str:
    raise UnsupportedError("it is no input of this graph")  # those of the signature have their names already


@exports("full")
def _full(e: Emitter, node: Node) -> str:
    value = e.number(node.attributes["value"], node.dtype)
    return e.expand(value, node.shape) if node.shape else value


@exports("dim")
def _dim(e: Emitter, node: Node) -> str:
    return e.sizes.scalar(node.attributes["value"])


@exports("iota")
def _iota(e: Emitter, node: Node) -> str:
    """Steps of 0 are no Range."""
    length, start, step = (node.attributes[name] for name in ("length", "start", "step"))
    if isinstance(length, int) and isinstance(start, int) and length <= _SMALL:
        return e.array((start + np.arange(length) * step).astype(DTYPES[node.dtype]))
    if not step:
        first = e.cast(e.sizes.scalar(start), "i64", node.dtype)
        return e.expand(first, (length,))
    ends = (start, dim(start + length * step), step)
    return e.cast(e.op("Range", *(e.sizes.scalar(d) for d in ends)), "i64", node.dtype)


@exports("reshape")
def _reshape(e: Emitter, node: Node) -> str:
    return e.reshape(e.value(node.inputs[0]), node.inputs[0].shape, node.shape)


@exports("ensure_shape")
def _ensure_shape(e: Emitter, node: Node) -> str:
    """The runtime of the file compares sizes itself, where they meet."""
    return e.value(node.inputs[0])


@exports("transpose")
def _transpose(e: Emitter, node: Node) -> str:
    return e.transpose(e.value(node.inputs[0]), node.attributes["perm"])


@exports("expand")
def _expand(e: Emitter, node: Node) -> str:
    x = e.value(node.inputs[0])
    return x if node.inputs[0].shape == node.shape else e.expand(x, node.shape)


@exports("slice")
def _slice(e: Emitter, node: Node) -> str:
    axis, start, stop, step = (node.attributes[name] for name in ("axis", "start", "stop", "step"))
    x = node.inputs[0]
    if (start, stop, step) == (0, x.shape[axis], 1):
        return e.value(x)
    return e.slice(e.value(x), axis, dim(start), dim(stop), step)


@exports("concat")
def _concat(e: Emitter, node: Node) -> str:
    return e.op("Concat", *e.inputs(node), axis=node.attributes["axis"])


@exports("append")
def _append(e: Emitter, node: Node) -> str:
    return e.op("Concat", *e.inputs(node), axis=0)


@exports("pad")
def _pad(e: Emitter, node: Node) -> str:
    pads = e.ints((*node.attributes["before"], *node.attributes["after"]))
    return e.op("Pad", e.value(node.inputs[0]), pads, e.number(node.attributes["value"], node.dtype))


# --- selection by index: the IR clamps what ONNX refuses


def clamped(e: Emitter, index: Node, size: Dim) -> str:
    """An index within 0..size-1; most are known to be."""
    value, (low, high) = e.value(index), e.ranges[index]
    if not is_nonnegative(low):
        value = e.op("Max", value, e.number(0, index.dtype))
    if high is None or not is_nonnegative(dim(size - 1 - high)):
        last = e.cast(e.sizes.scalar(dim(size - 1)), "i64", index.dtype)
        value = e.op("Min", value, last)
    return value


@exports("gather")
def _gather(e: Emitter, node: Node) -> str:
    x, index = node.inputs
    axis = node.attributes["axis"]
    return e.op("GatherElements", e.value(x), clamped(e, index, x.shape[axis]), axis=axis)


@exports("embedding")
def _embedding(e: Emitter, node: Node) -> str:
    table, index = node.inputs
    if _takes_all(table, index):
        return e.value(table)
    return e.op("Gather", e.value(table), clamped(e, index, table.shape[0]), axis=0)


def _takes_all(table: Node, index: Node) -> bool:
    """Whether an index is 0, 1, 2 and so on to the last row."""
    numbers = {name: index.attributes.get(name) for name in ("start", "step")}
    counts = index.op == "iota" and numbers == {"start": 0, "step": 1}
    return counts and same_dim(index.shape[0], table.shape[0])


@exports("argsort")
def _argsort(e: Emitter, node: Node) -> str:
    """TopK takes the lowest index of equals, too."""
    (x,) = node.inputs
    wide = e.cast(e.value(x), x.dtype, "i32" if x.dtype in ("i8", "u8") else x.dtype)
    count = e.sizes.vector((dim(node.attributes["count"]),))
    largest = int(node.attributes["descending"])
    return e.several("TopK", (wide, count), 2, axis=-1, largest=largest, sorted=1)[1]


@exports("scatter")
def _scatter(e: Emitter, node: Node) -> str:
    x, index, updates = node.inputs
    axis, reduce = node.attributes["axis"], node.attributes["reduce"]
    places = clamped(e, index, x.shape[axis])
    if index.type.rank != x.type.rank:
        line = tuple(d if i == axis else 1 for i, d in enumerate(updates.shape))
        places = e.expand(e.reshape(places, index.shape, line), updates.shape)
    return e.op("ScatterElements", e.value(x), places, e.value(updates), axis=axis, reduction=reduce)


@exports("unpack_rows")
def _unpack_rows(e: Emitter, node: Node) -> str:
    """where(places >= 0, x[places], 0)"""
    x, places = node.inputs
    held = e.op("Max", e.value(places), e.number(0, "i64"))
    rows = e.op("Gather", e.value(x), held, axis=0)
    kept = e.op("GreaterOrEqual", e.value(places), e.number(0, "i64"))
    kept = e.reshape(kept, places.shape, (*places.shape, *(1,) * (x.type.rank - 1)))
    return e.op("Where", kept, rows, e.number(0, node.dtype))


@exports("grouped_matmul")
def _grouped(e: Emitter, node: Node) -> Node:
    """Each group's matrix by the rows of the group, zeros in place of the others, summed over groups.

    Of ends that fall the largest before counts.
    """
    x, w, ends = node.inputs
    rows, groups = x.shape[0], w.shape[0]
    assert isinstance(groups, int)
    row = make("iota", (), length=rows, dtype=ends.dtype)
    stops = _running_max(ends, groups)
    starts = [None, *stops[:-1]]
    parts = []
    for start, stop in zip(starts, stops, strict=True):
        inside = make("lt", (row, stop))
        if start is not None:
            inside = make("and", (inside, make("ge", (row, start))))
        parts.append(make("reshape", (inside,), shape=(1, rows, 1)))
    mine = make("concat", parts, axis=0) if groups > 1 else parts[0]
    zero = constant(np.float32(0))
    wide = make("where", (mine, make("reshape", (x,), shape=(1, *x.shape)), zero))
    return make("sum", (make("matmul", (wide, w), node.source),), axes=(0,), keepdims=False)


def _running_max(ends: Node, count: int) -> list[Node]:
    """The largest of the first n, for each n from 1 on."""
    found: list[Node] = []
    for place in range(count):
        part = make("slice", (ends,), axis=0, start=place, stop=place + 1)
        found.append(make("maximum", (found[-1], part)) if found else part)
    return found
