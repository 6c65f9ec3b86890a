"""Reductions and softmax on the GPU: one warp a row where the last axis goes, else one thread a column.

Lane i of a warp takes elements i, i + 32, ...; the 32 partial results are combined by a fixed tree of shuffles.
All lanes of a block stay in step: a warp past the last row works on the last row and stores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from llmc.compiler.calls import Call
from llmc.compiler.dims import Dim, ceil_div, dim, product
from llmc.compiler.graph import Node
from llmc.errors import LlmcError
from llmc.targets.cuda.emit import WARP, GridEmitter
from llmc.targets.cuda.launch import flat, launch
from llmc.targets.tir import math, math64
from llmc.targets.tir.emit import STORAGE, Buffer, Expr, div, f32, i64, mod
from llmc.targets.tir.grid import offset, strides
from llmc.targets.tir.later import tirx
from llmc.targets.tir.reduce import COMBINE, NEUTRAL, Line, argmax, compute_dtype, cumsum, merge_kept
from llmc.targets.tir.scalar_ops import cast, constant, maximum

WARPS = 4  # of a block, each with a row of its own


def rows_call(
    node: Node,
    family: str,
    key: tuple[Any, ...],
    emit: Callable[[GridEmitter], None],
    scalars: Sequence[Dim],
    rows: Dim,
    flops: Dim,
) -> Call:
    """A call that gives each row a warp."""
    blocks = ceil_div(dim(rows), WARPS)
    return launch(node, family, key, emit, scalars, blocks, threads=WARPS * WARP, flops=flops)


class Row:
    """The row of this thread's warp: `at` its number, `live` false for a warp that has none of its own."""

    def __init__(self, k: GridEmitter, rows: Expr) -> None:
        self.k = k
        number = k.let(k.block * WARPS + div(k.thread, WARP))
        self.live = k.let(number < rows)
        self.at = k.let(tirx.min(number, rows - i64(1)))
        self.lane = k.let(mod(k.thread, WARP))

    def columns(self, length: Expr | int, body: Callable[[Expr], None]) -> None:
        """`body(column)` for this lane's columns of a row of `length`; no shuffles in it."""
        k, size = self.k, i64(length) if isinstance(length, int) else length
        with k.loop(0, div(size + i64(WARP - 1), WARP), "c") as step:
            column = k.let(step * WARP + self.lane)
            if isinstance(length, int) and length % WARP == 0:
                body(column)
            else:
                with k.when(column < size):
                    body(column)

    def write(self, length: Expr | int, target: Buffer, start: Expr, value: Callable[[Expr], Expr]) -> None:
        """target[start + column] = value(column)"""

        def one(column: Expr) -> None:
            result = value(column)
            with self.k.when(self.live):
                self.k.store(target, start + column, result)

        self.columns(length, one)

    def sum(self, length: Expr | int, term: Callable[[Expr, Expr], Expr]) -> Expr:
        """The sum over the row; `term(sum so far, column)` adds one."""
        k = self.k
        held = k.registers(1)
        k.set(held, 0, f32(0.0))
        self.columns(length, lambda column: k.set(held, 0, term(k.let(k.get(held)), column)))
        return k.across(k.let(k.get(held)), lambda a, b: a + b)


# --- reductions over any axes


def reduce_(node: Node) -> Call:
    """sum, mean, max, min, any, all"""
    x = node.inputs[0]
    merged = merge_kept(x.shape, node.attributes["axes"])
    kept = tuple(k for _, k in merged)
    extents = [e for e, _ in merged]
    outputs = product(node.shape)
    body = _Reduction(node.op, node.dtype, kept)
    make = flat if kept[-1] else rows_call
    return make(node, "reduce", (node.op, kept), body.emit, extents, outputs, product(x.shape))


class _Reduction:
    def __init__(self, op: str, dtype: str, kept: tuple[bool, ...]) -> None:
        self.op, self.stored, self.dtype, self.kept = op, dtype, compute_dtype(dtype), kept

    def emit(self, k: GridEmitter) -> None:
        self.k, self.source, self.target = k, k.pointer("x", self.stored), k.pointer("y", self.stored)
        extents = [k.scalar(f"extent{i}") for i in range(len(self.kept))]
        steps = strides(k, extents, [True] * len(extents))
        kept = [(e, s) for e, s, is_kept in zip(extents, steps, self.kept, strict=True) if is_kept]
        self.gone = [(e, s) for e, s, is_kept in zip(extents, steps, self.kept, strict=True) if not is_kept]
        self.count = k.total([e for e, _ in self.gone])
        self.held = k.registers(1, STORAGE[self.dtype])
        k.set(self.held, 0, constant(self.dtype, NEUTRAL[self.op](self.dtype), 1))
        rows = k.total([e for e, _ in kept])

        def base(item: Expr) -> Expr:
            return offset(k, k.decode(item, [e for e, _ in kept]), [s for _, s in kept])

        if self.kept[-1]:
            with k.each(rows) as item:
                self.over(self.gone, base(item), self.add)
                k.store(self.target, item, self.finish(k.let(k.get(self.held))))
            return
        row = Row(k, rows)
        last = self.gone[-1][0]
        start = base(row.at) if kept else i64(0)
        self.over(self.gone[:-1], start, lambda at: row.columns(last, lambda c: self.add(at + c)))
        value = k.across(k.let(k.get(self.held)), self.combine)
        with k.when(tirx.And(row.live, tirx.EQ(row.lane, i64(0)))):
            k.store(self.target, row.at, self.finish(value))

    def over(self, axes: Sequence[tuple[Expr, Expr]], base: Expr, body: Callable[[Expr], None]) -> None:
        """`body(offset)` for each index of `axes`, in order."""
        if not axes:
            body(base)
            return
        with self.k.loop(0, axes[0][0]) as i:
            self.over(axes[1:], self.k.let(base + i * axes[0][1]), body)

    def combine(self, a: Expr, b: Expr) -> Expr:
        return COMBINE[self.op](self.k, self.dtype, a, b)

    def add(self, at: Expr) -> None:
        value = self.k.let(cast(self.k, self.stored, self.dtype, self.k.load(self.source, at)))
        self.k.set(self.held, 0, self.combine(self.k.let(self.k.get(self.held)), value))

    def finish(self, value: Expr) -> Expr:
        """A mean divides; f16 is rounded."""
        if self.op == "mean":
            value = self.k.let(value / tirx.Cast("float32", self.count))
        return cast(self.k, self.dtype, self.stored, value)


