"""Ops that move or make elements: copies along strides, selection by index, constants.

`transpose`, `expand` and `slice` are one kernel: a dense output, an input walked with any strides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import same_dim
from llmc.targets.tir.emit import LANES, STORAGE, Emitter, Expr, i64, splat, vector
from llmc.targets.tir.grid import CHUNK, ceil_div, chunk_count, nbytes, offset, vectors, walk
from llmc.targets.tir.scalar_ops import constant
from llmc.targets.tir.strides import STRIDES, Axis, clamped, merge_strides, pad_axes


def move_call(
    node: Node,
    key: tuple[Any, ...],
    emit: Callable[[Emitter], None],
    scalars: Sequence[Dim],
    items: Dim,
    cost: Dim,
) -> Call:
    """The call of a kernel without arithmetic, of the family `move`."""

    def function(symbol: str, cpu: Any) -> Any:
        k = Emitter(symbol)
        emit(k)
        return k.function()

    pointers = (*(i.dtype for i in node.inputs), node.dtype)
    kernel = Kernel("move", (*key, pointers), pointers, len(scalars), function)
    return Call(
        kernel,
        (*node.inputs, node),
        tuple(scalars),
        dim(items),
        cost,
        0,
        nbytes(*node.inputs, node),
        node.source,
    )


def _row_cost(length: Dim) -> Dim:
    """Vector operations to move one chunk of a row of `length` elements."""
    return 2 + 2 * ceil_div(min(length, CHUNK) if isinstance(length, int) else CHUNK, LANES)


def copy_run(k: Emitter, source: Any, start: Expr, target: Any, base: Expr, count: Expr) -> None:
    """`count` consecutive elements."""

    def body(position: Expr, mask: Expr | None) -> None:
        k.store(target, base + position, k.load(source, start + position, LANES, mask), mask)

    vectors(k, count, body)


def fill_run(k: Emitter, value: Expr, target: Any, base: Expr, count: Expr) -> None:
    """`count` elements set to the vector `value`."""
    vectors(k, count, lambda position, mask: k.store(target, base + position, value, mask))


# --- copies along strides


def strided_copy(node: Node, axes: Sequence[Axis], start: Dim = 0) -> Call:
    """Output element (i, j, ...) is input element start + i * stride_i + j * stride_j + ..."""
    axes = merge_strides(axes)
    inner, step = axes[-1]
    mode = "run" if same_dim(step, 1) else "fill" if same_dim(step, 0) else "pick"
    scalars = (*(e for e, _ in axes), *(s for _, s in axes), start)
    items = product(e for e, _ in axes[:-1]) * ceil_div(inner, CHUNK)
    cost = _row_cost(inner) * (LANES if mode == "pick" else 1)
    return move_call(
        node, ("copy", len(axes), mode), lambda k: _strided(k, node, len(axes), mode), scalars, items, cost
    )


def _strided(k: Emitter, node: Node, rank: int, mode: str) -> None:
    source, target = k.pointer("x", node.dtype), k.pointer("y", node.dtype)
    extents = [k.scalar(f"extent{i}") for i in range(rank)]
    steps = [k.scalar(f"stride{i}") for i in range(rank)]
    first = k.scalar("start")
    row = k.let(extents[-1], "row")
    out: list[Expr] = [i64(1)]
    for extent in reversed(extents[1:]):
        out.insert(0, k.let(out[0] * extent))
    with walk(k, [*extents[:-1], chunk_count(k, row)]) as index:
        begin = k.let(index[-1] * i64(CHUNK))
        index = [*index[:-1], begin]
        count = k.let(tirx.min(row - begin, i64(CHUNK)))
        at, base = k.let(first + offset(k, index, steps)), offset(k, index, out)
        if mode == "run":
            copy_run(k, source, at, target, base, count)
        elif mode == "fill":
            fill_run(k, splat(k.load(source, at)), target, base, count)
        else:
            with k.loop(0, count) as i:
                k.store(target, base + i, k.load(source, k.let(at + i * steps[-1])))


def strided(node: Node) -> Call:
    """The call for an op of `STRIDES`."""
    return strided_copy(node, *STRIDES[node.op](node))


# --- joining and padding


def concat(node: Node) -> Call:
    """One item is one row of the output: the inputs' rows one after the other."""
    axis = node.attributes["axis"]
    outer, inner = product(node.shape[:axis]), product(node.shape[axis + 1 :])
    lengths = [dim(i.shape[axis] * inner) for i in node.inputs]

    def emit(k: Emitter) -> None:
        sources = [k.pointer(f"x{i}", node.dtype) for i in range(len(lengths))]
        target = k.pointer("y", node.dtype)
        rows = [k.scalar(f"length{i}") for i in range(len(lengths))]
        total = i64(0)
        for row in rows:
            total = k.let(total + row)
        with k.loop(k.begin, k.end) as item:
            base = k.let(item * total)
            for source, row in zip(sources, rows, strict=True):
                copy_run(k, source, k.let(item * row), target, base, row)
                base = k.let(base + row)

    return move_call(node, ("concat", len(lengths)), emit, lengths, outer, _long_cost(sum(lengths)))


def _long_cost(length: Dim) -> Dim:
    return dim(2 + 2 * ceil_div(dim(length), LANES))


