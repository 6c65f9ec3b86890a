"""ONNX's sequences and optional values, which exist while a file is read only."""

from __future__ import annotations

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.composed import joined
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_values import Items, Sizes, Unsized, Value, known, want_table
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Node


def _items(call: Call) -> tuple[Node | Sizes | Unsized, ...]:
    value = call.value(0)
    call.require(isinstance(value, Items), "a tensor where a sequence is wanted")
    assert isinstance(value, Items)
    return value.items


def _read(item: Node | Sizes | Unsized) -> Node | Sizes:
    if isinstance(item, Unsized):
        raise UnsupportedError("a part whose size is computed from the values of tensors")
    return item


def _place(call: Call, position: int, count: int, room: int) -> int:
    """A position in a sequence, the last one if none is given."""
    if not call.has(position):
        return count
    place = int(call.numbers(position, "a position in a sequence").item())
    call.require(-count <= place < count + room, f"position {place} of {count}")
    return place + count if place < 0 else place


@onnx_op("SequenceConstruct")
def _construct(call: Call) -> Items:
    return Items(tuple(call.nodes()))


@onnx_op("SequenceEmpty")
def _empty(call: Call) -> Items:
    call.without_meaning("dtype")
    return Items(())


@onnx_op("SequenceInsert")
def _insert(call: Call) -> Items:
    items = _items(call)
    place = _place(call, 2, len(items), 1)
    return Items((*items[:place], call.node(1), *items[place:]))


@onnx_op("SequenceErase")
def _erase(call: Call) -> Items:
    items = _items(call)
    place = _place(call, 1, len(items), 0) if call.has(1) else len(items) - 1
    return Items((*items[:place], *items[place + 1 :]))


@onnx_op("SequenceAt")
def _at(call: Call) -> Value:
    items = _items(call)
    return _read(items[_place(call, 1, len(items), 0)])


@onnx_op("SequenceLength")
def _length(call: Call) -> Node:
    return call.number(len(_items(call)), "i64")


@onnx_op("ConcatFromSequence")
def _concat(call: Call) -> Node:
    parts = [call.data(_read(item)) for item in _items(call)]
    new = call.attribute("new_axis", 0)
    rank = parts[0].type.rank + (1 if new else 0)
    axis = call.axis(rank)
    if new:
        parts = [call.reshape(p, (*p.shape[:axis], 1, *p.shape[axis:])) for p in parts]
    return joined(call, parts, axis)


@onnx_op("SplitToSequence")
def _split(call: Call) -> Items:
    """Parts of given sizes; without any of one element each, whose axis is dropped unless it is to be kept."""
    x = call.node(0)
    axis = call.axis(x.type.rank, 0)
    whole, keep = x.shape[axis], bool(call.attribute("keepdims", 1))
    if (count := _unsized(call, whole)) is not None:
        return Items((Unsized(),) * count)
    call.require(isinstance(whole, int), "a sequence of an axis of dynamic size")
    want_table(whole, whole)  # each element becomes a node
    sizes = [1] * int(whole)
    if call.has(1):
        given = known(call.value(1))
        call.require(given is not None, "sizes of parts computed from the values of tensors")
        assert given is not None
        sizes, keep = _sizes(given, int(whole)), True
    ends = np.cumsum(sizes).tolist()
    parts = [call.sliced(x, axis, end - size, end) for end, size in zip(ends, sizes, strict=True)]
    if keep:
        return Items(tuple(parts))
    return Items(tuple(call.reshape(p, (*p.shape[:axis], *p.shape[axis + 1 :])) for p in parts))


def _unsized(call: Call, whole: Dim) -> int | None:
    """How many parts there are, where only this is known: one for each number of a vector; else None."""
    sizes = call.value(1) if call.has(1) else None
    if not isinstance(sizes, Node) or sizes.type.rank != 1 or not isinstance(sizes.shape[0], int):
        return None
    if isinstance(whole, int) and known(sizes) is not None:
        return None
    want_table(sizes.shape[0])
    return int(sizes.shape[0])


def _sizes(given: np.ndarray[tuple[int, ...], np.dtype[np.int64]], whole: int) -> list[int]:
    if given.ndim:
        return [int(n) for n in given]
    step = int(given)
    return [min(step, whole - start) for start in range(0, whole, step)]


@onnx_op("Optional")
def _optional(call: Call) -> Items:
    call.without_meaning("type")
    value = call.value(0) if call.has(0) else Items(())
    if isinstance(value, Items):
        call.require(not value.items, "an optional sequence")
        return value
    return Items((value,))


@onnx_op("OptionalHasElement")
def _has(call: Call) -> Node:
    value = call.value(0) if call.has(0) else Items(())
    return call.number(not isinstance(value, Items) or bool(value.items), "bool")


@onnx_op("OptionalGetElement")
def _get(call: Call) -> Value:
    value = call.value(0)
    if isinstance(value, Items) and not value.items:
        raise UnsupportedError("the element of an optional value that is empty")
    return _read(value.items[0]) if isinstance(value, Items) else value
