"""`int16_blockwise`, `int8_blockwise`: activations of 16 or 8 bits by weights in blocks, whose sums are exact.

Weights lie as those of `qlinear` do, 4 bytes of each column together; of 4 bits, two groups of 4 levels share these:
the first is in the low halves. Levels are taken unsigned, around a zero z: the row says what its blocks sum to
(`compiler/ops/int16.py`), and z times that comes off. ARM's instructions have signed bytes alone, and 8 bits have 128
taken off before. Where blocks have zeros of their own these lie as the scales do, of 4 bits those of two blocks in a
byte.

A block ends in floats: its sum times its scale, added to those of the blocks before it by one fused multiply-add.
Activations of 8 bits have a scale for each block too, by which that of the weights is multiplied before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import product
from llmc.compiler.graph import Node
from llmc.compiler.ops import int8_blocks, int16
from llmc.compiler.ops.split import part_size
from llmc.compiler.ops.storage import unpack_indices
from llmc.errors import LlmcError
from llmc.targets.cpu.products import amx, neon, widened
from llmc.targets.cpu.products.blocking import panel_width
from llmc.targets.cpu.products.dots import vnni
from llmc.targets.cpu.products.integer import (
    Ahead,
    Item,
    Product,
    row_blocks,
    rows_of_block,
    zero_sums,
)
from llmc.targets.cpu.products.linear import extra_operands
from llmc.targets.cpu.products.qlinear import pack_dots
from llmc.targets.cpu.storage.blockwise import zeros_of
from llmc.targets.cpu.storage.packing import pack_panels, pad_columns
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, dtype_of, f32, fma, i64, splat, vector
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import ACTIVATIONS
from llmc.targets.tir.tiling import tiles

WIDTHS = (64, 32, 16)  # panel widths, best first
_TOP = 0x80808080 - (1 << 32)  # the top bit of each byte of an int32

Array = np.ndarray[Any, Any]


def pack_levels(levels: Array, *, columns: int, bits: int, width: int) -> Array:
    """Levels u8 `[n, packed_bytes]` by panels of 4 bytes a column; of 4 bits, the k and k + 4 of 8 share a byte."""
    each = 4 * 8 // bits
    wide = np.pad(unpack_indices(levels, columns, bits), ((0, 0), (0, -columns % each)))
    if bits == 4:
        pairs = wide.reshape(len(wide), -1, 2, 4)
        wide = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(wide), -1)
    return pack_dots(wide.view(np.int8), width)


def _lower(node: Node, pieces: int) -> Call:
    """One call: items as those of `qlinear`. A level of a row has `pieces` bytes."""
    count = 3 + node.attributes["has_zeros"]
    (rows_node, levels, *by_block), extras = node.inputs[:count], node.inputs[count:]
    if any(part.op != "constant" for part in (levels, *by_block)):
        raise LlmcError(f"{node.op}: the weight is computed at run time")
    columns, bits, block = (int(node.attributes[name]) for name in ("columns", "bits", "block"))
    n, epilogue = int(levels.shape[0]), node.attributes["epilogue"]
    width = panel_width(n, WIDTHS)
    pack = partial(pack_levels, columns=columns, bits=bits, width=width)
    panels = partial(pack_panels, width=width)
    operands: list[Any] = [
        rows_node,
        Packed(levels.attributes["value"], f"dots{bits} {width}", pack),
        *(Packed(part.attributes["value"], f"panels{width}", panels) for part in by_block),
        *extra_operands(node, extras, f"pad{width}", partial(pad_columns, width=width)),
    ]
    rows = product(node.shape[:-1])
    dtypes = tuple(part.dtype for part in by_block)
    shape = (n, columns, bits, block, width, epilogue, dtypes, pieces)
    pointers = ("u8", "i8", *dtypes, *("f32",) * (len(extras) + 1))
    scratch = max(widened.scratch(part_size(columns)), amx.blocks_scratch())
    family = f"{node.op}8" if pieces == 2 and bits == 8 else node.op  # of which AMX has tiles
    kernel = Kernel(family, shape, pointers, 1, partial(emit_blocks, shape=shape), scratch)
    return Call(
        kernel,
        (*operands, node),
        (rows,),
        -(-n // width) * row_blocks(rows),
        -(-pieces * columns // 4) * (width // LANES) * rows_of_block(rows),
        2 * rows * n * columns,
        rows * (int(rows_node.shape[-1]) + 4 * n) + sum(p.weight.array.nbytes for p in operands[1:count]),
        node.source,
    )


def emit_blocks(symbol: str, cpu: Cpu, *, shape: tuple[Any, ...]) -> Any:
    """out[m, n] = epilogue(x[m, k] . decoded[n, k]^T)"""
    e = Emitter(symbol)
    p = _Blocks(e, cpu, shape)
    scratch = e.scratch("int32")
    if cpu.tiles and p.tiled:
        amx.emit_blocks(p, scratch)
        return e.function()
    with p.items() as item:

        def rows(row: Expr, height: int) -> None:
            _tile_of(p)(p, height, row, scratch).panel(item)

        tiles(e, item.first, item.count, p.tile_rows, rows)
    return e.function()


def _tile_of(p: _Blocks) -> type[_Tile]:
    if p.cpu.machine == "aarch64":
        return _Neon
    if p.cpu.dots:
        return _Tile
    return _Pairs if p.pieces == 1 and p.bits == 4 else _Words


class _Blocks(Product):
    """The operands, and what they are cut into."""

    def __init__(self, e: Emitter, cpu: Cpu, shape: tuple[Any, ...]) -> None:
        n, self.columns_of_row, self.bits, self.block, width, epilogue, dtypes, self.pieces = shape
        self._shape(e, cpu, n, part_size(self.columns_of_row), width, epilogue)
        self.step = 8 // self.bits  # groups of 4 levels in 4 bytes
        self.groups = -(-self.columns_of_row // (4 * self.step))
        self.panel_bytes = self.groups * 4 * width
        self.blocks_of_row = -(-self.columns_of_row // self.block)
        self.rows, self.w = e.pointer("rows", "u8"), e.pointer("levels", "i8")
        self.scales, *zeros = (e.pointer(*part) for part in zip(("scales", "zeros"), dtypes, strict=False))
        self.zeros: Buffer | None = zeros[0] if zeros else None
        self.extras = [e.pointer(step, "f32") for step in epilogue if step not in ACTIVATIONS]
        self.out, self.m, self.zero = e.pointer("out", "f32"), e.scalar("m"), None
        self._aliases()
        self.row_floats = e.alias(self.rows, "float32")
        self._cut_rows()

    @property
    def tile_rows(self) -> int:
        if self.cpu.machine == "aarch64":
            return 2 if self.cpu.dots else 1
        return 4 if self.cpu.vectors == 32 else 2

    def vectors(self, height: int) -> int:
        """Vectors of columns of a tile of `height` rows; one row takes a whole panel, if the registers do."""
        if self.cpu.machine == "aarch64":
            return neon.QUADS
        if height == 1 and self.cpu.vectors == 32:
            return self.width // self.lanes
        return min(2, self.strip // self.lanes)

    @property
    def lanes(self) -> int:
        return self.cpu.lanes

    @property
    def zero_level(self) -> int:
        """What the kernel takes a level of zero for."""
        return 0 if self.cpu.machine == "aarch64" and self.bits == 8 else 1 << (self.bits - 1)

    @property
    def tiled(self) -> bool:
        """Whether blocks are made of whole tiles of bytes."""
        of_bytes = self.pieces == 2 and self.bits == 8
        return of_bytes and not (self.block % amx.DEPTH or self.columns_of_row % amx.DEPTH)

    @property
    def stride(self) -> int:
        bytes_of = int8_blocks.row_bytes if self.pieces == 1 else int16.row_bytes
        return bytes_of(self.columns_of_row, self.block)

    def tail(self, row: Expr, number: Expr) -> Expr:
        """Where the sum of a block of a row lies, in words."""
        offset_of = int8_blocks.sums_offset if self.pieces == 1 else int16.sums_offset
        return self.e.let(row * (self.stride // 4) + (number + offset_of(self.columns_of_row) // 4))

    def scale_columns(self, column: Expr, lanes: int) -> Expr | None:
        return None

    def block_sum(self, row: Expr, number: Expr) -> Expr | None:
        """The sum of a block of a row, if the sums of products are around another zero."""
        if self.zeros is None and not self.zero_level:
            return None
        return self.e.load(self.row_words, self.tail(row, number))

    def zeros_of_block(self, column: Expr, number: Expr) -> Expr:
        """What the kernel takes for a level of zero in a block, of `lanes` columns or of all."""
        if self.zeros is None:
            return tirx.const(self.zero_level, "int32")
        first = self.e.let(div(column, self.width) * self.width)
        given = (self.zeros, first, column - first, number, self.blocks_of_row, self.width, self.bits)
        zeros = zeros_of(self.e, *given, self.lanes)
        taken_off = (1 << (self.bits - 1)) - self.zero_level
        return self.e.let(zeros - splat(tirx.const(taken_off, "int32"), self.lanes)) if taken_off else zeros

    def scale_of_row(self, row: Expr, number: Expr) -> Expr | None:
        """The scale of a block of a row, in all lanes, if it has its own."""
        if self.pieces > 1:
            return None
        scale = self.e.load(self.row_floats, self.tail(row, number) + self.blocks_of_row)
        return self.e.let(splat(scale, self.lanes))

    def joined(self, pieces: list[Expr], zero: Expr, block_sum: Expr | None) -> Expr:
        """The sum of a block as floats, of those of its pieces; `zero` times that of its row comes off."""
        e, total = self.e, pieces[0]
        if len(pieces) == 2:
            eight = splat(tirx.const(8, "int32"), self.lanes)
            total = e.let(e.let(tirx.shift_left(pieces[0], eight)) + pieces[1])
        if block_sum is not None:
            one, lanes = self.zeros is None, self.lanes  # for all columns
            off = splat(e.let(block_sum * zero), lanes) if one else e.let(splat(block_sum, lanes) * zero)
            total = e.let(total - off)
        return e.let(tirx.Cast(vector("float32", self.lanes), total))

    def scale_of_block(self, column: Expr, number: Expr, locality: int) -> Expr:
        """The scales of `lanes` columns in a block; those of the next panel come nearer."""
        first = self.e.let(div(column, self.width) * self.width)
        at = self.e.let(first * self.blocks_of_row + number * self.width + (column - first))
        scale = self.e.load(self.scales, at, self.lanes)
        self.e.prefetch(self.scales, at + self.width * self.blocks_of_row, locality)
        if dtype_of(scale).startswith("float32"):
            return scale
        return self.e.let(tirx.Cast(vector("float32", self.lanes), scale))


class _Tile:
    """Writes the products of one tile's rows, by `vpdpbusd` of the rows' pieces."""

    merged = False  # whether the pieces of a level are multiplied as one

    def __init__(self, p: _Blocks, height: int, row: Expr, scratch: Buffer) -> None:
        self.p, self.e, self.height, self.row, self.scratch = p, p.e, height, row, scratch
        self.pieces = 1 if self.merged else p.pieces
        self.vectors = p.vectors(height)

    def panel(self, item: Item) -> None:
        """All columns of the item's panel; meanwhile the next one comes nearer."""
        e, p = self.e, self.p
        self.prepare()
        ahead, share = item.part(e, self.row, self.height)
        columns = self.vectors * p.lanes
        step = e.let(div(share, p.groups * (p.width // columns)))
        for part in range(0, p.width, columns):
            self.offsets = [p.offset(part + j * p.lanes) - p.offset(part) for j in range(self.vectors)]
            soon = e.let(ahead + (part // columns) * (step * p.groups))
            column = e.let(item.panel * p.width + part)
            self.coming = p.coming(self.row, column, self.height, columns)
            self.columns(column, Ahead(p, soon, step, near=self.height == 1))

    def prepare(self) -> None:
        """What is done with the rows once."""
        self.bases = [base for i in range(self.height) for base in self.p.row_bases(self.row + i)]

    def columns(self, column: Expr, ahead: Ahead) -> None:
        """The columns of a tile, block by block."""
        e, p = self.e, self.p
        count = self.height * self.vectors
        totals = e.registers(count, vector("float32", p.lanes))
        for i in range(count):
            e.set(totals, i, splat(f32(0.0), p.lanes))
        weights = p.weights(column)
        words = p.block // (4 * p.step)  # of a block that is no row's last
        whole = p.columns_of_row // p.block if p.blocks_of_row > 1 else 0
        with e.loop(0, whole, "block") as number:
            self._block(totals, column, weights, number, words, words, ahead)
        if p.groups > whole * words:
            self._block(totals, column, weights, i64(whole), words, p.groups - whole * words, ahead)
        self._store(totals, column)

    def _block(
        self, totals: Buffer, column: Expr, weights: Expr, number: Expr, words: int, count: int, ahead: Ahead
    ) -> None:
        e, p = self.e, self.p
        sums = zero_sums(e, self.height * self.pieces * self.vectors, p.lanes)
        with e.loop(0, count, "k") as at:
            word = e.let(number * words + at)
            here = e.let(weights + word * p.strip)
            ahead.ask(self.vectors * p.lanes)
            self.coming.ask(word)
            self.multiply(sums, [e.load(p.w_words, here + at, p.lanes) for at in self.offsets], word)
        for j in range(self.vectors):
            here = e.let(column + j * p.lanes)
            scale, zero = p.scale_of_block(here, number, ahead.locality), p.zeros_of_block(here, number)
            for i in range(self.height):
                block_sum, own = p.block_sum(self.row + i, number), p.scale_of_row(self.row + i, number)
                parts = [e.get(sums, (i * self.pieces + b) * self.vectors + j) for b in range(self.pieces)]
                total = p.joined([e.let(part) for part in parts], zero, block_sum)
                at, both = i * self.vectors + j, scale if own is None else e.let(own * scale)
                e.set(totals, at, fma(total, both, e.get(totals, at)))

    def _store(self, totals: Buffer, column: Expr) -> None:
        """The row's scale and the epilogue."""
        e, p = self.e, self.p

        def one(row: Expr, values: list[Expr]) -> None:
            p.store(row, p.columns(column, self.vectors, p.lanes), values, p.lanes)

        if not p.long:
            for i in range(self.height):
                one(e.let(self.row + i), [e.get(totals, i * self.vectors + j) for j in range(self.vectors)])
            return
        with e.loop(0, self.height, "row") as at:
            one(
                e.let(self.row + at),
                [e.let(e.get(totals, at * self.vectors + j)) for j in range(self.vectors)],
            )

    def multiply(self, sums: Buffer, words: list[Expr], word: Expr) -> None:
        """sums += the levels of 4 bytes of each column times those of the rows, the `word`th of a row."""
        e, p = self.e, self.p
        for step, levels in enumerate(self.groups(words)):
            for i, base in enumerate(self.bases):
                row = e.let(splat(e.load(p.row_words, base + (word * p.step + step)), p.lanes))
                for j, level in enumerate(levels):
                    at = i * self.vectors + j
                    e.set(sums, at, self.dot(e.get(sums, at), level, row))

    def dot(self, total: Expr, level: Expr, row: Expr) -> Expr:
        """Each lane plus its 4 products of an unsigned level and a signed byte of the row."""
        return vnni(self.e, self.p.lanes, [row])(level, [total])[0]

    def _and_shifted(self, words: list[Expr], bits: int, mask: int) -> list[Expr]:
        """Of each lane what stands `bits` further up, masked."""
        e, lanes = self.e, self.p.lanes
        if bits:
            words = [e.let(tirx.shift_right(w, splat(tirx.const(bits, "int32"), lanes))) for w in words]
        return [e.let(tirx.bitwise_and(w, splat(tirx.const(mask, "int32"), lanes))) for w in words]

    def groups(self, words: list[Expr]) -> list[list[Expr]]:
        """The groups of 4 levels in 4 bytes, a byte each."""
        if self.p.bits == 8:
            return [words]
        return [self._and_shifted(words, bits, 0x0F0F0F0F) for bits in (0, 4)]


class _Words(_Tile):
    """Each lane: 2 products of 16 bits, twice; rows are widened once for all columns of a panel."""

    merged = True

    def prepare(self) -> None:
        p = self.p
        with self.e.loop(0, self.height, "row") as i:
            to = self.e.let(i * (2 * widened.words_of(p.k)))
            widened.widen(p, self.row + i, self.scratch, to, signed=True)

    def multiply(self, sums: Buffer, words: list[Expr], word: Expr) -> None:
        e, p = self.e, self.p
        mask = 0x00FF00FF if p.bits == 8 else 0x000F000F
        for step in range(p.step):
            pairs = [self._and_shifted(words, 4 * step + 8 * half, mask) for half in range(2)]
            for i in range(self.height):
                for half, levels in enumerate(pairs):
                    at = e.let(word * p.step + (step + (2 * i + half) * widened.words_of(p.k)))
                    row = e.let(splat(e.load(self.scratch, at), p.lanes))
                    for j, level in enumerate(levels):
                        number = i * self.vectors + j
                        e.set(sums, number, e.get(sums, number) + widened.multiply(e, row, level, p.lanes))


class _Pairs(_Tile):
    """Each lane: 4 products of bytes, two and two in 16 bits, which hold 2 * 15 * 127."""

    def dot(self, total: Expr, level: Expr, row: Expr) -> Expr:
        e, lanes = self.e, self.p.lanes
        name = "llvm.x86.avx512.pmaddubs.w.512" if lanes == LANES else "llvm.x86.avx2.pmadd.ub.sw"
        given = [e.let(tirx.reinterpret(f"int8x{4 * lanes}", value)) for value in (level, row)]
        pairs = e.let(tirx.call_llvm_pure_intrin(f"int16x{2 * lanes}", name, *given))
        ones = splat(tirx.const(0x00010001, "int32"), lanes)
        return total + widened.multiply(e, e.let(tirx.reinterpret(f"int32x{lanes}", pairs)), ones, lanes)


class _Neon(_Tile):
    """Each lane: 4 products of signed bytes, by `sdot` or by products of 16 bits."""

    def groups(self, words: list[Expr]) -> list[list[Expr]]:
        if self.p.bits == 4:
            return super().groups(words)
        top = splat(tirx.const(_TOP, "int32"), self.p.lanes)
        return [[self.e.let(tirx.bitwise_xor(w, top)) for w in words]]

    def dot(self, total: Expr, level: Expr, row: Expr) -> Expr:
        return neon.dot(self.e, self.p.cpu, total, level, row)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "int16_blockwise": partial(_lower, pieces=2),
    "int8_blockwise": partial(_lower, pieces=1),
}