def pad(node: Node) -> Call:
    """One item is one row of the output: filled, then the input's row, if there is one, is copied into it."""
    axes, value = pad_axes(node), node.attributes["value"]

    def emit(k: Emitter) -> None:
        source, target = k.pointer("x", node.dtype), k.pointer("y", node.dtype)
        has = [k.scalar(f"has{i}") for i in range(len(axes))]
        gets = [k.scalar(f"gets{i}") for i in range(len(axes))]
        left = [k.scalar(f"left{i}") for i in range(len(axes))]
        fill = constant(node.dtype, value, LANES)
        with walk(k, [*gets[:-1], i64(1)]) as index:
            _pad_row(k, source, target, has, gets, left, index[:-1], fill)

    scalars = [axis[part] for part in range(3) for axis in axes]
    items = product(a[1] for a in axes[:-1])
    return move_call(node, ("pad", len(axes), repr(value)), emit, scalars, items, 2 * _long_cost(axes[-1][1]))


def _pad_row(
    k: Emitter,
    source: Any,
    target: Any,
    has: list[Expr],
    gets: list[Expr],
    left: list[Expr],
    index: list[Expr],
    fill: Expr,
) -> None:
    row, read, inside = i64(0), i64(0), tirx.const(True, "bool")
    for i, size, total, skip in zip(index, has, gets, left, strict=False):
        at = k.let(i - skip)
        inside = k.let(tirx.And(inside, tirx.And(at >= i64(0), at < size)))
        row, read = k.let(row * total + i), k.let(read * size + at)
    base = k.let(row * gets[-1])
    fill_run(k, fill, target, base, gets[-1])
    with k.when(inside):
        copy_run(k, source, k.let(read * has[-1]), target, k.let(base + left[-1]), has[-1])


# --- selection by index


def embedding(node: Node) -> Call:
    """One item is one index: a row of the table."""
    table, index = node.inputs
    width = product(table.shape[1:])

    def emit(k: Emitter) -> None:
        rows, indices = k.pointer("table", table.dtype), k.pointer("index", index.dtype)
        target = k.pointer("y", node.dtype)
        count, length = k.scalar("count"), k.scalar("width")
        with k.loop(k.begin, k.end) as item:
            row = clamped(k, k.load(indices, item), count)
            copy_run(k, rows, k.let(row * length), target, k.let(item * length), length)

    scalars = (table.shape[0], width)
    return move_call(node, ("embedding",), emit, scalars, product(index.shape), _long_cost(width))


def gather(node: Node) -> Call:
    """x[outer, n, inner] at index[outer, m, inner]; one item is one (outer, m)."""
    x, index = node.inputs
    axis = node.attributes["axis"]
    inner, outer = product(x.shape[axis + 1 :]), product(x.shape[:axis])
    last = same_dim(inner, 1)
    sizes = (x.shape[axis], index.shape[axis], inner)

    def emit(k: Emitter) -> None:
        source, indices = k.pointer("x", x.dtype), k.pointer("index", index.dtype)
        target = k.pointer("y", node.dtype)
        n, m, width = k.scalar("n"), k.scalar("m"), k.scalar("inner")
        length = m if last else width
        with walk(k, [k.end, i64(1)] if last else [k.end, m]) as (row, place):
            base = k.let((row * m + place) * length) if not last else k.let(row * m)
            with k.loop(0, length) as i:
                at = clamped(k, k.load(indices, k.let(base + i)), n)
                read = k.let(row * n + at) if last else k.let((row * n + at) * width + i)
                k.store(target, base + i, k.load(source, read))

    items = outer if last else dim(outer * index.shape[axis])
    length = index.shape[axis] if last else inner
    return move_call(node, ("gather", last), emit, sizes, items, dim(4 + 4 * length))


# --- made from nothing


def iota(node: Node) -> Call:
    """start + i * step, computed in int64."""

    def emit(k: Emitter) -> None:
        target = k.pointer("y", node.dtype)
        length, first, step = k.scalar("length"), k.scalar("start"), k.scalar("step")
        lanes = tirx.Ramp(i64(0), i64(1), LANES)
        with k.loop(k.begin, k.end) as item:
            base = k.let(item * i64(CHUNK))

            def body(position: Expr, mask: Expr | None) -> None:
                count = k.let(splat(base + position) + lanes)
                value = k.let(splat(first) + count * splat(step))
                k.store(target, base + position, tirx.Cast(vector(STORAGE[node.dtype], LANES), value), mask)

            vectors(k, k.let(tirx.min(length - base, i64(CHUNK))), body)

    length = node.shape[0]
    scalars = (length, dim(node.attributes["start"]), node.attributes["step"])
    return move_call(node, ("iota",), emit, scalars, ceil_div(length, CHUNK), 4 * _row_cost(length))


def full(node: Node) -> Call:
    """Every element the same."""
    value = node.attributes["value"]

    def emit(k: Emitter) -> None:
        target, length = k.pointer("y", node.dtype), k.scalar("length")
        with k.loop(k.begin, k.end) as item:
            base = k.let(item * i64(CHUNK))
            fill = constant(node.dtype, value, LANES)
            fill_run(k, fill, target, base, k.let(tirx.min(length - base, i64(CHUNK))))

    length = product(node.shape)
    return move_call(node, ("full", repr(value)), emit, (length,), ceil_div(length, CHUNK), _row_cost(length))


def dim_(node: Node) -> Call:
    """The size of a named dim."""

    def emit(k: Emitter) -> None:
        target, value = k.pointer("y", node.dtype), k.scalar("value")
        with k.loop(k.begin, k.end) as item:
            k.store(target, item, value)

    return move_call(node, ("dim",), emit, (dim(node.attributes["value"]),), 1, 1)


LOWERINGS: dict[str, Callable[[Node], Call]] = {
    **dict.fromkeys(STRIDES, strided),
    "concat": concat,
    "pad": pad,
    "embedding": embedding,
    "gather": gather,
    "iota": iota,
    "full": full,
    "dim": dim_,
}
