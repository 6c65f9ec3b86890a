"""Rows of float32 in parts of 8 bits; `compiler/ops/split.py` and `int16.py` say how they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.graph import Node
from llmc.compiler.ops import int8_blocks, int16, quantise, split
from llmc.compiler.ops.rows import ZERO, line_stride
from llmc.compiler.ops.split import part_size
from llmc.targets.cpu.rows.quantised import row_call, row_length, scales_of, store_scale
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, i64, splat
from llmc.targets.tir.grid import by_rows, columns
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import to_level

ROWS = 2  # split together: what one waits for, the other fills


@dataclass(frozen=True)
class _Parts:
    """How rows are written as fixed point: levels of x * unit / scale, in `count` bytes each.

    Args:
        limit: the largest level.
        top: the scale is the largest magnitude / top, unless that is below `tiny`.
    """

    count: int
    unit: float
    limit: float
    top: float
    tiny: float

    @property
    def zero(self) -> int:
        """The parts of zero."""
        return sum(ZERO << 8 * part for part in range(self.count))


_SPLIT = _Parts(split.PARTS, split.UNIT, split.LIMIT, split.TOP, split.TINY)
_INT16 = _Parts(int16.PARTS, 1, int16.LIMIT, int16.LIMIT, quantise.TINY)


def _lower(node: Node, parts: _Parts) -> Call:
    """One item is one row."""
    (x,) = node.inputs
    k, block = row_length(x), node.attributes.get("block", 0)
    emit = partial(emit_rows, k=k, parts=parts, block=block)
    kernel = Kernel(node.op, (k, block) if block else k, ("f32", "u8"), 0, emit)
    return row_call(node, kernel, x, k)


def emit_rows(symbol: str, cpu: Cpu, *, k: int, parts: _Parts, block: int = 0) -> Any:
    """Each row of x as bytes of its parts, its scale, and the sums of its blocks, if there is a `block`."""
    e = Emitter(symbol)
    x, out = e.pointer("x", "f32"), e.pointer("out", "u8")
    words = e.alias(out, "float32")
    part, size = part_size(k), parts.count * part_size(k)
    stride = int16.row_bytes(k, block) if block else line_stride(size)

    def several(rows: list[Expr]) -> None:
        starts = [e.let(row * k) for row in rows]
        targets = [e.let(row * stride) for row in rows]
        scales = scales_of(e, x, starts, k, parts.top, parts.tiny)
        inverses = [e.let(splat(e.let(f32(float(parts.unit)) / scale))) for scale in scales]

        def convert(at: Expr, mask: Expr | None) -> None:
            for start, target, inverse in zip(starts, targets, inverses, strict=True):
                # past the end a load gives 0, which is the padding wanted
                fixed = to_level(e, e.load(x, start + at, LANES, mask), inverse, float(parts.limit))
                fixed = e.let(fixed + splat(tirx.const(parts.zero, "int32")))
                for number in range(parts.count):
                    shift = splat(tirx.const(8 * (parts.count - 1 - number), "int32"))
                    byte = tirx.Cast(f"uint8x{LANES}", e.let(tirx.shift_right(fixed, shift)))
                    e.store(out, target + number * part + at, _flipped(e, byte) if block else byte)

        columns(e, k, convert)
        for row, target, scale in zip(rows, targets, scales, strict=True):
            for at in range(-(-k // LANES) * LANES, part, LANES):
                for number in range(parts.count):
                    zero = tirx.const(0 if block else ZERO, "uint8")
                    e.store(out, target + number * part + at, splat(zero))
            store_scale(e, words, row, size, scale, stride)
            if block:
                _sum_blocks(e, out, target, k, block)

    by_rows(e, ROWS, several)
    return e.function()


def _flipped(e: Emitter, byte: Expr) -> Expr:
    """16 bytes less 128, as signed ones."""
    return e.let(tirx.bitwise_xor(e.let(byte), splat(tirx.const(ZERO, "uint8"))))


def _sum_blocks(e: Emitter, out: Buffer, row: Expr, k: int, block: int) -> None:
    """The sums of a row's levels behind its scale."""
    sums, signed, wide = e.alias(out, "int32"), e.alias(out, "int8"), f"int32x{LANES}"
    to = e.let(div(row + int16.sums_offset(k), 4))
    with e.loop(0, -(-k // block), "block") as number:
        total = e.registers(1, wide)
        e.set(total, 0, splat(tirx.const(0, "int32")))
        first = e.let(row + number * block)
        # past the end of a row there are zeros
        with e.loop(0, _vectors(e, k, block, number), "vector") as vector:
            at = e.let(first + vector * LANES)
            bytes_ = (e.load(signed, at + i * part_size(k), LANES) for i in range(2))
            high, low = (e.let(tirx.Cast(wide, byte)) for byte in bytes_)
            level = e.let(e.let(tirx.shift_left(high, splat(tirx.const(8, "int32")))) + low)
            e.set(total, 0, e.get(total) + level)
        e.store(sums, to + number, e.fold(e.let(e.get(total)), lambda a, b: a + b))


def _vectors(e: Emitter, k: int, block: int, number: Expr) -> Expr:
    """Vectors of a block of a row."""
    return e.let(div(tirx.min(i64(block), i64(k) - number * block) + (LANES - 1), LANES))


def lower_int8_rows(node: Node) -> Call:
    """One item is one row."""
    (x,) = node.inputs
    k, block = row_length(x), int(node.attributes["block"])
    kernel = Kernel(node.op, (k, block), ("f32", "u8"), 0, partial(emit_int8_rows, k=k, block=block))
    return row_call(node, kernel, x, k)


def emit_int8_rows(symbol: str, cpu: Cpu, *, k: int, block: int) -> Any:
    """Each row of x as signed bytes, with the sums and the scales of its blocks."""
    e = Emitter(symbol)
    x, out = e.pointer("x", "f32"), e.pointer("out", "u8")
    words, stride, whole = e.alias(out, "float32"), int8_blocks.row_bytes(k, block), k // block
    with e.loop(e.begin, e.end, "row") as row:
        start, target = e.let(row * k), e.let(row * stride)
        for at in range(-(-k // LANES) * LANES, part_size(k), LANES):
            e.store(out, target + at, splat(tirx.const(0, "uint8")))
        store_scale(e, words, row, part_size(k), f32(1.0), stride)
        to = e.let(div(target + int8_blocks.sums_offset(k), 4))
        count = -(-k // block)
        with e.loop(0, whole, "block") as number:
            first = e.let(number * block)
            _one_block(e, (x, start + first), (out, target + first), (to + number, count), block)
        if k % block:
            first = i64(whole * block)
            _one_block(e, (x, start + first), (out, target + first), (to + whole, count), k % block)
    return e.function()


def _one_block(
    e: Emitter, source: tuple[Buffer, Expr], target: tuple[Buffer, Expr], tail: tuple[Expr, int], length: int
) -> None:
    """Its levels, and behind the row their sum, and their scale `tail[1]` words further."""
    (x, start), (out, to) = source, target
    x_at, out_at, tail_at = e.let(start), e.let(to), e.let(tail[0])
    signed, sums, floats = e.alias(out, "int8"), e.alias(out, "int32"), e.alias(out, "float32")
    (scale,) = scales_of(e, x, [x_at], length)
    inverse = e.let(splat(e.let(f32(1.0) / scale)))
    total = e.registers(1, f"int32x{LANES}")
    e.set(total, 0, splat(tirx.const(0, "int32")))

    def convert(at: Expr, mask: Expr | None) -> None:
        # past the end a load gives 0, which is the padding wanted
        level = to_level(e, e.load(x, x_at + at, LANES, mask), inverse)
        e.set(total, 0, e.get(total) + level)
        e.store(signed, out_at + at, tirx.Cast(f"int8x{LANES}", level))

    columns(e, length, convert)
    e.store(sums, tail_at, e.fold(e.let(e.get(total)), lambda a, b: a + b))
    e.store(floats, tail_at + tail[1], scale)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "split_rows": partial(_lower, parts=_SPLIT),
    "int16_rows": partial(_lower, parts=_INT16),
    "int8_rows": lower_int8_rows,
}
