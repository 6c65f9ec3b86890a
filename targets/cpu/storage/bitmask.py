"""`bitmask` on CPUs: a bit for each value, and the values that are not zero."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import OPS
from llmc.errors import LlmcError
from llmc.targets.cpu.storage.packing import pack_panels
from llmc.targets.cpu.storage.panels import Stored, rows_call
from llmc.targets.lowering import Lowerings
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, i64, splat
from llmc.targets.tir.later import tirx

Array = np.ndarray[Any, Any]


def panels(weight: Node, width: int) -> Stored:
    """Masks and values by panels, and where each panel's values begin."""
    held: list[Weight] = [i.attributes["value"] for i in weight.inputs]
    dense = Weight(OPS["bitmask"].reference(*(w.array for w in held), **weight.attributes), held[1].name)
    layouts = (("masks", panel_masks), ("values", panel_values), ("starts", panel_starts))
    packed = tuple(Packed(dense, f"{name}{width}", partial(pack, width=width)) for name, pack in layouts)
    return Stored("bitmask", packed, ("u8", "f32", "i64"), _decode_mask)


def panel_masks(array: Array, width: int) -> Array:
    """f32 `[n, k]` -> u8 `[panels, k, width / 8]`, a bit for each value that is not zero."""
    return np.packbits(pack_panels(array, width) != 0, -1, bitorder="little")


def panel_values(array: Array, width: int) -> Array:
    """The values that are not zero, panel by panel, and a vector of zeros that may be read past the end."""
    panels = pack_panels(array, width)
    return np.concatenate([panels[panels != 0], np.zeros(LANES, np.float32)])


def panel_starts(array: Array, width: int) -> Array:
    """i64 `[panels]`: where each panel's values begin."""
    panels = pack_panels(array, width)
    counts = np.count_nonzero(panels.reshape(len(panels), -1), axis=1)
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def _decode_mask(e: Emitter, cpu: Cpu, parts: list[Buffer], panel: Expr, held: Buffer, count: int) -> None:
    """The next value for each set bit, zero for the others."""
    masks, values, starts = parts
    position = e.registers(1, "int64")
    e.set(position, 0, e.load(starts, panel))
    with e.loop(0, count, "v") as v:
        at = e.let((panel * count + v) * 2)
        low, high = (tirx.Cast("int32", e.load(masks, at + i)) for i in (0, 1))
        bits = e.let(tirx.bitwise_or(low, tirx.shift_left(high, tirx.const(8, "int32"))))
        if cpu.vectors >= 32:
            _expand(e, values, position, held, v, bits)
        else:
            _one_by_one(e, values, position, held, v, bits)


def _expand(e: Emitter, values: Buffer, position: Buffer, held: Buffer, v: Expr, bits: Expr) -> None:
    """One instruction reads as many values as bits are set."""
    lane = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), LANES)
    one, zero = splat(tirx.const(1, "int32")), splat(tirx.const(0, "int32"))
    mask = e.let(tirx.bitwise_and(tirx.shift_right(splat(bits), lane), one) != zero)
    start = e.let(e.get(position))
    source = tirx.address_of(tirx.BufferLoad(values, [start]))
    vector = tirx.call_llvm_intrin("float32x16", "llvm.masked.expandload", source, mask, splat(f32(0.0)))
    e.store(held, v * LANES, e.let(vector))
    e.set(position, 0, start + tirx.Cast("int64", tirx.popcount(bits)))


def _one_by_one(e: Emitter, values: Buffer, position: Buffer, held: Buffer, v: Expr, bits: Expr) -> None:
    """Without branches: the processor could not foretell them."""
    one = tirx.const(1, "int32")
    for lane in range(LANES):
        bit = e.let(tirx.bitwise_and(tirx.shift_right(bits, tirx.const(lane, "int32")), one))
        start = e.let(e.get(position))
        e.store(held, v * LANES + lane, tirx.Select(bit == one, e.load(values, start), f32(0.0)))
        e.set(position, 0, start + tirx.Cast("int64", bit))


# --- rows by themselves


def lower_bitmask(node: Node) -> Call:
    """One item is one row."""
    mask, values = node.inputs
    if mask.op != "constant" or values.op != "constant":
        raise LlmcError("bitmask: the weight is computed at run time")
    columns, height = node.attributes["columns"], node.attributes["height"]
    held: Weight = mask.attributes["value"]
    emit = partial(emit_bitmask, columns=columns, height=height)
    kernel = Kernel("bitmask", (columns, height), ("u8", "i64", "f32", "f32"), 0, emit)
    starts = Packed(held, f"starts of {columns}", partial(row_starts, columns=columns))
    return rows_call(node, kernel, (mask, starts, values, node), columns * 5)


def row_starts(mask: Array, columns: int) -> Array:
    """i64 `[r]`: how many bits are set before each row."""
    counts = np.unpackbits(mask, axis=-1, count=columns, bitorder="little").sum(-1, dtype=np.int64)
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def emit_bitmask(symbol: str, cpu: Cpu, *, columns: int, height: int) -> Any:
    """out[row, c] = the next value where the bit is set, else 0; `height` rows share their bits"""
    e = Emitter(symbol)
    mask, starts = e.pointer("mask", "u8"), e.pointer("starts", "i64")
    values, out = e.pointer("values", "f32"), e.pointer("out", "f32")
    position = e.registers(1, "int64")
    with e.loop(e.begin, e.end, "row") as row:
        shared = e.let(div(row, height))
        e.set(position, 0, e.load(starts, shared) * height + (row - shared * height))
        with e.loop(0, columns, "c") as c:
            byte = tirx.Cast("int64", e.load(mask, shared * -(-columns // 8) + div(c, 8)))
            bit = e.let(tirx.bitwise_and(tirx.shift_right(byte, tirx.bitwise_and(c, i64(7))), i64(1)))
            e.store(out, row * columns + c, f32(0.0))
            with e.when(bit == i64(1)):
                e.store(out, row * columns + c, e.load(values, e.let(e.get(position))))
            e.set(position, 0, e.get(position) + bit * height)
    return e.function()


LOWERINGS: Lowerings = {"bitmask": lower_bitmask}
