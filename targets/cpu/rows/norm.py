"""Normalisation over the last axis: one row is one work item, read from cache after the first pass.

Mean and variance are taken in two passes over 16 partial sums (lane = column mod 16) joined by a fixed tree.
`add_norm` and `embed_norm` first write the sum they normalise into the output row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llmc.compiler.calls import Call, Kernel, Layouts, Panels
from llmc.compiler.dims import product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rows import row_stride
from llmc.errors import LlmcError
from llmc.targets.cpu.rows import quantised
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, dtype_of, f32, fma, i64, mod, splat
from llmc.targets.tir.grid import by_rows, columns
from llmc.targets.tir.later import tirx
from llmc.targets.tir.places import row_place


def _row_length(node: Node) -> int:
    length = node.shape[-1]
    if not isinstance(length, int):
        raise LlmcError(f"{node.op}: the last axis must have a fixed size, found {node.type}")
    if node.dtype != "f32":
        raise LlmcError(f"{node.op}: no kernel for {node.dtype}")
    return length


def _call(
    node: Node, family: str, key: tuple[Any, ...], scalars: tuple[Any, ...], emit: Callable[..., Any]
) -> Call:
    rows, n = product(node.shape[:-1]), int(node.shape[-1])
    pointers = (*tuple(i.dtype for i in node.inputs), "f32")
    kernel = Kernel(family, key, pointers, len(scalars), emit)
    moved = sum(4 * product(i.shape) for i in node.inputs if i.op != "constant")
    return Call(
        kernel,
        (*node.inputs, node),
        scalars,
        rows,
        14 * -(-n // LANES),
        8 * rows * n,
        4 * rows * n + moved,
        node.source,
    )


def lower_layer_norm(node: Node) -> Call:
    """layer_norm(x, weight?, bias?)"""
    n, a = _row_length(node), node.attributes
    key = (n, float(a["eps"]), bool(a["has_weight"]), bool(a["has_bias"]))
    emit = partial(emit_norm, n=n, eps=key[1], has_weight=key[2], has_bias=key[3])
    return _call(node, "layer_norm", key, (), emit)


def lower_rms_norm(node: Node) -> Call:
    """rms_norm(x, weight)"""
    n, eps = _row_length(node), float(node.attributes["eps"])
    emit = partial(emit_norm, n=n, eps=eps, has_weight=True, has_bias=False, centre=False)
    return _call(node, "rms_norm", (n, eps), (), emit)


def lower_add_norm(node: Node) -> Call:
    """layer_norm(x + residual)"""
    n, eps = _row_length(node), float(node.attributes["eps"])
    if node.inputs[0].shape != node.inputs[1].shape:
        raise LlmcError("add_norm: both operands must have the same shape")
    emit = partial(emit_norm, n=n, eps=eps, has_weight=True, has_bias=True, added=True)
    return _call(node, "add_norm", (n, eps), (), emit)


def lower_embed_norm(node: Node, layouts: Layouts = ()) -> Call:
    """layer_norm of a sum of table rows, which may lie by panels; an index of [1, s] is shared by the batch."""
    n, eps = _row_length(node), float(node.attributes["eps"])
    count = node.attributes["tables"]
    pairs = [(node.inputs[2 * i], node.inputs[2 * i + 1]) for i in range(count)]
    if any(index.dtype not in ("i64", "i32") for _, index in pairs):
        raise LlmcError("embed_norm: no kernel for these dtypes")
    tables = tuple(
        (int(table.shape[0]), table.dtype, index.dtype, index.shape != node.shape[:-1])
        for table, index in pairs
    )
    lying = tuple(layouts[: 2 * count : 2])
    emit = partial(emit_embed_norm, n=n, eps=eps, tables=tables, layouts=lying)
    key = (n, eps, tables, *([lying] if lying else []))
    return replace(
        _call(node, "embed_norm", key, (node.shape[-2],), emit), laid=partial(lower_embed_norm, node)
    )


def emit_norm(
    symbol: str,
    cpu: Cpu,
    *,
    n: int,
    eps: float,
    has_weight: bool,
    has_bias: bool,
    centre: bool = True,
    added: bool = False,
) -> Any:
    """layer_norm, add_norm (`added`) and rms_norm (not `centre`) of rows of n."""
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    residual = e.pointer("residual", "f32") if added else None
    weight = e.pointer("weight", "f32") if has_weight else None
    bias = e.pointer("bias", "f32") if has_bias else None
    out = e.pointer("out", "f32")

    def several(rows: list[Expr]) -> None:
        starts = [e.let(row * n) for row in rows]
        if residual is not None:

            def add(at: Expr, mask: Expr | None, residual: Buffer = residual) -> None:
                for start in starts:
                    total = e.load(x, start + at, LANES, mask) + e.load(residual, start + at, LANES, mask)
                    e.store(out, start + at, e.let(total), mask)

            columns(e, n, add)
        normalise(e, out if added else x, starts, weight, bias, out, n=n, eps=eps, centre=centre)

    by_rows(e, 4 if cpu.wide else 2, several)
    return e.function()


def emit_embed_norm(
    symbol: str,
    cpu: Cpu,
    *,
    n: int,
    eps: float,
    tables: tuple[tuple[int, str, str, bool], ...],
    layouts: Layouts = (),
) -> Any:
    """layer_norm(sum of table rows); `tables` holds (rows, dtype, index dtype, index shared by the batch)."""
    e = Emitter(symbol)
    pairs = [(e.pointer("table", dtype), e.pointer("index", kind)) for _, dtype, kind, _ in tables]
    weight, bias, out = e.pointer("weight", "f32"), e.pointer("bias", "f32"), e.pointer("out", "f32")
    readers = [
        _TABLES[dtype](e, table, n) if panels is None else _table_by_panels(e, table, n, panels)
        for (table, _), (_, dtype, _, _), panels in zip(
            pairs, tables, layouts or (None,) * len(pairs), strict=True
        )
    ]
    seq = e.scalar("seq")
    with e.loop(e.begin, e.end, "row") as row:
        start = e.let(row * n)
        rows = []
        for (_, index), (size, _, _, shared), reader in zip(pairs, tables, readers, strict=True):
            picked = tirx.Cast("int64", e.load(index, mod(row, seq) if shared else row))
            # Out of range never reads out of bounds; the runtime has refused such ids already.
            rows.append(reader(e.let(tirx.max(tirx.min(picked, i64(size - 1)), i64(0)))))

        def add(at: Expr, mask: Expr | None, rows: list[_Row] = rows, start: Expr = start) -> None:
            total = None
            for plus in rows:
                total = e.let(plus(at, mask, total))
            e.store(out, start + at, total, mask)

        columns(e, n, add)
        normalise(e, out, [start], weight, bias, out, n=n, eps=eps)
    return e.function()


_Row = Callable[
    [Expr, Expr | None, Expr | None], Expr
]  # (column, mask, total) -> total + the row's 16 values
_Reader = Callable[[Expr], _Row]  # row number -> its values


def _plain_table(e: Emitter, table: Buffer, n: int) -> _Reader:
    def read(row: Expr) -> _Row:
        start = e.let(row * n)

        def plus(at: Expr, mask: Expr | None, total: Expr | None) -> Expr:
            return _added(e, total, e.load(table, start + at, LANES, mask))

        return plus

    return read


def _added(e: Emitter, total: Expr | None, values: Expr) -> Expr:
    values = e.let(tirx.Cast("float32x16", values)) if dtype_of(values) != "float32x16" else values
    return values if total is None else total + values


def _table_by_panels(e: Emitter, table: Buffer, n: int, panels: Panels) -> _Reader:
    """A column of a panel for each row; what lies past its end repeats the last value, and nobody stores it."""
    lanes = tirx.Ramp(i64(0), i64(1), LANES)

    def read(row: Expr) -> _Row:
        start, step = row_place(e, row, i64(n), panels)

        def plus(at: Expr, mask: Expr | None, total: Expr | None) -> Expr:
            column = splat(at) + lanes if mask is None else tirx.min(splat(at) + lanes, splat(i64(n - 1)))
            picked = e.let(tirx.BufferLoad(table, [splat(start) + column * splat(step)]))
            return _added(e, total, picked)

        return plus

    return read


def _packed_table(e: Emitter, table: Buffer, n: int) -> _Reader:
    words = e.alias(table, "float32")

    def read(row: Expr) -> _Row:
        start, scale = e.let(row * row_stride(n)), splat(quantised.row_scale(e, words, row, n, row_stride(n)))

        def plus(at: Expr, mask: Expr | None, total: Expr | None) -> Expr:
            values = quantised.level_of(e, table, e.let(start + at))
            return fma(values, scale, splat(f32(0.0)) if total is None else total)

        return plus

    return read


_TABLES: Mapping[str, Callable[[Emitter, Buffer, int], _Reader]] = {
    "f32": _plain_table,
    "f16": _plain_table,
    "u8": _packed_table,
}


class _Rows:
    """Rows of n values of x that are normalised together.

    Each sum is a chain of additions that wait for each other: the rows' chains take turns.
    """

    def __init__(self, e: Emitter, x: Buffer, starts: Sequence[Expr], n: int) -> None:
        self.e, self.x, self.starts, self.n = e, x, starts, n
        self.sums = e.registers(len(starts))
        self.means: list[Expr] = []  # to be subtracted, once they are known
        lanes = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), LANES)
        self.tail = lanes < splat(tirx.const(n % LANES, "int32"))

    def value(self, row: int, at: Expr, mask: Expr | None) -> Expr:
        """16 values of a row, 0 past its end."""
        value = self.e.load(self.x, self.starts[row] + at, LANES, mask)
        if not self.means:
            return value
        value = self.e.let(value - self.means[row])
        return value if mask is None else self.e.let(tirx.Select(self.tail, value, splat(f32(0.0))))

    def average(self, step: Callable[[Expr, Expr], Expr]) -> list[Expr]:
        """For each row, the sum that `step(sum, value)` makes, divided by n."""
        e, rows = self.e, range(len(self.starts))
        for row in rows:
            e.set(self.sums, row, splat(f32(0.0)))

        def body(at: Expr, mask: Expr | None) -> None:
            for row in rows:
                value = self.value(row, at, mask)
                e.set(self.sums, row, step(e.get(self.sums, row), value))

        columns(e, self.n, body)
        totals = [e.fold(e.let(e.get(self.sums, row)), lambda a, b: a + b) for row in rows]
        return [e.let(total / f32(float(self.n))) for total in totals]


def normalise(
    e: Emitter,
    x: Buffer,
    starts: Sequence[Expr],
    weight: Buffer | None,
    bias: Buffer | None,
    out: Buffer,
    *,
    n: int,
    eps: float,
    centre: bool = True,
) -> None:
    """out row = (x row - mean) / sqrt(variance + eps) * weight + bias, of the rows that begin at `starts`."""
    rows = _Rows(e, x, starts, n)
    if centre:
        rows.means = [e.let(splat(mean)) for mean in rows.average(lambda total, value: total + value)]
    variances = rows.average(lambda total, value: fma(value, value, total))
    inverses = [e.let(splat(e.let(f32(1.0) / tirx.sqrt(e.let(v + f32(eps)))))) for v in variances]

    def write(at: Expr, mask: Expr | None) -> None:
        scale = None if weight is None else e.load(weight, at, LANES, mask)
        shift = None if bias is None else e.load(bias, at, LANES, mask)
        for row, start in enumerate(starts):
            value = e.let(rows.value(row, at, mask) * inverses[row])
            if shift is not None:
                value = fma(value, splat(f32(1.0)) if scale is None else scale, shift)
            elif scale is not None:
                value = value * scale
            e.store(out, start + at, value, mask)

    columns(e, n, write)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "layer_norm": lower_layer_norm,
    "rms_norm": lower_rms_norm,
    "add_norm": lower_add_norm,
    "embed_norm": lower_embed_norm,
}
