"""Ops that move or make elements, on the GPU: one thread an element of the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from llmc.compiler.calls import Call, Layouts
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import flat
from llmc.targets.cuda.stored import level_of
from llmc.targets.tir.emit import STORAGE, Buffer, Expr, div, i64, mod
from llmc.targets.tir.grid import offset
from llmc.targets.tir.later import tirx
from llmc.targets.tir.places import element_place
from llmc.targets.tir.scalar_ops import constant
from llmc.targets.tir.strides import STRIDES, clamped, merge_strides, pad_axes


def strided(node: Node) -> Call:
    """transpose, expand, slice: a dense output, an input walked with any strides."""
    axes, start = STRIDES[node.op](node)
    axes = merge_strides(axes)

    def emit(k: GridEmitter) -> None:
        source, target = k.pointer("x", node.dtype), k.pointer("y", node.dtype)
        extents = [k.scalar(f"extent{i}") for i in range(len(axes))]
        steps = [k.scalar(f"stride{i}") for i in range(len(axes))]
        first = k.scalar("start")
        with k.each(k.total(extents)) as item:
            at = offset(k, k.decode(item, extents), steps)
            k.store(target, item, k.load(source, first + at))

    scalars = (*(e for e, _ in axes), *(s for _, s in axes), start)
    return flat(node, "move", ("copy", len(axes)), emit, scalars, product(node.shape))


def concat(node: Node) -> Call:
    """Which input an element is from follows from its place in the row of all inputs."""
    axis = node.attributes["axis"]
    inner = product(node.shape[axis + 1 :])
    lengths = [dim(i.shape[axis] * inner) for i in node.inputs]

    def emit(k: GridEmitter) -> None:
        sources = [k.pointer(f"x{i}", node.dtype) for i in range(len(lengths))]
        target = k.pointer("y", node.dtype)
        rows, size = [k.scalar(f"length{i}") for i in range(len(lengths))], k.scalar("size")
        whole: Expr = i64(0)
        for row in rows:
            whole = k.let(whole + row)
        with k.each(size) as item:
            outer, place = k.decode(item, [i64(1), whole])
            before: Expr = i64(0)
            for source, row in zip(sources, rows, strict=True):
                here = k.let(place - before)
                with k.when(tirx.And(here >= i64(0), here < row)):
                    k.store(target, item, k.load(source, outer * row + here))
                before = k.let(before + row)

    scalars = (*lengths, product(node.shape))
    return flat(node, "move", ("concat", len(lengths)), emit, scalars, product(node.shape))


def pad(node: Node) -> Call:
    """The input's element, or the filling outside of it."""
    axes, value = pad_axes(node), node.attributes["value"]

    def emit(k: GridEmitter) -> None:
        source, target = k.pointer("x", node.dtype), k.pointer("y", node.dtype)
        has, gets, left = (
            [k.scalar(f"{name}{i}") for i in range(len(axes))] for name in ("has", "gets", "left")
        )
        with k.each(k.total(gets)) as item:
            read, inside = i64(0), tirx.const(True, "bool")
            for i, size, skip in zip(k.decode(item, gets), has, left, strict=True):
                at = k.let(i - skip)
                inside = k.let(tirx.And(inside, tirx.And(at >= i64(0), at < size)))
                read = k.let(read * size + at)
            k.store(target, item, constant(node.dtype, value, 1))
            with k.when(inside):
                k.store(target, item, k.load(source, read))

    scalars = [axis[part] for part in range(3) for axis in axes]
    return flat(node, "move", ("pad", len(axes), repr(value)), emit, scalars, product(node.shape))


def embedding(node: Node, layouts: Layouts = (None, None)) -> Call:
    """Rows of a table, which may lie by panels."""
    table, index = node.inputs
    width, panels = product(table.shape[1:]), layouts[0]

    def emit(k: GridEmitter) -> None:
        rows, indices = k.pointer("table", table.dtype), k.pointer("index", index.dtype)
        target = k.pointer("y", node.dtype)
        count, length, size = k.scalar("count"), k.scalar("width"), k.scalar("size")
        with k.each(size) as item:
            place, column = k.decode(item, [i64(1), length])
            row = clamped(k, k.load(indices, place), count)
            k.store(target, item, k.load(rows, element_place(k, row, column, length, panels)))

    key, scalars = ("embedding", panels), (table.shape[0], width, product(node.shape))
    call = flat(node, "move", key, emit, scalars, product(node.shape))
    return replace(call, laid=partial(embedding, node))


