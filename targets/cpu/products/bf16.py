"""`bf16_linear`, and the rows it reads: products of bfloat16 with float32 sums, the same bits everywhere.

`compiler/ops/bf16.py` has the order of sums, which is that of the tile unit: `amx.py` multiplies 16 rows at a time, and
here is what others do. Weights lie as those of `qlinear` do: 4 bytes of each column together, which are two values.

The rows of a tile are widened once, into scratch memory, and then serve all columns of the panel as broadcast loads. A
block of 32 has two chains for each sum, and ends in one addition of both and one to the total.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import product
from llmc.compiler.graph import Node
from llmc.compiler.ops import bf16
from llmc.errors import LlmcError
from llmc.targets.cpu.products import amx
from llmc.targets.cpu.products.blocking import panel_width
from llmc.targets.cpu.products.dots import Tile, store
from llmc.targets.cpu.products.integer import Ahead, Item, Product, row_blocks, rows_of_block
from llmc.targets.cpu.products.linear import extra_operands
from llmc.targets.cpu.products.qlinear import pack_dots
from llmc.targets.cpu.rows.quantised import magnitude, row_call, row_length
from llmc.targets.cpu.storage.packing import pad_columns
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, fma, splat, vector
from llmc.targets.tir.grid import columns
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import ACTIVATIONS
from llmc.targets.tir.tiling import tiles

WIDTHS = (64, 32, 16)  # panel widths, best first
ROWS = 6  # of a tile: two chains for each sum
PAIRS = bf16.BLOCK // 2
_INFINITE = 0x7F800000  # magnitudes above are NaN
_LEAST = (127 - 50) << 23  # magnitudes below are 0

Array = np.ndarray[Any, Any]


def pack_pairs(halves: Array, width: int) -> Array:
    """bfloat16 u8 `[n, 2 k]` by panels of pairs, those that are too small as 0, whole blocks of k."""
    kept = bf16.kept(np.ascontiguousarray(halves).view("<u2")).astype("<u2")
    return pack_dots(kept.view(np.int8), width, padded(kept.shape[1]))


def padded(k: int) -> int:
    """Bytes of the whole blocks of k values."""
    return -(-k // bf16.BLOCK) * 2 * bf16.BLOCK


def lower_bf16_linear(node: Node) -> Call:
    """One call: items as those of `qlinear`."""
    rows_node, halves, *extras = node.inputs
    if halves.op != "constant":
        raise LlmcError(f"{node.op}: the weight is computed at run time")
    k, n, epilogue = int(node.attributes["columns"]), int(halves.shape[0]), node.attributes["epilogue"]
    width = panel_width(n, WIDTHS)
    operands: list[Any] = [
        rows_node,
        Packed(halves.attributes["value"], f"pairs{width}", partial(pack_pairs, width=width)),
        *extra_operands(node, extras, f"pad{width}", partial(pad_columns, width=width)),
    ]
    rows = product(node.shape[:-1])
    pointers = ("u8", "i8", *("f32",) * (len(extras) + 1))
    emit = partial(emit_bf16_linear, n=n, k=k, width=width, epilogue=epilogue)
    scratch = max(amx.scratch(), 2 * ROWS * padded(k))
    kernel = Kernel(node.op, (n, k, width, epilogue), pointers, 1, emit, scratch)
    return Call(
        kernel,
        (*operands, node),
        (rows,),
        -(-n // width) * row_blocks(rows),
        k * (width // LANES) * rows_of_block(rows),
        2 * rows * n * k,
        rows * (bf16.row_bytes(k) + 4 * n) + 2 * n * k,
        node.source,
    )


def emit_bf16_linear(symbol: str, cpu: Cpu, *, n: int, k: int, width: int, epilogue: tuple[str, ...]) -> Any:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T)"""
    e = Emitter(symbol)
    p = _Pairs(e, cpu, n, k, width, epilogue)
    scratch = e.scratch("int32")
    if cpu.tiles:
        amx.emit_floats(p, scratch)
        return e.function()
    wide = e.alias(scratch, "float32")
    with p.items() as item:
        tiles(e, item.first, item.count, ROWS, lambda row, h: _Rows(p, h, row, wide).panel(item))
    return e.function()