# --- softmax


def softmax(node: Node) -> Call:
    """softmax and log_softmax: y = exp(x - max) / sum, or x - max - log(sum)"""
    x, axis, log = node.inputs[0], node.attributes["axis"], node.op == "log_softmax"
    length, inner, outer = x.shape[axis], product(x.shape[axis + 1 :]), product(x.shape[:axis])
    size = product(x.shape)
    if node.dtype != "f32":
        raise LlmcError(f"{node.op}: no kernel for {node.dtype}")
    if axis == len(x.shape) - 1:
        return rows_call(
            node, "softmax", (node.op,), lambda k: _softmax_rows(k, log), (length, outer), outer, 20 * size
        )
    return flat(
        node,
        "softmax",
        (node.op, "columns"),
        lambda k: _softmax_columns(k, log),
        (length, inner, outer),
        outer * inner,
        20 * size,
    )


def _softmax_rows(k: GridEmitter, log: bool) -> None:
    source, target = k.pointer("x", "f32"), k.pointer("y", "f32")
    length = k.scalar("length")
    row = Row(k, k.scalar("rows"))
    start = k.let(row.at * length)
    highest = k.registers(1)
    k.set(highest, 0, f32(float("-inf")))

    def find(column: Expr) -> None:
        k.set(highest, 0, maximum(k, "f32", k.let(k.get(highest)), k.load(source, start + column)))

    row.columns(length, find)
    top = k.across(k.let(k.get(highest)), lambda a, b: maximum(k, "f32", a, b))

    def shifted(column: Expr) -> Expr:
        return k.let(k.load(source, start + column) - top)

    whole = row.sum(length, lambda so_far, column: so_far + math.exp(k, shifted(column)))
    if log:
        whole = math64.log(k, whole)
        row.write(length, target, start, lambda column: k.let(shifted(column) - whole))
    else:
        row.write(length, target, start, lambda column: k.let(math.exp(k, shifted(column)) / whole))


def _softmax_columns(k: GridEmitter, log: bool) -> None:
    source, target = k.pointer("x", "f32"), k.pointer("y", "f32")
    length, inner, outer = k.scalar("length"), k.scalar("inner"), k.scalar("outer")
    highest, total = k.registers(1), k.registers(1)
    with k.each(k.let(inner * outer)) as item:
        row, column = k.decode(item, [outer, inner])
        start = k.let(row * length * inner + column)
        k.set(highest, 0, f32(float("-inf")))
        k.set(total, 0, f32(0.0))
        with k.loop(0, length) as i:
            k.set(highest, 0, maximum(k, "f32", k.let(k.get(highest)), k.load(source, start + i * inner)))
        top = k.let(k.get(highest))
        with k.loop(0, length) as i:
            e = math.exp(k, k.let(k.load(source, start + i * inner) - top))
            k.set(total, 0, k.let(k.get(total)) + e)
        whole = k.let(k.get(total))
        whole = math64.log(k, whole) if log else whole
        with k.loop(0, length) as i:
            x = k.let(k.load(source, start + i * inner) - top)
            k.store(target, start + i * inner, k.let(x - whole) if log else k.let(math.exp(k, x) / whole))


# --- scans


def _scan(node: Node, body: Line) -> Call:
    """`body(k, x, y, first, step, length, item)` for each line of the axis, one thread a line."""
    x, axis = node.inputs[0], node.attributes["axis"]
    length, inner, outer = x.shape[axis], product(x.shape[axis + 1 :]), product(x.shape[:axis])

    def emit(k: GridEmitter) -> None:
        source, target = k.pointer("x", x.dtype), k.pointer("y", node.dtype)
        count, step, lines = k.scalar("length"), k.scalar("inner"), k.scalar("lines")
        with k.each(lines) as item:
            row, column = k.decode(item, [i64(1), step])
            body(k, source, target, k.let(row * count * step + column), step, count, item)

    lines = dim(outer * inner)
    return flat(node, "scan", (node.op,), emit, (length, inner, lines), lines, product(x.shape))


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    **dict.fromkeys(COMBINE, reduce_),
    "softmax": softmax,
    "log_softmax": softmax,
    "cumsum": partial(cumsum, along=_scan),
    "argmax": partial(argmax, along=_scan),
}
