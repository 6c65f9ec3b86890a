"""Compressed weights: products that decode a panel into scratch memory, and rows decoded by themselves.

A product's item is (panel, block of rows): its panel is decoded once, f32 `[k][width]`, and then runs through
the same tiles as a dense one (linear.py). So a product has the bits of the dense product of the decoded
weight on every CPU, and reads as many bytes as are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import sympy
from tvm import tirx

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import OPS
from llmc.compiler.ops.storage import DECODERS, unpack_indices
from llmc.errors import LlmcError
from llmc.targets import Cpu
from llmc.targets.cpu.products import linear
from llmc.targets.cpu.products.blocking import Blocking, ProductShape, Schedule, panel_width
from llmc.targets.cpu.products.linear import pack_panels, pad_columns, tile_shape
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, i64, splat
from llmc.targets.tir.epilogue import finish
from llmc.targets.tir.tiling import tiles, zeros

ROWS_PER_ITEM = 192  # decoding a panel costs about as much as multiplying it by 24 rows
DECODE_COST = 24

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stored:
    """How a compressed weight lies in memory: `kind` is "codebook8", "codebook4" or "bitmask"."""

    kind: str
    operands: tuple[Packed, ...]
    dtypes: tuple[str, ...]


# --- layouts


def pack_nibbles(indices: Array, width: int) -> Array:
    """u8 `[n, k]` below 16 -> `[panels, k, width / 2]`: byte j of 8 holds lanes j and j + 8 of a vector."""
    panels = pack_panels(indices, width)
    lanes = panels.reshape(*panels.shape[:2], width // LANES, 2, LANES // 2)
    return np.ascontiguousarray(lanes[..., 0, :] | (lanes[..., 1, :] << 4)).reshape(*panels.shape[:2], -1)


def pad_book(values: Array, size: int) -> Array:
    """A value for every index there can be: the last one repeated."""
    return np.pad(values, (0, size - len(values)), mode="edge")


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


def _stored(weight: Node, width: int) -> Stored:
    if any(i.op != "constant" for i in weight.inputs):
        raise LlmcError("linear: the weight is computed at run time")
    held: list[Weight] = [i.attributes["value"] for i in weight.inputs]
    if weight.op == "bitmask":
        dense = Weight(OPS["bitmask"].reference(*(w.array for w in held), **weight.attributes), held[1].name)
        layouts = (("masks", panel_masks), ("values", panel_values), ("starts", panel_starts))
        packed = tuple(Packed(dense, f"{name}{width}", partial(pack, width=width)) for name, pack in layouts)
        return Stored("bitmask", packed, ("u8", "f32", "i64"))
    columns, bits = weight.attributes["columns"], weight.attributes["bits"]
    pack = pack_panels if bits == 8 else pack_nibbles

    def indices(packed: Array) -> Array:
        return pack(unpack_indices(packed, columns, bits), width)

    return Stored(
        f"codebook{bits}", (Packed(held[0], f"indices{width}", indices), _book(held[1], bits)), ("u8", "f32")
    )


def _book(values: Weight, bits: int) -> Packed:
    return Packed(values, f"book{bits}", partial(pad_book, size=1 << bits))


# --- products


def lower_linear(node: Node, schedules: Mapping[ProductShape, Schedule] = MappingProxyType({})) -> Call:
    """`linear` with a compressed weight; with a dense one, linear.py's, by these schedules."""
    x, w, *extras = node.inputs
    if w.op not in DECODERS:
        return linear.lower_linear(node, schedules)
    n, k = (int(d) for d in w.shape)
    width, epilogue = panel_width(n), node.attributes["epilogue"]
    stored = _stored(w, width)
    reading = [s for s in epilogue if s in ("bias", "residual")]
    given = [_extra(step, extra, width) for step, extra in zip(reading, extras, strict=True)]
    rows = product(x.shape[:-1])
    blocks, panels = ceil_div(rows, ROWS_PER_ITEM), -(-n // width)
    kernel = Kernel(
        "linear_decoded",
        (n, k, width, epilogue, stored.kind),
        ("f32", *stored.dtypes, *("f32",) * (len(given) + 1)),
        1,
        partial(emit_linear, n=n, k=k, width=width, epilogue=epilogue, stored=stored),
        scratch=4 * k * width,
    )
    cost = k * (width // LANES) * (sympy.Min(rows, ROWS_PER_ITEM) + DECODE_COST)
    read = sum(p.pack(p.weight.array).nbytes for p in stored.operands)
    return Call(
        kernel,
        (x, *stored.operands, *given, node),
        (rows,),
        panels * blocks,
        cost,
        2 * rows * n * k,
        4 * rows * (k + n) + read,
        node.source,
    )


def _extra(step: str, extra: Node, width: int) -> Node | Packed:
    if step == "residual":
        return extra
    if extra.op != "constant":
        raise LlmcError("linear: the bias is computed at run time")
    return Packed(extra.attributes["value"], f"pad{width}", partial(pad_columns, width=width))


def emit_linear(
    symbol: str, cpu: Cpu, *, n: int, k: int, width: int, epilogue: tuple[str, ...], stored: Stored
) -> Any:
    """out[m, n] = epilogue(x[m, k] . decoded[n, k]^T)"""
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    parts = [e.pointer(f"part{i}", dtype) for i, dtype in enumerate(stored.dtypes)]
    extras = [e.pointer(step, "f32") for step in epilogue if step in ("bias", "residual")]
    out, m = e.pointer("out", "f32"), e.scalar("m")
    held = e.scratch()
    cut = Blocking.of(k, width, ROWS_PER_ITEM)
    store = partial(finish, e, n=n, width=width, epilogue=epilogue, extras=extras, out=out)
    rows, vectors = tile_shape(cpu, width)
    blocks = e.let(div(m + (ROWS_PER_ITEM - 1), ROWS_PER_ITEM))
    with e.loop(e.begin, e.end, "item") as item:
        panel = e.let(div(item, blocks))
        first = e.let((item - panel * blocks) * ROWS_PER_ITEM)
        count = e.let(tirx.min(i64(ROWS_PER_ITEM), m - first))
        _DECODE[stored.kind](e, cpu, parts, panel, held, k * width // LANES)
        for part in range(0, width // LANES, vectors):

            def tile(row: Expr, height: int, part: int = part, panel: Expr = panel) -> None:
                here = min(vectors, width // LANES - part)
                acc, steps = zeros(e, height * here), i64(k // cut.unroll)
                start, column = i64(part * LANES), e.let(panel * width + part * LANES)
                linear.multiply(e, cut, acc, x, e.let(row * k), held, start, height, here, steps)
                store(acc, row, column, height, here)

            tiles(e, first, count, rows, tile)
    return e.function()


def _decode_bytes(e: Emitter, cpu: Cpu, parts: list[Buffer], panel: Expr, held: Buffer, count: int) -> None:
    indices, book = parts
    with e.loop(0, count, "v") as v:
        at = e.let((panel * count + v) * LANES)
        e.store(held, v * LANES, _look_up(book, e.load(indices, at, LANES), LANES))


def _decode_nibbles(e: Emitter, cpu: Cpu, parts: list[Buffer], panel: Expr, held: Buffer, count: int) -> None:
    indices, book = parts
    half = LANES // 2
    low, shift = (tirx.Broadcast(tirx.const(v, "uint8"), half) for v in (15, 4))
    with e.loop(0, count, "v") as v:
        pair = e.load(indices, e.let((panel * count + v) * half), half)
        for i, index in enumerate((tirx.bitwise_and(pair, low), tirx.shift_right(pair, shift))):
            e.store(held, v * LANES + i * half, _look_up(book, e.let(index), half))


def _look_up(book: Buffer, index: Expr, lanes: int) -> Expr:
    return tirx.BufferLoad(book, [tirx.Cast(f"int32x{lanes}", index)])


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


_DECODE: Mapping[str, Callable[[Emitter, Cpu, list[Buffer], Expr, Buffer, int], None]] = {
    "codebook8": _decode_bytes,
    "codebook4": _decode_nibbles,
    "bitmask": _decode_mask,
}


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
    return _rows(node, kernel, operands, columns * (4 + bits / 8))


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


def lower_bitmask(node: Node) -> Call:
    """One item is one row."""
    mask, values = node.inputs
    if mask.op != "constant" or values.op != "constant":
        raise LlmcError("bitmask: the weight is computed at run time")
    columns = node.attributes["columns"]
    held: Weight = mask.attributes["value"]
    kernel = Kernel(
        "bitmask", (columns,), ("u8", "i64", "f32", "f32"), 0, partial(emit_bitmask, columns=columns)
    )
    starts = Packed(held, f"starts of {columns}", partial(row_starts, columns=columns))
    return _rows(node, kernel, (mask, starts, values, node), columns * 5)


def row_starts(mask: Array, columns: int) -> Array:
    """i64 `[r]`: how many bits are set before each row."""
    counts = np.unpackbits(mask, axis=-1, count=columns, bitorder="little").sum(-1, dtype=np.int64)
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def emit_bitmask(symbol: str, cpu: Cpu, *, columns: int) -> Any:
    """out[row, c] = the next value where the bit is set, else 0"""
    e = Emitter(symbol)
    mask, starts = e.pointer("mask", "u8"), e.pointer("starts", "i64")
    values, out = e.pointer("values", "f32"), e.pointer("out", "f32")
    position = e.registers(1, "int64")
    with e.loop(e.begin, e.end, "row") as row:
        e.set(position, 0, e.load(starts, row))
        with e.loop(0, columns, "c") as c:
            byte = tirx.Cast("int64", e.load(mask, row * -(-columns // 8) + div(c, 8)))
            bit = e.let(tirx.bitwise_and(tirx.shift_right(byte, tirx.bitwise_and(c, i64(7))), i64(1)))
            e.store(out, row * columns + c, f32(0.0))
            with e.when(bit == i64(1)):
                e.store(out, row * columns + c, e.load(values, e.let(e.get(position))))
            e.set(position, 0, e.get(position) + bit)
    return e.function()


def _rows(node: Node, kernel: Kernel, operands: tuple[Any, ...], moved: float) -> Call:
    rows = product(node.shape[:-1])
    columns = int(node.shape[-1])
    return Call(kernel, operands, (), rows, columns, 0, rows * int(moved), node.source)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "linear": lower_linear,  # before linear.py's, which has the dense ones
    "codebook": lower_codebook,
    "bitmask": lower_bitmask,
}


def decoded_by_readers(node: Node, users: tuple[Node, ...]) -> bool:
    """Whether a compressed weight needs no memory of its own: its readers decode it themselves."""
    return node.op in DECODERS and all(u.op == "linear" and u.inputs[0] is not node for u in users)