class _Pairs(Product):
    """The operands: k is in bytes."""

    def __init__(self, e: Emitter, cpu: Cpu, n: int, k: int, width: int, epilogue: tuple[str, ...]) -> None:
        self._shape(e, cpu, n, padded(k), width, epilogue)
        self.row_bytes = bf16.row_bytes(k)
        self.rows, self.w = e.pointer("rows", "u8"), e.pointer("pairs", "i8")
        self.extras = [e.pointer(step, "f32") for step in epilogue if step not in ACTIVATIONS]
        self.out, self.m, self.zero = e.pointer("out", "f32"), e.scalar("m"), None
        self._aliases()
        self.row_halves = e.alias(self.rows, "uint16")
        self._cut_rows()

    @property
    def stride(self) -> int:
        return self.row_bytes

    def scale_columns(self, column: Expr, lanes: int) -> Expr | None:
        return None

    def scale_of(self, row: Expr) -> Expr:
        return f32(1.0)

    def vectors(self, height: int) -> int:
        """Vectors of columns of a tile; a single row takes as many as the registers have sums for."""
        together = (4 if height == 1 else 2) if self.cpu.vectors == 32 else (2 if height == 1 else 1)
        return min(together, self.width // self.cpu.lanes)


class _Rows:
    """Writes the products of one tile's rows."""

    def __init__(self, p: _Pairs, height: int, row: Expr, wide: Buffer) -> None:
        self.p, self.e, self.row, self.wide = p, p.e, row, wide
        self.tile = Tile(height, p.vectors(height), p.cpu.lanes)
        self.length = p.k // 2  # of a widened row

    def panel(self, item: Item) -> None:
        """All columns of the item's panel; meanwhile the next one comes nearer."""
        e, p, tile = self.e, self.p, self.tile
        self._widen()
        ahead, share = item.part(e, self.row, tile.rows)
        count = tile.vectors * tile.lanes
        step = e.let(div(share, p.groups * (p.width // count)))
        for part in range(0, p.width, count):
            column = e.let(item.panel * p.width + part)
            soon = e.let(ahead + (part // count) * (step * p.groups))
            self.coming = p.coming(self.row, column, tile.rows, count)
            self._columns(column, part, Ahead(p, soon, step, near=tile.rows == 1))

    def _widen(self) -> None:
        """The rows as float32."""
        e, p = self.e, self.p
        with e.loop(0, self.tile.rows, "row") as i, e.loop(0, self.length // LANES, "vector") as at:
            base = e.let((self.row + i) * (p.stride // 2))
            halves = e.load(p.row_halves, base + at * LANES, LANES)
            e.store(
                self.wide, i * self.length + at * LANES, _upper(e, tirx.Cast(f"int32x{LANES}", halves), LANES)
            )

    def _columns(self, column: Expr, part: int, ahead: Ahead) -> None:
        """The sums of a tile, block by block, and what follows them."""
        e, p, tile = self.e, self.p, self.tile
        count = tile.rows * tile.vectors
        totals, weights = _zeros(e, count, tile.lanes), p.weights(column)
        offsets = [p.offset(part + j * tile.lanes) - p.offset(part) for j in range(tile.vectors)]
        with e.loop(0, self.length // bf16.BLOCK, "block") as block:
            even, odd = (_zeros(e, count, tile.lanes) for _ in range(2))
            with e.loop(0, PAIRS, "pair") as within:
                pair = e.let(block * PAIRS + within)
                here = e.let(weights + pair * p.strip)
                ahead.ask(tile.vectors * tile.lanes)
                self.coming.ask(pair)
                words = [e.load(p.w_words, here + at, tile.lanes) for at in offsets]
                self._multiply((even, odd), words, e.let(2 * pair))
            for i in range(count):
                both = e.let(e.get(even, i) + e.get(odd, i))
                e.set(totals, i, e.get(totals, i) + both)
        store(p, tile, totals, self.row, column)

    def _multiply(self, chains: tuple[Buffer, Buffer], words: list[Expr], k: Expr) -> None:
        """Both chains of each sum go on by the values k and k + 1 of a row."""
        e, tile = self.e, self.tile
        pairs = [(_upper(e, word, tile.lanes), _odd(e, word, tile.lanes)) for word in words]
        for i in range(tile.rows):
            for half, chain in enumerate(chains):
                a = e.let(splat(e.load(self.wide, k + (i * self.length + half)), tile.lanes))
                for j, pair in enumerate(pairs):
                    at = i * tile.vectors + j
                    e.set(chain, at, fma(a, pair[half], e.get(chain, at)))


def _upper(e: Emitter, words: Expr, lanes: int) -> Expr:
    """float32 of which the lower 16 bits of each int32 are the upper half."""
    moved = tirx.shift_left(e.let(words), splat(tirx.const(16, "int32"), lanes))
    return e.let(tirx.reinterpret(vector("float32", lanes), e.let(moved)))


def _odd(e: Emitter, words: Expr, lanes: int) -> Expr:
    """float32 of which the upper 16 bits of each int32 are the upper half."""
    left = tirx.bitwise_and(words, splat(tirx.const(-65536, "int32"), lanes))
    return e.let(tirx.reinterpret(vector("float32", lanes), e.let(left)))


def _zeros(e: Emitter, count: int, lanes: int) -> Buffer:
    sums = e.registers(count, vector("float32", lanes))
    for i in range(count):
        e.set(sums, i, splat(f32(0.0), lanes))
    return sums


def lower_bf16_rows(node: Node) -> Call:
    """One item is one row."""
    (x,) = node.inputs
    k = row_length(x)
    return row_call(node, Kernel(node.op, k, ("f32", "u8"), 0, partial(emit_bf16_rows, k=k)), x, k)


def emit_bf16_rows(symbol: str, cpu: Cpu, *, k: int) -> Any:
    """out[row] = x[row] rounded to bfloat16, then zeros"""
    e = Emitter(symbol)
    x, out = e.pointer("x", "f32"), e.pointer("out", "u8")
    halves, length = e.alias(out, "uint16"), bf16.row_bytes(k) // 2
    with e.loop(e.begin, e.end, "row") as row:
        start, target = e.let(row * k), e.let(row * length)

        def convert(at: Expr, mask: Expr | None, start: Expr = start, target: Expr = target) -> None:
            # past the end a load gives 0, which is the padding wanted
            e.store(halves, target + at, rounded(e, e.load(x, start + at, LANES, mask)))

        columns(e, k, convert)
        for at in range(-(-k // LANES) * LANES, length, LANES):
            e.store(halves, target + at, splat(tirx.const(0, "uint16")))
    return e.function()


def rounded(e: Emitter, x: Expr) -> Expr:
    """16 floats as bfloat16 to the nearest, half to even, u16: `bf16.rounded`."""
    bits, size = e.let(tirx.reinterpret("uint32x16", x)), e.let(magnitude(e, x))
    one, sixteen, half = (splat(tirx.const(value, "uint32")) for value in (1, 16, 0x7FFF))
    last = e.let(tirx.bitwise_and(e.let(tirx.shift_right(bits, sixteen)), one))
    upper = e.let(tirx.shift_right(e.let(bits + half + last), sixteen))
    nan, zero = (splat(tirx.const(value, "uint32")) for value in (0x7FC0, 0))
    number = e.let(tirx.Select(size > splat(tirx.const(_INFINITE, "int32")), nan, upper))
    large = e.let(tirx.Select(size < splat(tirx.const(_LEAST, "int32")), zero, number))
    return e.let(tirx.Cast("uint16x16", large))


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "bf16_rows": lower_bf16_rows,
    "bf16_linear": lower_bf16_linear,
}