def gather(node: Node) -> Call:
    """x[outer, n, inner] at index[outer, m, inner]"""
    x, index = node.inputs
    axis = node.attributes["axis"]

    def emit(k: GridEmitter) -> None:
        source, indices = k.pointer("x", x.dtype), k.pointer("index", index.dtype)
        target = k.pointer("y", node.dtype)
        n, m, width, size = (k.scalar(name) for name in ("n", "m", "inner", "size"))
        with k.each(size) as item:
            outer, _, inner = k.decode(item, [i64(1), m, width])
            at = clamped(k, k.load(indices, item), n)
            k.store(target, item, k.load(source, (outer * n + at) * width + inner))

    scalars = (x.shape[axis], index.shape[axis], product(x.shape[axis + 1 :]), product(node.shape))
    return flat(node, "move", ("gather",), emit, scalars, product(node.shape))


def iota(node: Node) -> Call:
    """start + i * step, computed in int64."""

    def emit(k: GridEmitter) -> None:
        target = k.pointer("y", node.dtype)
        length, first, step = (k.scalar(name) for name in ("length", "start", "step"))
        with k.each(length) as item:
            value = k.let(first + item * step)
            k.store(target, item, tirx.Cast(STORAGE[node.dtype], value))

    length = node.shape[0]
    scalars = (length, dim(node.attributes["start"]), node.attributes["step"])
    return flat(node, "move", ("iota",), emit, scalars, length)


def full(node: Node) -> Call:
    """Every element the same."""
    value = node.attributes["value"]

    def emit(k: GridEmitter) -> None:
        target, length = k.pointer("y", node.dtype), k.scalar("length")
        with k.each(length) as item:
            k.store(target, item, constant(node.dtype, value, 1))

    length = product(node.shape)
    return flat(node, "move", ("full", repr(value)), emit, (length,), length)


def dim_(node: Node) -> Call:
    """The size of a named dim."""

    def emit(k: GridEmitter) -> None:
        target, value = k.pointer("y", node.dtype), k.scalar("value")
        with k.each(i64(1)) as item:
            k.store(target, item, value)

    return flat(node, "move", ("dim",), emit, (dim(node.attributes["value"]),), 1)


def rows_decoded(node: Node) -> Call:
    """out[row, c], one thread an element, of rows that may be computed: those looked up in a table."""
    columns, bits = int(node.attributes["columns"]), node.attributes.get("bits", 16)
    block = min(node.attributes.get("block", columns), columns)
    dtypes = tuple(i.dtype for i in node.inputs)

    def emit(k: GridEmitter) -> None:
        source, *more = (k.pointer(f"part{i}", dtype) for i, dtype in enumerate(dtypes))
        out, size = k.pointer("out", "f32"), k.scalar("size")
        with k.each(size) as item:
            row, column = k.let(div(item, columns)), k.let(mod(item, columns))
            start = k.let(row * -(-columns * bits // 8))
            if not more:
                k.store(out, item, _half_at(k, source, k.let(start + column * 2)))
                return
            level = _packed_at(k, source, start, column, bits)
            scales, *zeros = more
            own, blocks = k.let(div(column, block)), -(-columns // block)
            for zero in zeros:
                level = k.let(level - _packed_at(k, zero, k.let(row * -(-blocks * bits // 8)), own, bits))
            scale = k.load(scales, k.let(row * blocks + own))
            k.store(out, item, k.let(level * tirx.Cast("float32", scale)))

    size = product(node.shape)
    return flat(node, "rows_stored", (columns, bits, block, len(dtypes)), emit, (size,), size, size)


def _packed_at(k: GridEmitter, source: Buffer, start: Expr, index: Expr, bits: int) -> Expr:
    """One of the levels that are packed from a byte on, as a float."""
    byte = k.let(tirx.Cast("int32", k.load(source, start + div(index, 8 // bits))))
    return level_of(k, byte, k.let(tirx.Cast("int32", mod(index, 8 // bits) * bits)), bits)


def _half_at(k: GridEmitter, source: Buffer, at: Expr) -> Expr:
    """The float whose upper half is there."""
    low, high = (k.let(tirx.Cast("int32", k.load(source, at + i))) for i in (0, 1))
    sixteen, eight = (tirx.const(bits, "int32") for bits in (16, 24))
    return k.let(
        tirx.reinterpret(
            "float32", k.let(tirx.bitwise_or(tirx.shift_left(low, sixteen), tirx.shift_left(high, eight)))
        )
    )


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    **dict.fromkeys(STRIDES, strided),
    "concat": concat,
    "pad": pad,
    "embedding": embedding,
    "gather": gather,
    "iota": iota,
    "full": full,
    "dim": dim_,
    **dict.fromkeys(("blockwise", "bfloat16"), rows_decoded),
}
