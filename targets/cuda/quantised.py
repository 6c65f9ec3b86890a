"""Quantisation of rows and integer products on the GPU: exact sums by `dp4a`, then the CPU kernels' float steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Packed
from llmc.compiler.dims import product
from llmc.compiler.graph import Node
from llmc.compiler.ops.quantise import LEVELS, TINY
from llmc.compiler.ops.rows import ZERO, line_stride, scale_offset
from llmc.errors import LlmcError
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.norm import level, packed_scale
from llmc.targets.cuda.operands import epilogue_inputs, product_call, tile_place, weight_of
from llmc.targets.cuda.rows import Row, rows_call
from llmc.targets.cuda.tile import COLUMNS, DEPTH, THREADS, Tile
from llmc.targets.tir.emit import Buffer, Expr, f32, i64
from llmc.targets.tir.epilogue import scaled
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import to_level

FLIP = -0x7F7F7F80  # 0x80808080: q + 128 as a byte becomes q


def _length(x: Node) -> int:
    if not isinstance(x.shape[-1], int):
        raise LlmcError(f"the last axis must have a fixed size, found {x.type}")
    return x.shape[-1]


def scale_of(row: Row, x: Buffer, start: Expr, n: Expr | int) -> Expr:
    """max |x| / 127 of a row, 1 for a row of zeros, NaN if there is one: as in the CPU's kernel."""
    k = row.k
    top = k.registers(1, "int32")
    k.set(top, 0, tirx.const(0, "int32"))

    def widest(column: Expr) -> None:
        bits = k.let(tirx.reinterpret("int32", k.load(x, start + column)))
        magnitude = k.let(tirx.bitwise_and(bits, tirx.const(0x7FFFFFFF, "int32")))
        k.set(top, 0, tirx.max(k.get(top), magnitude))

    row.columns(n, widest)
    most = k.across(k.let(k.get(top)), tirx.max)
    scale = k.let(k.let(tirx.reinterpret("float32", most)) / f32(float(LEVELS)))
    return k.let(tirx.Select(scale < f32(TINY), f32(1.0), scale))


def _want_no_zero(node: Node) -> None:
    if node.attributes["has_zero"]:
        raise LlmcError(f"{node.op}: there is no kernel for levels around a zero point on GPUs")


def row_scale(node: Node) -> Call:
    """out[row] = max |x[row]| / 127"""
    n, rows = _length(node.inputs[0]), product(node.shape)

    def emit(k: GridEmitter) -> None:
        x, out = k.pointer("x", "f32"), k.pointer("out", "f32")
        row = Row(k, k.scalar("rows"))
        scale = scale_of(row, x, k.let(row.at * n), n)
        with k.when(tirx.And(row.live, tirx.EQ(row.lane, i64(0)))):
            k.store(out, row.at, scale)

    return rows_call(node, "row_scale", (n,), emit, (rows,), rows, rows * n)


