"""ONNX's ops that make or move elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import Dim, ceil_div, dim, from_one, product
from llmc.compiler.frontends.composed_pad import mirrored, padded
from llmc.compiler.frontends.onnx_call import Call, Value, known, onnx_op
from llmc.compiler.frontends.onnx_sizes import as_value, floor_div
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops import constant
from llmc.compiler.ops.rules import broadcast

# --- sizes


@onnx_op("Shape")
def _shape(call: Call) -> Value:
    shape = call.node(0).shape
    return as_value(
        np.array(shape, object)[call.attribute("start", 0) : call.attributes.get("end")], "i64", call.source
    )


@onnx_op("Size")
def _size(call: Call) -> Value:
    return as_value(product(call.node(0).shape), "i64", call.source)


# --- new tensors


@onnx_op("Constant")
def _constant(call: Call) -> Node:
    if "value" in call.attributes:
        return constant(call.attributes["value"], source=call.source)
    for name, dtype in _CONSTANTS.items():
        if name in call.attributes:
            return constant(np.asarray(call.attributes[name], dtype), source=call.source)
    raise UnsupportedError("a constant of texts, or a sparse one")


_CONSTANTS = {
    **{"value_int": np.int64, "value_ints": np.int64},
    **{"value_float": np.float32, "value_floats": np.float32},
}


@onnx_op("ConstantOfShape")
def _constant_of_shape(call: Call) -> Node:
    shape = call.dims(0, "a shape")
    value = call.attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else value
    if all(isinstance(d, int) for d in shape) and np.prod(shape) <= 64:
        return constant(np.full(shape, fill.item(), fill.dtype), source=call.source)
    return call.expand(constant(fill.reshape(()), source=call.source), shape)


@onnx_op("Range")
def _range(call: Call) -> Node:
    start, limit, step = (call.numbers(i, "the bounds of a Range").reshape(()).item() for i in range(3))
    if any(isinstance(n, float) for n in (start, limit, step)):
        return constant(np.arange(start, limit, step, dtype=np.float32), source=call.source)
    call.require(isinstance(step, int) and step > 0, "a Range that counts down or by a size")
    length = ceil_div(dim(limit - start), step) if step > 1 else dim(limit - start)
    dtype = call.value(0).dtype
    return call.op("iota", length=length, start=dim(start), step=step, dtype=dtype)


@onnx_op("Trilu")
def _triangle(call: Call) -> Node:
    """Keeps j - i >= k (upper) or <= k, zero elsewhere."""
    x = call.node(0)
    (offset,) = call.dims(1, "a diagonal") if call.has(1) else (0,)
    rows, columns = x.shape[-2:]
    i = call.reshape(call.op("iota", length=rows), (rows, 1))
    away = call.op("sub", call.op("iota", length=columns), i)
    diagonal = call.op("dim", value=offset)
    keep = call.op("ge" if call.attribute("upper", 1) else "le", away, diagonal)
    return call.op("where", keep, x, call.number(0, x.dtype))


# --- same elements, another shape


@onnx_op("Reshape")
def _reshape(call: Call) -> Node:
    """0 keeps a dim, -1 is what is left."""
    x, wanted = call.node(0), list(call.dims(1, "a shape"))
    if not call.attribute("allowzero", 0):
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    if -1 in wanted:
        place = wanted.index(-1)
        rest = product(d for i, d in enumerate(wanted) if i != place)
        wanted[place] = floor_div(product(x.shape), rest)
    return call.reshape(x, wanted)


@onnx_op("Flatten")
def _flatten(call: Call) -> Node:
    x = call.node(0)
    axis = call.attribute("axis", 1)
    axis = axis + x.type.rank if axis < 0 else axis
    return call.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@onnx_op("Squeeze")
def _squeeze(call: Call) -> Node:
    x = call.node(0)
    axes = call.ints(1, "axes")
    gone = [i for i, d in enumerate(x.shape) if d == 1] if axes is None else [a % x.type.rank for a in axes]
    call.require(all(x.shape[a] == 1 for a in gone), "Squeeze of an axis that is not 1")
    return call.reshape(x, [d for i, d in enumerate(x.shape) if i not in gone])


@onnx_op("Unsqueeze")
def _unsqueeze(call: Call) -> Node:
    x = call.node(0)
    axes = call.ints(1, "axes") or ()
    rank = x.type.rank + len(axes)
    new, kept = {a % rank for a in axes}, iter(x.shape)
    return call.reshape(x, [1 if i in new else next(kept) for i in range(rank)])


@onnx_op("Transpose")
def _transpose(call: Call) -> Node:
    x = call.node(0)
    return call.transpose(x, call.attribute("perm", range(x.type.rank)[::-1]))


@onnx_op("Expand")
def _expand(call: Call) -> Node:
    """Broadcasting goes both ways: a wanted 1 keeps x's dim."""
    x = call.node(0)
    return call.expand(x, broadcast(x.shape, call.dims(1, "a shape")))


