"""Norms over the last axis on the GPU, one warp a row, and what packed int8 rows hold.

A row is read three times, for mean, variance and result: after the first it comes from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from llmc.compiler.calls import Call, Layouts, Panels
from llmc.compiler.dims import product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rows import ZERO, row_stride, scale_offset
from llmc.errors import LlmcError
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.rows import Row, rows_call
from llmc.targets.tir.emit import Buffer, Expr, f32, fma, i64, mod
from llmc.targets.tir.later import tirx
from llmc.targets.tir.places import row_place
from llmc.targets.tir.strides import clamped


def norm(node: Node) -> Call:
    """layer_norm, rms_norm and add_norm over the last axis"""
    n, rows, a = _row_length(node), product(node.shape[:-1]), node.attributes
    added, centre = node.op == "add_norm", node.op != "rms_norm"
    weighted = a.get("has_weight", True)
    biased = a.get("has_bias", centre)
    if added and node.inputs[0].shape != node.inputs[1].shape:
        raise LlmcError("add_norm: both operands must have the same shape")

    def emit(k: GridEmitter) -> None:
        sources = [k.pointer(f"x{i}", "f32") for i in range(1 + added)]
        weight = k.pointer("weight", "f32") if weighted else None
        bias = k.pointer("bias", "f32") if biased else None
        out, count = k.pointer("out", "f32"), k.scalar("rows")
        row = Row(k, count)
        start = k.let(row.at * n)

        def value(column: Expr) -> Expr:
            x = k.load(sources[0], start + column)
            return k.let(x + k.load(sources[1], start + column)) if added else x

        _normalise(row, n, float(a["eps"]), value, weight, bias, out, start, centre)

    key = (node.op, n, float(a["eps"]), weighted, biased)
    return rows_call(node, "norm", key, emit, (rows,), rows, 8 * rows * n)


def embed_norm(node: Node, layouts: Layouts = ()) -> Call:
    """layer_norm of a sum of table rows, which may lie by panels; an index of [1, s] is shared by the batch."""
    n, rows, eps = _row_length(node), product(node.shape[:-1]), float(node.attributes["eps"])
    count = node.attributes["tables"]
    pairs = [(node.inputs[2 * i], node.inputs[2 * i + 1]) for i in range(count)]
    if any(t.dtype not in ("f32", "f16", "u8") or i.dtype not in ("i64", "i32") for t, i in pairs):
        raise LlmcError("embed_norm: no kernel for these dtypes")
    spec = tuple((int(t.shape[0]), t.dtype, i.dtype, i.shape != node.shape[:-1]) for t, i in pairs)
    lying = tuple(layouts[: 2 * count : 2]) or (None,) * count

    def emit(k: GridEmitter) -> None:
        buffers = [(k.pointer("table", dtype), k.pointer("index", kind)) for _, dtype, kind, _ in spec]
        weight, bias, out = (k.pointer(name, "f32") for name in ("weight", "bias", "out"))
        seq, total = k.scalar("seq"), k.scalar("rows")
        row = Row(k, total)
        parts = []
        for (table, index), (size, dtype, _, shared), panels in zip(buffers, spec, lying, strict=True):
            place = k.let(mod(row.at, seq)) if shared else row.at
            picked = clamped(k, k.load(index, place), i64(size))
            packed = dtype == "u8"
            parts.append(
                packed_row(k, table, picked, n) if packed else plain_row(k, table, picked, n, panels)
            )

        def value(column: Expr) -> Expr:
            total = f32(0.0)
            for part in parts:
                total = part(column, total)
            return total

        _normalise(row, n, eps, value, weight, bias, out, k.let(row.at * n), True)

    key = ("embed", n, eps, spec, lying)
    call = rows_call(node, "norm", key, emit, (node.shape[-2], rows), rows, 8 * rows * n)
    return replace(call, laid=partial(embed_norm, node))


Part = Callable[[Expr, Expr], Expr]  # (column, total) -> total + the row's value there


def plain_row(k: GridEmitter, table: Buffer, row: Expr, n: int, panels: Panels | None = None) -> Part:
    """A row of a table of floats."""
    start, step = row_place(k, row, i64(n), panels)
    return lambda column, total: k.let(total + tirx.Cast("float32", k.load(table, start + column * step)))


def packed_row(k: GridEmitter, rows: Buffer, row: Expr, n: int) -> Part:
    """A packed row of int8 values (compiler/ops/rows.py)."""
    start, scale = k.let(row * row_stride(n)), packed_scale(k, rows, row, n, row_stride(n))
    return lambda column, total: k.let(fma(level(k, rows, start + column), scale, total))


def packed_scale(k: GridEmitter, rows: Buffer, row: Expr, n: int, stride: int) -> Expr:
    """The scale of packed row number `row` of n values in `stride` bytes."""
    words = k.alias(rows, "float32")
    return k.load(words, row * (stride // 4) + scale_offset(n) // 4)


def level(k: GridEmitter, rows: Buffer, at: Expr) -> Expr:
    """A quantised value of a packed row as float32."""
    return k.let(tirx.Cast("float32", tirx.Cast("int32", k.load(rows, at)) - tirx.const(ZERO, "int32")))


def _row_length(node: Node) -> int:
    if not isinstance(node.shape[-1], int):
        raise LlmcError(f"{node.op}: the last axis must have a fixed size, found {node.type}")
    if node.dtype != "f32":
        raise LlmcError(f"{node.op}: no kernel for {node.dtype}")
    return node.shape[-1]


def _normalise(
    row: Row,
    n: int,
    eps: float,
    value: Callable[[Expr], Expr],
    weight: Buffer | None,
    bias: Buffer | None,
    out: Buffer,
    start: Expr,
    centre: bool,
) -> None:
    """out row = (value - mean) / sqrt(variance + eps) * weight + bias, in three passes over the row"""
    k, size = row.k, f32(float(n))
    mean = k.let(row.sum(n, lambda so_far, c: so_far + value(c)) / size) if centre else None

    def centred(column: Expr) -> Expr:
        return value(column) if mean is None else k.let(value(column) - mean)

    def add_square(so_far: Expr, column: Expr) -> Expr:
        d = centred(column)
        return fma(d, d, so_far)

    variance = k.let(row.sum(n, add_square) / size)
    inverse = k.let(f32(1.0) / k.let(tirx.sqrt(k.let(variance + f32(eps)))))

    def result(column: Expr) -> Expr:
        x = k.let(centred(column) * inverse)
        if weight is not None and bias is not None:
            return k.let(fma(x, k.load(weight, column), k.load(bias, column)))
        if weight is not None:
            return k.let(x * k.load(weight, column))
        return k.let(fma(x, f32(1.0), k.load(bias, column))) if bias is not None else x

    row.write(n, out, start, result)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "layer_norm": norm,
    "rms_norm": norm,
    "add_norm": norm,
    "embed_norm": embed_norm,
}