def quantize_rows(node: Node) -> Call:
    """Packed rows of x, each with its own scale or all with the one given."""
    _want_no_zero(node)
    x, has_scale = node.inputs[0], bool(node.attributes["has_scale"])
    n, rows, stride = _length(x), product(x.shape[:-1]), int(node.shape[-1])

    def emit(k: GridEmitter) -> None:
        source = k.pointer("x", "f32")
        given = k.pointer("scale", "f32") if has_scale else None
        out = k.pointer("out", "u8")
        words = k.alias(out, "float32")
        row = Row(k, k.scalar("rows"))
        start, target = k.let(row.at * n), k.let(row.at * stride)
        scale = scale_of(row, source, start, n) if given is None else k.load(given, i64(0))
        inverse = k.let(f32(1.0) / scale)

        def convert(column: Expr) -> Expr:
            value = k.registers(1)
            k.set(value, 0, f32(0.0))
            with k.when(column < i64(n)):
                k.set(value, 0, k.load(source, start + column))
            byte = to_level(k, k.let(k.get(value)), inverse) + tirx.const(ZERO, "int32")
            return k.let(tirx.Cast("uint8", byte))

        row.write(scale_offset(n), out, target, convert)
        tail = k.let(row.at * (stride // 4) + scale_offset(n) // 4)
        with k.when(tirx.And(row.live, row.lane < i64((stride - scale_offset(n)) // 4))):
            k.store(words, tail + row.lane, tirx.Select(tirx.EQ(row.lane, i64(0)), scale, f32(0.0)))

    return rows_call(node, "quantize_rows", (n, has_scale, stride), emit, (rows,), rows, 4 * rows * n)


def dequantize_rows(node: Node) -> Call:
    """out[row, i] = q[row, i] * scale[row]"""
    n, rows = int(node.attributes["size"]), product(node.shape[:-1])
    stride = int(node.inputs[0].shape[-1])

    def emit(k: GridEmitter) -> None:
        packed, out = k.pointer("packed", "u8"), k.pointer("out", "f32")
        row = Row(k, k.scalar("rows"))
        scale = packed_scale(k, packed, row.at, n, stride)
        start = k.let(row.at * stride)
        row.write(n, out, k.let(row.at * n), lambda c: k.let(level(k, packed, start + c) * scale))

    return rows_call(node, "dequantize_rows", (n, stride), emit, (rows,), rows, rows * n)


def pack_words(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """i8 `w[n, k]` -> i8 `[k / 4][n][4]`, padded with zeros to tiles."""
    n, k = array.shape
    padded = np.zeros((n + -n % COLUMNS, k + -k % (4 * DEPTH)), np.int8)
    padded[:n, :k] = array
    return np.ascontiguousarray(padded.reshape(len(padded), -1, 4).transpose(1, 0, 2))


def qlinear(node: Node) -> Call:
    """out[m, n] = epilogue(float(q[m, k] . w[n, k]^T) * (row scale * column scale))"""
    _want_no_zero(node)
    weight, (n, depth) = weight_of(node), (int(d) for d in node.inputs[1].shape)
    epilogue: tuple[str, ...] = node.attributes["epilogue"]

    def emit(k: GridEmitter) -> None:
        packed, right, column_scale = (
            k.pointer("rows", "u8"),
            k.pointer("w", "i8"),
            k.pointer("w_scale", "f32"),
        )
        added = [k.pointer(step, "f32") for step in epilogue_inputs(epilogue)]
        out, m = k.pointer("out", "f32"), k.scalar("m")
        words, weights = k.alias(packed, "int32"), k.alias(right, "int32")
        row, column = tile_place(k, -(-n // COLUMNS))

        def load_left(at: Expr, quad: Expr) -> Expr:
            # a row ends at a multiple of four words; what lies past it meets weights of zero
            last = i64(line_stride(depth) // 16 - 1)
            start = k.let(tirx.min(at, m - i64(1)) * (line_stride(depth) // 16) + tirx.min(quad, last))
            flip = tirx.Broadcast(tirx.const(FLIP, "int32"), 4)
            return k.let(tirx.bitwise_xor(k.load(words, start * 4, 4), flip))

        def load_right(step: Expr, quad: Expr) -> Expr:
            return k.load(weights, (step * ((n + -n % COLUMNS) // 4) + quad) * 4, 4)

        tile = Tile(k, row, column, load_left, load_right, words=True)
        acc = tile.multiply(i64(-(-depth // 4)))

        def write(at_row: Expr, at_column: Expr, total: Expr) -> None:
            at = k.let(at_row * n + at_column)
            scale = k.let(
                packed_scale(k, packed, at_row, depth, line_stride(depth)) * k.load(column_scale, at_column)
            )
            value = k.let(tirx.Cast("float32", total))

            def extra(number: int, step: str) -> Expr:
                return k.load(added[number], at_column if step == "bias" else at)

            k.store(out, at, scaled(k, epilogue, value, scale, extra))

        tile.finish(acc, m, i64(n), write)

    words = Packed(weight, f"words{DEPTH}x{COLUMNS}", pack_words)
    return product_call(node, "qlinear", words, ("u8", "i8"), emit, THREADS)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "row_scale": row_scale,
    "quantize_rows": quantize_rows,
    "dequantize_rows": dequantize_rows,
    "qlinear": qlinear,
}
