"""`codebook` on CPUs: indices of 8 or 4 bits, looked up in registers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops.storage import unpack_indices
from llmc.errors import LlmcError
from llmc.targets.cpu.storage.packing import pack_panels
from llmc.targets.cpu.storage.panels import Stored, rows_call
from llmc.targets.lowering import Lowerings
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, i64
from llmc.targets.tir.later import tirx

Array = np.ndarray[Any, Any]


def panels(weight: Node, width: int) -> Stored:
    """Indices by panels, and a value for every index there can be."""
    columns, bits = weight.attributes["columns"], weight.attributes["bits"]
    packed, values = (i.attributes["value"] for i in weight.inputs)
    pack = pack_panels if bits == 8 else pack_nibbles

    def indices(array: Array) -> Array:
        return pack(unpack_indices(array, columns, bits), width)

    decode = _decode_bytes if bits == 8 else _decode_nibbles
    operands = (Packed(packed, f"indices{width}", indices), _book(values, bits))
    return Stored(f"codebook{bits}", operands, ("u8", "f32"), decode)


def pack_nibbles(indices: Array, width: int) -> Array:
    """u8 `[n, k]` below 16 -> `[panels, k, width / 2]`: byte j of 8 holds lanes j and j + 8 of a vector."""
    panels = pack_panels(indices, width)
    lanes = panels.reshape(*panels.shape[:2], width // LANES, 2, LANES // 2)
    return np.ascontiguousarray(lanes[..., 0, :] | (lanes[..., 1, :] << 4)).reshape(*panels.shape[:2], -1)


def pad_book(values: Array, size: int) -> Array:
    """A value for every index there can be: the last one repeated."""
    return np.pad(values, (0, size - len(values)), mode="edge")


def _book(values: Weight, bits: int) -> Packed:
    return Packed(values, f"book{bits}", partial(pad_book, size=1 << bits))


def _decode_bytes(e: Emitter, cpu: Cpu, parts: list[Buffer], panel: Expr, held: Buffer, count: int) -> None:
    indices, book = parts
    with e.loop(0, count, "v") as v:
        at = e.let((panel * count + v) * LANES)
        e.store(held, v * LANES, _look_up(book, e.load(indices, at, LANES), LANES))


def _decode_nibbles(e: Emitter, cpu: Cpu, parts: list[Buffer], panel: Expr, held: Buffer, count: int) -> None:
    indices, book = parts
    half = LANES // 2
    with e.loop(0, count, "v") as v:
        for i, index in enumerate(halves(e, indices, e.let((panel * count + v) * half))):
            e.store(held, v * LANES + i * half, _look_up(book, e.let(index), half))


def halves(e: Emitter, packed: Buffer, at: Expr) -> tuple[Expr, Expr]:
    """Lanes 0 to 7 and 8 to 15, u8, of the vector at byte `at` of `pack_nibbles`."""
    half = LANES // 2
    low, shift = (tirx.Broadcast(tirx.const(v, "uint8"), half) for v in (15, 4))
    pair = e.load(packed, at, half)
    return tirx.bitwise_and(pair, low), tirx.shift_right(pair, shift)


def _look_up(book: Buffer, index: Expr, lanes: int) -> Expr:
    return tirx.BufferLoad(book, [tirx.Cast(f"int32x{lanes}", index)])


# --- rows by themselves


def lower_codebook(node: Node) -> Call:
    """One item is one row of indices, which may be computed: rows looked up in a table."""
    indices, values = node.inputs
    if values.op != "constant":
        raise LlmcError("codebook: the values are computed at run time")
    columns, bits = node.attributes["columns"], node.attributes["bits"]
    emit = partial(emit_codebook, columns=columns, bits=bits)
    kernel = Kernel("codebook", (columns, bits), ("u8", "f32", "f32"), 0, emit)
    operands = (indices, _book(values.attributes["value"], bits), node)
    return rows_call(node, kernel, operands, columns * (4 + bits / 8))


def emit_codebook(symbol: str, cpu: Cpu, *, columns: int, bits: int) -> Any:
    """out[row, c] = values[indices[row, c]]"""
    e = Emitter(symbol)
    indices, book, out = e.pointer("indices", "u8"), e.pointer("values", "f32"), e.pointer("out", "f32")
    stride = -(-columns * bits // 8)
    with e.loop(e.begin, e.end, "row") as row:
        start, target = e.let(row * stride), e.let(row * columns)
        with e.loop(0, stride, "at") as at:
            byte = e.let(tirx.Cast("int64", e.load(indices, start + at)))
            if bits == 8:
                e.store(out, target + at, e.load(book, byte))
            else:
                column = e.let(target + at * 2)
                e.store(out, column, e.load(book, tirx.bitwise_and(byte, i64(15))))
                with e.when(at * 2 + 1 < i64(columns)):
                    e.store(out, column + 1, e.load(book, tirx.shift_right(byte, i64(4))))
    return e.function()


LOWERINGS: Lowerings = {"codebook": lower_codebook}
