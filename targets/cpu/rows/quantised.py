"""Quantisation of rows: f32 to int8 with a scale, and back. docs/numerics.md says what each float step is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import product
from llmc.compiler.graph import Node
from llmc.compiler.ops.quantise import LEVELS, TINY
from llmc.compiler.ops.rows import ZERO, line_stride, scale_offset
from llmc.errors import LlmcError
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, f32, i64, lanes_of, splat, vector
from llmc.targets.tir.grid import by_rows, columns
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import to_byte, to_level_around

ROWS = 4  # quantised together: what one waits for, the others fill


def lower_row_scale(node: Node) -> Call:
    """One item is one row."""
    (x,) = node.inputs
    k = row_length(x)
    kernel = Kernel("row_scale", k, ("f32", "f32"), 0, partial(emit_row_scale, k=k))
    return row_call(node, kernel, x, k)


def lower_quantize_rows(node: Node) -> Call:
    """One item is one row."""
    x, *given = node.inputs
    k, stride, dtypes = row_length(x), int(node.shape[-1]), tuple(g.dtype for g in given)
    emit = partial(emit_quantize_rows, k=k, given=dtypes, stride=stride)
    return row_call(node, Kernel("quantize_rows", (k, dtypes, stride), ("f32", *dtypes, "u8"), 0, emit), x, k)


def lower_dequantize_rows(node: Node) -> Call:
    """One item is one row."""
    k = int(node.attributes["size"])
    stride = int(node.inputs[0].shape[-1])
    emit = partial(emit_dequantize_rows, k=k, stride=stride)
    kernel = Kernel("dequantize_rows", (k, stride), ("u8", "f32"), 0, emit)
    return row_call(node, kernel, node, k)


def row_length(x: Node) -> int:
    if not isinstance(x.shape[-1], int):
        raise LlmcError(f"the last axis must have a fixed size, found {x.type}")
    return x.shape[-1]


def row_call(node: Node, kernel: Kernel, long: Node, k: int) -> Call:
    rows = product(long.shape[:-1])
    vectors = -(-k // LANES)
    return Call(
        kernel, (*node.inputs, node), (), rows, 12 * vectors, 4 * rows * k, rows * (5 * k + 16), node.source
    )


def emit_row_scale(symbol: str, cpu: Cpu, *, k: int) -> Any:
    """out[row] = max |x[row]| / 127"""
    e = Emitter(symbol)
    x, out = e.pointer("x", "f32"), e.pointer("out", "f32")
    with e.loop(e.begin, e.end, "row") as row:
        e.store(out, row, scales_of(e, x, [e.let(row * k)], k)[0])
    return e.function()


def emit_quantize_rows(symbol: str, cpu: Cpu, *, k: int, given: Sequence[str], stride: int) -> Any:
    """Packed rows of x in `stride` bytes, each with its own scale or all with the one given.

    Args:
        given: dtypes of the scale and the zero point that are given.
    """
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    scale_at, zero_at = (*(e.pointer("given", dtype) for dtype in given), None, None)[:2]
    out = e.pointer("out", "u8")
    words = e.alias(out, "float32")

    def several(rows: list[Expr]) -> None:
        starts = [e.let(row * k) for row in rows]
        targets = [e.let(row * stride) for row in rows]
        scales = scales_of(e, x, starts, k) if scale_at is None else [e.load(scale_at, i64(0))] * len(rows)
        bytes_of = _around(e, scales, zero_at, given) if zero_at is not None else _to_bytes(e, scales)

        def convert(at: Expr, mask: Expr | None) -> None:
            for start, target, to in zip(starts, targets, bytes_of, strict=True):
                byte = to(e.load(x, start + at, LANES, mask))
                if (
                    zero_at is not None and mask is not None
                ):  # else a load past the end gives 0, which becomes 128
                    byte = e.let(tirx.Select(mask, byte, splat(tirx.const(ZERO, "uint8"))))
                e.store(out, target + at, byte)

        columns(e, k, convert)
        for row, scale in zip(rows, scales, strict=True):
            store_scale(e, words, row, k, scale, stride)

    by_rows(e, ROWS, several)
    return e.function()


def _to_bytes(e: Emitter, scales: list[Expr]) -> list[Callable[[Expr], Expr]]:
    inverses = [e.let(splat(e.let(f32(1.0) / scale))) for scale in scales]
    return [partial(lambda inverse, x: to_byte(e, x, inverse, ZERO), inverse) for inverse in inverses]


def _around(
    e: Emitter, scales: list[Expr], zero_at: Buffer, given: Sequence[str]
) -> list[Callable[[Expr], Expr]]:
    middle = e.let(splat(tirx.Cast("float32", zero_byte(e, zero_at, given[1]))))

    def to(scale: Expr, x: Expr) -> Expr:
        return e.let(tirx.Cast(f"uint8x{LANES}", to_level_around(e, x, scale, middle, 0)))

    return [partial(to, e.let(splat(scale))) for scale in scales]


def zero_byte(e: Emitter, zero: Buffer, dtype: str) -> Expr:
    """The unsigned byte that a zero point of `dtype` is in a row, as int32."""
    wide = tirx.Cast("int32", e.load(zero, i64(0)))
    return e.let(wide + tirx.const(ZERO if dtype == "i8" else 0, "int32"))


def emit_dequantize_rows(symbol: str, cpu: Cpu, *, k: int, stride: int) -> Any:
    """out[row, i] = q[row, i] * scale[row]"""
    e = Emitter(symbol)
    rows, out = e.pointer("rows", "u8"), e.pointer("out", "f32")
    words = e.alias(rows, "float32")
    with e.loop(e.begin, e.end, "row") as row:
        start, target = e.let(row * stride), e.let(row * k)
        scale = splat(row_scale(e, words, row, k, stride))

        def widen(at: Expr, mask: Expr | None) -> None:
            e.store(out, target + at, level_of(e, rows, start + at) * scale, mask)

        columns(e, k, widen)
    return e.function()


def row_scale(e: Emitter, words: Buffer, row: Expr, k: int, stride: int) -> Expr:
    """The scale of a packed row of k values in `stride` bytes; `words` is the rows' memory as float32."""
    return e.load(words, e.let(row * (stride // 4) + scale_offset(k) // 4))


def store_scale(e: Emitter, words: Buffer, row: Expr, k: int, scale: Expr, stride: int = 0) -> None:
    """The scale of a packed row of k values in `stride` bytes, and zeros to its end.

    By default the row is one that a product reads.
    """
    stride = stride or line_stride(k)
    tail = e.let(row * (stride // 4) + scale_offset(k) // 4)
    for i in range((stride - scale_offset(k)) // 4):
        e.store(words, tail + i, f32(0.0) if i else scale)


def level_of(e: Emitter, rows: Buffer, at: Expr) -> Expr:
    """16 quantised values as float32."""
    wide = tirx.Cast("int32x16", e.load(rows, at, LANES)) - splat(tirx.const(ZERO, "int32"))
    return e.let(tirx.Cast("float32x16", wide))


def scales_of(
    e: Emitter, x: Buffer, starts: Sequence[Expr], k: int, levels: float = LEVELS, tiny: float = TINY
) -> list[Expr]:
    """max |x| / levels of the k values from each of `starts` on, 1 for a row of zeros, NaN if there is one."""
    top = e.registers(len(starts), "int32x16")
    for row in range(len(starts)):
        e.set(top, row, splat(tirx.const(0, "int32")))

    def widest(at: Expr, mask: Expr | None) -> None:
        for row, start in enumerate(starts):
            e.set(top, row, tirx.max(e.get(top, row), magnitude(e, e.load(x, start + at, LANES, mask))))

    columns(e, k, widest)
    tops = [e.fold(e.let(e.get(top, row)), tirx.max) for row in range(len(starts))]
    return [scale_of(e, most, levels, tiny) for most in tops]


def magnitude(e: Emitter, x: Expr) -> Expr:
    """|x| of 16 floats as integers, which compare as the floats do, with NaN above all."""
    bits = tirx.reinterpret("int32x16", x)
    return e.let(tirx.bitwise_and(bits, splat(tirx.const(0x7FFFFFFF, "int32"))))


def scale_of(e: Emitter, largest: Expr, levels: float = LEVELS, tiny: float = TINY) -> Expr:
    """The scale of values whose largest `magnitude` is given, one or 16: that / levels, 1 if below `tiny`."""
    lanes = lanes_of(largest)
    most = tirx.reinterpret(vector("float32", lanes), largest)
    scale = e.let(most / splat(f32(float(levels)), lanes))
    return e.let(tirx.Select(scale < splat(f32(tiny), lanes), splat(f32(1.0), lanes), scale))


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "row_scale": lower_row_scale,
    "quantize_rows": lower_quantize_rows,
    "dequantize_rows": lower_dequantize_rows,
}
