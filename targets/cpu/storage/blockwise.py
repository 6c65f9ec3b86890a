"""`blockwise` on CPUs: levels of 8 or 4 bits and a scale for each block of a row, decoded in registers.

Two levels of 4 bits that follow each other in a row share a byte, those of sixteen columns lie side by side. So a load
gives sixteen columns of two steps of k, and no lanes are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.graph import Node
from llmc.compiler.ops.storage import packed_bytes, unpack_indices
from llmc.targets.cpu.storage.packing import pack_panels
from llmc.targets.cpu.storage.panels import Lines, Stored, decode_lines, rows_call
from llmc.targets.lowering import Lowerings
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import (
    LANES,
    Buffer,
    Emitter,
    Expr,
    div,
    dtype_of,
    f32,
    fma,
    i64,
    mod,
    splat,
    vector,
)
from llmc.targets.tir.later import tirx

AHEAD = 4096  # bytes of a panel that are asked for before they are needed
LINE_BYTES = 64  # of a cache

_PICK = "llvm.x86.avx512.permvar.sf.512"

Array = np.ndarray[Any, Any]


def panels(weight: Node, width: int) -> Stored:
    """Levels and scales by panels."""
    columns, bits, block = (weight.attributes[name] for name in ("columns", "bits", "block"))
    levels, *by_block = (i.attributes["value"] for i in weight.inputs)
    pack = _signed if bits == 8 else _pairs
    operands = (
        Packed(levels, f"levels{bits} {width}", partial(pack, columns=columns, width=width)),
        *(Packed(part, f"panels{width}", partial(pack_panels, width=width)) for part in by_block),
    )
    step = 1 if bits == 8 else 2
    blocks, zeros = -(-columns // block), len(by_block) > 1
    values = partial(_values, lines=-(-columns // step), width=width)
    of_halves = _of_halves_around if zeros else _of_halves
    of_bytes = _of_bytes_around if zeros else _of_bytes
    lines = Lines(
        columns,
        width,
        block,
        step,
        partial(_scales, blocks=blocks, width=width, bits=bits),
        partial(values, decode=of_bytes if bits == 8 else of_halves),
        partial(values, decode=_looked_up) if bits == 4 and not zeros else None,
    )
    dtypes = ("i8" if bits == 8 else "u8", *(i.dtype for i in weight.inputs[1:]))
    kind = f"blockwise{bits} {block} {' '.join(dtypes[1:])}"
    return Stored(kind, operands, dtypes, partial(decode_lines, lines=lines), lines)


def _signed(levels: Array, *, columns: int, width: int) -> Array:
    """u8 `[n, k]`, 128 for 0 -> i8 `[panels, k, width]`."""
    return pack_panels(np.bitwise_xor(levels, 128).view(np.int8), width)


def _pairs(levels: Array, *, columns: int, width: int) -> Array:
    """u8 `[n, ceil(k / 2)]` -> u8 `[panels, ceil(k / 2), width]`: of step k the low half, of k + 1 the high one."""
    indices = unpack_indices(levels, columns + columns % 2, 4)
    return pack_panels(np.ascontiguousarray(indices[:, ::2] | (indices[:, 1::2] << 4)), width)


def _scales(
    e: Emitter, parts: list[Buffer], panel: Expr, block: Expr, *, blocks: int, width: int, bits: int
) -> list[Expr]:
    """The scale of each column of a panel in a block; behind them what a level of 0 stands for, where it is exact, or
    which stands for 0, where the block says that.
    """
    line = e.let((panel * blocks + block) * width)
    found = [e.load(parts[1], line + at, LANES) for at in range(0, width, LANES)]
    halves = dtype_of(found[0]).startswith("float16")
    if halves:
        found = [e.let(tirx.Cast(f"float32x{LANES}", scale)) for scale in found]
    if len(parts) > 2:
        return found + _zeros(e, parts[2], panel, block, blocks, width, bits)
    if not halves:
        return found
    return found + [e.let(scale * splat(f32(-8.0))) for scale in found] if bits == 4 else found


def _zeros(
    e: Emitter, zeros: Buffer, panel: Expr, block: Expr, blocks: int, width: int, bits: int
) -> list[Expr]:
    """The zero points of each column of a panel in a block, as float32; of 8 bits less 128, as the levels are."""
    first = e.let(panel * width)
    found = [zeros_of(e, zeros, first, i64(at), block, blocks, width, bits) for at in range(0, width, LANES)]
    if bits == 8:
        found = [e.let(zero - splat(tirx.const(128, "int32"))) for zero in found]
    return [e.let(tirx.Cast(f"float32x{LANES}", zero)) for zero in found]


def zeros_of(
    e: Emitter,
    zeros: Buffer,
    first: Expr,
    column: Expr,
    block: Expr,
    blocks: int,
    width: int,
    bits: int,
    lanes: int = LANES,
) -> Expr:
    """The zero points of `lanes` columns in a block as int32, from the `column`th of the panel that `first` begins."""
    each = 8 // bits
    at = e.let(first * -(-blocks // each) + div(block, each) * width + column)
    wide = e.let(tirx.Cast(vector("int32", lanes), e.load(zeros, at, lanes)))
    if bits == 8:
        return wide
    shift = splat(e.let(tirx.Cast("int32", mod(block, 2) * 4)), lanes)
    return e.let(tirx.bitwise_and(tirx.shift_right(wide, shift), splat(tirx.const(15, "int32"), lanes)))


Decode = Callable[[Emitter, Expr, list[Expr], int, int], list[Expr]]


def _values(
    e: Emitter,
    parts: list[Buffer],
    panel: Expr,
    line: Expr,
    vector: int,
    scales: list[Expr],
    *,
    lines: int,
    width: int,
    decode: Decode,
) -> list[Expr]:
    """Sixteen columns of the steps of a line, as `decode` makes them of its bytes; those further on are asked for."""
    at = e.let((panel * lines + line) * width + vector * LANES)
    packed = e.load(parts[0], at, LANES)
    if vector * LANES % LINE_BYTES == 0:
        e.prefetch(parts[0], at + AHEAD)
    return decode(e, packed, scales, vector, width // LANES)


def _of_bytes(e: Emitter, packed: Expr, scales: list[Expr], vector: int, vectors: int) -> list[Expr]:
    """Of levels of 8 bits, one step."""
    return [e.let(_float(packed) * scales[vector])]


def _of_bytes_around(e: Emitter, packed: Expr, scales: list[Expr], vector: int, vectors: int) -> list[Expr]:
    """The same, less their zero points."""
    return [e.let(e.let(_float(packed) - scales[vectors + vector]) * scales[vector])]


def _of_halves_around(e: Emitter, packed: Expr, scales: list[Expr], vector: int, vectors: int) -> list[Expr]:
    """`_of_halves`, less their zero points."""
    wide = e.let(tirx.Cast(f"int32x{LANES}", packed))
    low = e.let(tirx.bitwise_and(wide, splat(tirx.const(15, "int32"))))
    high = e.let(tirx.shift_right(wide, splat(tirx.const(4, "int32"))))
    floats = [tirx.Cast(f"float32x{LANES}", half) for half in (low, high)]
    return [e.let(e.let(value - scales[vectors + vector]) * scales[vector]) for value in floats]


def _of_halves(e: Emitter, packed: Expr, scales: list[Expr], vector: int, vectors: int) -> list[Expr]:
    """Of levels of 4 bits, two steps."""
    wide = e.let(tirx.Cast(f"int32x{LANES}", packed))
    low = tirx.bitwise_and(wide, splat(tirx.const(15, "int32")))
    high = tirx.shift_right(wide, splat(tirx.const(4, "int32")))
    scale = scales[vector]
    if len(scales) > vectors:  # (level - 8) scale = level scale - 8 scale, exact before it is rounded once
        zero = scales[vectors + vector]
        return [e.let(fma(tirx.Cast(f"float32x{LANES}", half), scale, zero)) for half in (low, high)]
    middle = splat(tirx.const(8, "int32"))
    return [e.let(tirx.Cast(f"float32x{LANES}", e.let(half - middle)) * scale) for half in (low, high)]


def _looked_up(e: Emitter, packed: Expr, scales: list[Expr], vector: int, vectors: int) -> list[Expr]:
    """The same: `vpermps` picks one of sixteen floats by the last 4 bits of an index, whatever stands before them.

    So nothing is masked, converted or moved by 8.
    """
    wide = e.let(tirx.Cast(f"int32x{LANES}", packed))
    levels = tirx.Ramp(tirx.const(-8, "int32"), tirx.const(1, "int32"), LANES)
    floats = e.let(tirx.Cast(f"float32x{LANES}", levels))
    halves = wide, e.let(tirx.shift_right(wide, splat(tirx.const(4, "int32"))))
    picked = [tirx.call_llvm_pure_intrin(f"float32x{LANES}", _PICK, floats, half) for half in halves]
    return [e.let(e.let(value) * scales[vector]) for value in picked]


def _float(levels: Expr) -> Expr:
    return tirx.Cast(f"float32x{LANES}", tirx.Cast(f"int32x{LANES}", levels))


# --- rows by themselves


def lower_blockwise(node: Node) -> Call:
    """One item is one row, which may be computed: rows looked up in a table."""
    columns, bits, block = (node.attributes[name] for name in ("columns", "bits", "block"))
    dtypes = tuple(i.dtype for i in node.inputs)
    emit = partial(emit_blockwise, columns=columns, bits=bits, block=block, dtypes=dtypes)
    kernel = Kernel("blockwise", (columns, bits, block, *dtypes[1:]), (*dtypes, "f32"), 0, emit)
    return rows_call(node, kernel, (*node.inputs, node), columns * (4 + bits / 8))


def emit_blockwise(
    symbol: str, cpu: Cpu, *, columns: int, bits: int, block: int, dtypes: tuple[str, ...]
) -> Any:
    """out[row, c] = (levels[row, c] - zero) * scales[row, c // block]"""
    e = Emitter(symbol)
    levels, scales, *zeros = (
        e.pointer(name, dtype) for name, dtype in zip(("levels", "scales", "zeros"), dtypes, strict=False)
    )
    out = e.pointer("out", "f32")
    stride, blocks, each = packed_bytes(columns, bits), -(-columns // block), 8 // bits

    def number(byte: Expr, half: Expr | int) -> Expr:
        shift = i64(half * bits) if isinstance(half, int) else half * bits
        return tirx.bitwise_and(tirx.shift_right(byte, shift), i64((1 << bits) - 1))

    with e.loop(e.begin, e.end, "row") as row, e.loop(0, stride, "at") as at:
        byte = e.let(tirx.Cast("int64", e.load(levels, row * stride + at)))
        for half in range(each):
            column = e.let(at * each + half)
            with e.when(column < i64(columns)):
                of_block = e.let(div(column, block))
                scale = tirx.Cast("float32", e.load(scales, row * blocks + of_block))
                zero = f32(float(1 << (bits - 1)))
                if zeros:
                    line = e.let(row * packed_bytes(blocks, bits) + div(of_block, each))
                    held = e.let(tirx.Cast("int64", e.load(zeros[0], line)))
                    zero = e.let(tirx.Cast("float32", number(held, mod(of_block, each))))
                level = tirx.Cast("float32", number(byte, half))
                e.store(out, row * columns + column, e.let(e.let(level - zero) * scale))
    return e.function()


LOWERINGS: Lowerings = {"blockwise": lower_blockwise}
