"""ATen's ops that make, move or select elements."""

from __future__ import annotations

from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.aten_index import take
from llmc.compiler.frontends.parts import from_start, sliced, transposed
from llmc.compiler.graph import Node

# --- same elements, another shape


@aten(
    *("view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int"),
    *(
        "squeeze.default",
        "squeeze.dim",
        "squeeze.dims",
        "unsqueeze.default",
        "view_as.default",
        "reshape_as.default",
    ),
)
def _reshape(call: Call) -> Node:
    """torch.export has worked out the new shape."""
    return call.reshape(call["input"] if "input" in call.arguments else call["self"], call.shape)


def _swapped(rank: int, a: int, b: int) -> tuple[int, ...]:
    perm = list(range(rank))
    perm[a], perm[b] = perm[b], perm[a]
    return tuple(perm)


@aten("transpose.int", "swapaxes.default", "swapdims.default")
def _transpose(call: Call) -> Node:
    a, b = call.get("dim0", call.get("axis0", 0)), call.get("dim1", call.get("axis1", 0))
    return transposed(call, call["self"], _swapped(len(call.shape), call.axis(a), call.axis(b)))


@aten("t.default", "numpy_T.default", "mT.default")
def _t(call: Call) -> Node:
    rank = len(call.shape)
    return transposed(call, call["self"], _swapped(rank, rank - 2, rank - 1) if rank > 1 else (0,) * rank)


@aten("permute.default")
def _permute(call: Call) -> Node:
    return transposed(call, call["self"], tuple(call.axis(a) for a in call["dims"]))


@aten("expand.default", "expand_as.default", "broadcast_to.default")
def _expand(call: Call) -> Node:
    x = call["self"]
    return x if x.shape == call.shape else call.op("expand", x, shape=call.shape)


@aten("repeat.default")
def _repeat(call: Call) -> Node:
    """Each axis n becomes [1, n], is expanded to [times, n] and merged again."""
    x = call["self"]
    times = [dim(t) for t in call["repeats"]]
    shape = (1,) * (len(times) - x.type.rank) + x.shape
    split = tuple(d for n in shape for d in (1, n))
    tiled = tuple(d for t, n in zip(times, shape, strict=True) for d in (t, n))
    return call.reshape(call.op("expand", call.reshape(x, split), shape=tiled), call.shape)


# --- parts


@aten("slice.Tensor")
def _slice(call: Call) -> Node:
    x, axis = call["self"], call.axis(call["dim"])
    start = from_start(call.get("start", 0), x.shape[axis])
    length = call.shape[axis]
    return sliced(call, x, axis, 0 if length == 0 else start, length, call.get("step", 1))


@aten("narrow.default")
def _narrow(call: Call) -> Node:
    x, axis = call["self"], call.axis(call["dim"])
    return sliced(call, x, axis, from_start(call["start"], x.shape[axis]), call.shape[axis])


@aten("select.int")
def _select(call: Call) -> Node:
    x = call["self"]
    axis = call.axis(call["dim"], x.type.rank)
    part = sliced(call, x, axis, from_start(call["index"], x.shape[axis]), 1)
    return call.reshape(part, call.shape)


@aten("split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int", "split.sizes")
def _split(call: Call) -> tuple[Node, ...]:
    """Consecutive parts along an axis; unbind drops the axis of size 1."""
    x = call["self"]
    axis, start, parts = call.axis(call.get("dim", 0), x.type.rank), dim(0), []
    for meta in call.meta:
        shape = call.shape_of(meta)
        length = shape[axis] if len(shape) == x.type.rank else 1
        parts.append(call.reshape(sliced(call, x, axis, start, length), shape))
        start = dim(start + length)
    return tuple(parts)


@aten("cat.default", "stack.default")
def _concat(call: Call) -> Node:
    axis = call.axis(call.get("dim", 0))
    given = [t for t in call["tensors"] if t.shape != (0,) or len(call.shape) == 1]  # torch leaves such out
    parts = [call.cast(t, call.dtype) for t in given]
    if "stack" in str(call.target):
        parts = [call.reshape(t, (*t.shape[:axis], 1, *t.shape[axis:])) for t in parts]
    return parts[0] if len(parts) == 1 else call.op("concat", *parts, axis=axis)


def _turned(call: Call, x: Node, axis: int, shift: Dim) -> Node:
    """A roll along an axis of dynamic size: element i is element i - shift, counted around."""
    size = call.scalar(x.shape[axis], "i64")
    index = call.op("sub", call.op("iota", length=x.shape[axis]), call.scalar(shift, "i64"))
    return take(call, x, call.op("mod", index, size), axis)


@aten("roll.default")
def _roll(call: Call) -> Node:
    """Without axes the elements move as one row."""
    x: Node = call["self"]
    if not call.get("dims"):
        flat = call.reshape(x, (product(x.shape),))
        return call.reshape(_rolled(call, flat, call["shifts"], [0]), x.shape)
    return _rolled(call, x, call["shifts"], [call.axis(axis) for axis in call["dims"]])


def _rolled(call: Call, x: Node, shifts: list[int], axes: list[int]) -> Node:
    for shift, axis in zip(shifts, axes, strict=True):
        size = x.shape[axis]
        if not isinstance(size, int):
            x = _turned(call, x, axis, shift)
            continue
        cut = -shift % size
        x = call.op(
            "concat", sliced(call, x, axis, cut, size - cut), sliced(call, x, axis, 0, cut), axis=axis
        )
    return x


# --- new tensors


@aten("arange.default", "arange.start", "arange.start_step")
def _arange(call: Call) -> Node:
    start, step = call.get("start", 0), call.get("step", 1)
    if isinstance(start, float) or isinstance(step, float):
        count = call.op("iota", length=call.shape[0], dtype=call.dtype)
        return call.op(
            "add", call.op("mul", count, call.scalar(step, call.dtype)), call.scalar(start, call.dtype)
        )
    return call.op("iota", length=call.shape[0], start=dim(start), step=step, dtype=call.dtype)


_FILLS = {"ones": 1, "zeros": 0, "ones_like": 1, "zeros_like": 0, "new_ones": 1, "new_zeros": 0}


@aten(
    *(
        f"{name}.default"
        for name in (*_FILLS, "zero", "empty_like", "new_empty", "new_empty_strided", "empty_strided")
    ),
    "empty.memory_format",
)
def _fill(call: Call) -> Node:
    """What is not set yet is zeros: it is written to before anybody reads it."""
    value = _FILLS.get(str(call.target).split(".")[1], 0)
    return call.op("full", shape=call.shape, value=value, dtype=call.dtype)


@aten("full.default", "full_like.default", "new_full.default", "scalar_tensor.default")
def _full(call: Call) -> Node:
    value = call.get("fill_value", call.get("s"))
    if isinstance(value, (bool, int, float)):
        return call.op("full", shape=call.shape, value=value, dtype=call.dtype)
    node = call.scalar(value, call.dtype)
    return call.op("expand", node, shape=call.shape) if call.shape else node


@aten("tril.default", "triu.default")
def _triangle(call: Call) -> Node:
    """Keeps j - i <= diagonal (tril) or >= diagonal (triu), zero elsewhere."""
    x = call["self"]
    rows, columns = x.shape[-2:]
    i = call.reshape(call.op("iota", length=rows), (rows, 1))
    away = call.op("sub", call.op("iota", length=columns), i)
    keep = call.op(
        "le" if "tril" in str(call.target) else "ge", away, call.scalar(call.get("diagonal", 0), "i64")
    )
    return call.op("where", keep, x, call.scalar(0, x.dtype))