@onnx_op("Tile")
def _tile(call: Call) -> Node:
    """Each axis n becomes [1, n], is expanded to [times, n] and merged again."""
    x, times = call.node(0), call.dims(1, "repeats")
    split = tuple(d for n in x.shape for d in (1, n))
    tiled = tuple(d for t, n in zip(times, x.shape, strict=True) for d in (t, n))
    merged = [t * n for t, n in zip(times, x.shape, strict=True)]
    return call.reshape(call.expand(call.reshape(x, split), tiled), merged)


# --- parts


@onnx_op("Slice")
def _slice(call: Call) -> Node:
    x = call.node(0)
    starts, ends = call.dims(1, "the start of a slice"), call.dims(2, "the end of a slice")
    axes = call.dims(3, "axes") if call.has(3) else tuple(range(len(starts)))
    steps = call.dims(4, "steps") if call.has(4) else (1,) * len(starts)
    if (array := known(x)) is not None and all(isinstance(n, int) for n in (*starts, *ends)):
        return _slice_constant(call, array, zip(starts, ends, axes, steps, strict=True))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= x.type.rank
        size = x.shape[axis]
        call.require(
            isinstance(step, int) and step > 0, "a slice that runs backwards", "flip constants at export"
        )
        first = _place(start, size)
        x = call.sliced(x, axis, first, _after(first, _place(end, size)), step)
    return x


def _slice_constant(call: Call, array: Any, cuts: Any) -> Node:
    index = [slice(None)] * array.ndim
    for start, end, axis, step in cuts:
        index[axis] = slice(start, None if step < 0 and end < -array.shape[axis] else end, step)
    return constant(np.ascontiguousarray(array[tuple(index)]), source=call.source)


def _place(index: Dim, size: Dim) -> Dim:
    """A slice's bound, counted from the start and kept within the axis.

    A symbolic bound on an axis of fixed size is taken to be inside: the axis then limits the dim (`ranges.py`).
    """
    if isinstance(index, int):
        if isinstance(size, int):
            return min(max(index + size if index < 0 else index, 0), size)
        if index < 0:
            return 0 if index < -(1 << 31) else dim(index + size)
        if index <= 1:
            return index  # dims are at least 1
        return size if index >= (1 << 31) - 1 else from_one(sympy.Min(index, size))
    return index if isinstance(size, int) or dim(index - size) != 0 else size


def _after(start: Dim, stop: Dim) -> Dim:
    """The end of a slice, not before its start."""
    return max(start, stop) if isinstance(start, int) and isinstance(stop, int) else stop


@onnx_op("Split")
def _split(call: Call) -> tuple[Node, ...]:
    x = call.node(0)
    axis = call.axis(x.type.rank, 0)
    sizes: Any = call.ints(1, "split")
    if sizes is None:
        whole = x.shape[axis]
        call.require(isinstance(whole, int), "a Split of an axis of dynamic size")
        part = -(-whole // call.outputs)
        sizes = [min(part, whole - i * part) for i in range(call.outputs)]
    ends = np.cumsum(sizes).tolist()
    parts = zip(ends, sizes, strict=True)
    return tuple(call.sliced(x, axis, end - size, end) for end, size in parts)


@onnx_op("Concat")
def _concat(call: Call) -> Node:
    parts = [p for p in call.nodes() if 0 not in p.shape] or call.nodes()[:1]
    return parts[0] if len(parts) == 1 else call.op("concat", *parts, axis=call.axis(parts[0].type.rank))


@onnx_op("Pad")
def _pad(call: Call) -> Node:
    """All numbers before the axes, then all after."""
    x, pads = call.node(0), call.dims(1, "padding")
    mode = call.attribute("mode", "constant")
    rank = x.type.rank
    axes = [a % rank for a in call.dims(3, "axes")] if call.has(3) else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    call.require(all(isinstance(p, int) for p in (*before, *after)), "padding by sizes", "slice instead")
    if mode == "constant":
        fill = known(call.value(2)) if call.has(2) else np.zeros(1, DTYPES[x.dtype])
        call.require(fill is not None and fill.size == 1, "padding with a computed value")
        assert fill is not None
        return padded(call, x, before, after, fill.reshape(()).item())
    return _mirrored(call, x, before, after, mode)


_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _mirrored(call: Call, x: Node, before: Sequence[int], after: Sequence[int], mode: str) -> Node:
    call.require(mode in _MODES, f"padding mode {mode!r}", "pad with a constant")
    call.require(min(*before, *after) >= 0, f"negative padding in mode {mode!r}", "slice instead")
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        x = mirrored(call, x, axis, low, high, _MODES[mode])
    return x
