"""Products of rows on int8 with weights of 8 and 4 bits, both with a scale for each block, on GPUs: the CPUs' bits.

Sums of blocks are exact, by `dp4a`, so threads share them as they like; then each output's blocks follow one another,
one fused multiply-add each. Up to 8 rows a block of threads has 8 outputs and reads every byte of the weight once, 16
a thread; more rows are tiles.

Weights lie in chunks as in `stored.py`. Of 4 bits the low halves of four bytes are four columns and the high halves
those after them: what `dp4a` takes. Levels are unsigned then, so 8 times the sum of a block of the row comes off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Packed, Panels
from llmc.compiler.dims import ceil_div, dim, product
from llmc.compiler.graph import Node
from llmc.compiler.ops.int8_blocks import row_bytes, sums_offset
from llmc.compiler.ops.rows import ZERO
from llmc.compiler.ops.split import part_size
from llmc.compiler.ops.storage import unpack_indices
from llmc.errors import LlmcError
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import launch
from llmc.targets.cuda.operands import apply_epilogue, epilogue_inputs, tile_place
from llmc.targets.cuda.quantised import FLIP, scale_of
from llmc.targets.cuda.rows import Row, rows_call
from llmc.targets.cuda.stored import CHUNK, FEW, OUTPUTS, SEGMENTS, TOGETHER, WORDS, pack_chunks, pack_scales
from llmc.targets.cuda.tile import COLUMNS, DEPTH, OWN, ROWS, THREADS, Tile
from llmc.targets.tir.emit import Buffer, Expr, div, f32, fma, i64, mod
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import to_level

Array = np.ndarray[Any, Any]
Write = Callable[[Expr, Expr, Expr], None]

STAGE = 4 * DEPTH  # columns of a tile that are staged at once: weights are padded to whole ones
SPAN = 16  # columns, four words: blocks are whole spans
SHARED = 30 << 10  # bytes for sums of few rows, beside those of the tile


def _pack_halves(array: Array, columns: int, stride: int) -> Array:
    """Levels of 4 bits as chunks, eight columns a word; 0 beyond the end."""
    levels = unpack_indices(array, columns + columns % 2, 4)[:, :columns]
    eights = np.pad(levels, ((0, 0), (0, 2 * stride - columns))).reshape(len(levels), -1, 2, 4)
    return pack_chunks((eights[:, :, 0] | (eights[:, :, 1] << 4)).reshape(len(levels), -1), stride)


def _pack_bytes(array: Array, stride: int) -> Array:
    """Levels of 8 bits as chunks, those that mean 0 beyond the end."""
    beyond = stride - array.shape[1]
    return pack_chunks(np.pad(array, ((0, 0), (0, beyond)), constant_values=ZERO), stride)


@dataclass(frozen=True)
class Blocks:
    """How a weight `[n, depth]` lies."""

    n: int
    depth: int
    bits: int
    block: int

    @property
    def wide(self) -> int:
        """Its rows as they are padded."""
        return self.n + -self.n % COLUMNS

    @property
    def stride(self) -> int:
        """Bytes of a row of it."""
        return part_size(self.depth) * self.bits // 8

    @property
    def count(self) -> int:
        return -(-self.depth // self.block)

    @property
    def spans(self) -> int:
        """Those that hold something."""
        return -(-self.depth // SPAN)

    @property
    def together(self) -> int:
        """Spans of a piece, whose sum is one: as many as a chunk has, if blocks end where chunks do."""
        return 2 if self.bits == 4 and (self.count == 1 or self.block % (2 * SPAN) == 0) else 1

    @property
    def pieces(self) -> int:
        return -(-self.spans // self.together)

    @property
    def height(self) -> int:
        """Few rows that are computed at once; 0: there are too many sums."""
        fit = SHARED // (4 * OUTPUTS * self.pieces)  # the code of one row has sums of its own
        return min(fit, 1) if fit < 3 else min(TOGETHER, fit - 1)

    def operands(self, levels: Node, scales: Node) -> tuple[Packed, Packed]:
        """Chunks, and scales `[blocks][n]`."""
        held, scale = (node.attributes["value"] for node in (levels, scales))
        kind, pack = f"{self.bits} bits {COLUMNS}x{self.stride}", partial(_pack_bytes, stride=self.stride)
        panels: Panels | None = Panels(self.wide, self.stride, CHUNK)
        if self.bits == 4:
            pack, panels = partial(_pack_halves, columns=self.depth, stride=self.stride), None
        turned = partial(pack_scales, blocks=self.count)
        return Packed(held, kind, pack, panels), Packed(
            scale, f"scales{COLUMNS}x{self.count}", turned, Panels(self.wide, self.count)
        )


@dataclass(frozen=True)
class _Operands:
    """What the code of both products reads: a row's levels and scales, chunks and their scales."""

    k: GridEmitter
    w: Blocks
    row_words: Buffer
    row_floats: Buffer
    chunks: Buffer
    scales: Buffer

    def levels(self, row: Expr, span: Expr) -> Expr:
        """Four words of a row."""
        k = self.k
        start = k.let(row * (row_bytes(self.w.depth, self.w.block) // CHUNK) + span)
        return k.load(self.row_words, start * WORDS, WORDS)

    def weights(self, column: Expr, span: Expr) -> list[Expr]:
        """Four words of a row of the weight."""
        k, w = self.k, self.w
        if w.bits == 8:
            place = k.let(span * w.wide + column)
            flip = tirx.Broadcast(tirx.const(FLIP, "int32"), WORDS)
            return [k.let(tirx.bitwise_xor(k.load(self.chunks, place * WORDS, WORDS), flip))]
        at = k.let((div(span, 2) * w.wide + column) * WORDS + mod(span, 2) * 2)
        return [half for i in range(2) for half in self.halves(k.load(self.chunks, at + i))]

    def halves(self, word: Expr) -> list[Expr]:
        """Two words of bytes of a word of 4 bits each."""
        mask = tirx.const(0x0F0F0F0F, "int32")
        high = self.k.let(tirx.shift_right(word, tirx.const(4, "int32")))
        return [self.k.let(tirx.bitwise_and(x, mask)) for x in (word, high)]

    def row_scale(self, row: Expr, block: Expr) -> Expr:
        return self.k.load(self.row_floats, self._tail(row, block, self.w.count))

    def column_scale(self, column: Expr, block: Expr) -> Expr:
        at = self.k.let(block * self.w.wide + column)
        return self.k.let(tirx.Cast("float32", self.k.load(self.scales, at)))

    def over(self, row: Expr, block: Expr) -> Expr:
        """What unsigned levels add to the sum of a block."""
        held = self.k.load(self.row_words, self._tail(row, block, 0))
        return self.k.let(held * tirx.const(8, "int32"))

    def _tail(self, row: Expr, block: Expr, behind: int) -> Expr:
        """Behind the levels of a row lie the sums of blocks, then their scales."""
        depth = self.w.depth
        first = sums_offset(depth) // 4 + behind
        return self.k.let(row * (row_bytes(depth, self.w.block) // 4) + block + first)

    def added(self, total: Expr, part: Expr, scales: tuple[Expr, Expr]) -> Expr:
        """total + part * (scale of the row * scale of the weights)"""
        return fma(self.k.let(tirx.Cast("float32", part)), self.k.let(scales[0] * scales[1]), total)


def _dots(o: _Operands, rows: Expr, height: int, write: Write) -> None:
    """`OUTPUTS` outputs of each of a few rows, `height` at a time."""
    k, w = o.k, o.w
    column = k.let(k.block * OUTPUTS + mod(k.thread, OUTPUTS))
    held = k.shared(w.pieces * height * OUTPUTS, "int32")
    with k.loop(0, div(rows + (height - 1), height), "rows") as group:
        first = k.let(group * height)
        own = [k.let(tirx.min(first + r, rows - i64(1))) for r in range(height)]
        with k.loop(0, -(-w.pieces // SEGMENTS), "step") as step:
            piece = k.let(step * SEGMENTS + div(k.thread, OUTPUTS))
            with k.when(piece < i64(w.pieces)):
                sums = k.registers(height, "int32")
                for r in range(height):
                    k.set(sums, r, tirx.const(0, "int32"))
                _piece(o, sums, piece, column, own)
                for r in range(height):
                    at = k.let((piece * height + r) * OUTPUTS + mod(k.thread, OUTPUTS))
                    k.store(held, at, k.get(sums, r))
        k.sync()
        with k.when(k.thread < i64(OUTPUTS * height)):
            row = k.let(first + div(k.thread, OUTPUTS))
            with k.when(tirx.And(row < rows, column < i64(w.n))):
                write(row, column, _joined(o, held, height, row, column))
        k.sync()


def _piece(o: _Operands, sums: Buffer, piece: Expr, column: Expr, rows: list[Expr]) -> None:
    """The sums of a piece; a whole chunk is read at once."""
    k, w = o.k, o.w
    words = k.registers(w.together * WORDS, "int32")
    if w.together == 2:
        chunk = k.registers(WORDS, "int32")
        place = k.let(piece * w.wide + column)
        k.store(chunk, 0, k.load(o.chunks, place * WORDS, WORDS))
        for i in range(WORDS):
            for j, half in enumerate(o.halves(k.let(k.get(chunk, i)))):
                k.set(words, 2 * i + j, half)
    else:
        _hold(k, words, o.weights(column, piece))
    for r, row in enumerate(rows):
        for span in range(w.together):
            left = k.registers(WORDS, "int32")
            k.store(left, 0, o.levels(row, k.let(piece * w.together + span)))
            for i in range(WORDS):
                a, b = k.get(left, i), k.get(words, span * WORDS + i)
                k.set(sums, r, tirx.call_pure_extern("int32", "__dp4a", a, b, k.get(sums, r)))


def _hold(k: GridEmitter, registers: Buffer, values: list[Expr]) -> None:
    for i, value in enumerate(values):
        k.store(registers, i, value)


def _joined(o: _Operands, held: Buffer, height: int, row: Expr, column: Expr) -> Expr:
    """An output of the sums of its pieces, block by block."""
    k, w = o.k, o.w
    total, part = k.registers(1), k.registers(1, "int32")
    k.set(total, 0, f32(0.0))
    each = w.pieces if w.count == 1 else w.block // (SPAN * w.together)
    with k.loop(0, w.count, "block") as block:
        k.set(part, 0, tirx.const(0, "int32"))
        with k.loop(0, each, "piece") as i:
            piece = k.let(block * each + i)
            with k.when(piece < i64(w.pieces)):
                at = k.let(piece * (height * OUTPUTS) + k.thread)
                k.set(part, 0, k.get(part, 0) + k.load(held, at))
        if w.bits == 4:
            k.set(part, 0, k.get(part, 0) - o.over(row, block))
        scales = o.row_scale(row, block), o.column_scale(column, block)
        k.set(total, 0, o.added(k.get(total, 0), k.let(k.get(part, 0)), scales))
    return k.let(k.get(total, 0))


def _tiles(o: _Operands, rows: Expr, write: Write) -> None:
    """Tiles of 64 x 64, as of int8; a sum of integers ends with its block."""
    k, w = o.k, o.w
    row, column = tile_place(k, -(-w.n // COLUMNS))
    every = DEPTH if w.count == 1 else gcd(w.block // 4, DEPTH)  # words
    pieces, each = -(-w.depth // (4 * every)), w.block // (4 * every)
    totals = k.registers(OWN * OWN)
    with k.loop(0, OWN * OWN, unroll=True) as i:
        k.set(totals, i, f32(0.0))
    own = [
        [k.let(at + div_(k.thread, COLUMNS // OWN) * OWN + j) for j in range(OWN)]
        for at, div_ in ((row, div), (column, mod))
    ]
    mine = [k.let(tirx.min(at, rows - i64(1))) for at in own[0]]

    def join(acc: Buffer, piece: Expr) -> None:
        behind = k.let(piece + 1)
        last = tirx.EQ(behind, i64(pieces))
        ends = last if w.count == 1 else tirx.Or(last, tirx.EQ(mod(behind, max(each, 1)), i64(0)))
        with k.when(tirx.And(piece < i64(pieces), ends)):
            block = i64(0) if w.count == 1 else k.let(div(piece, each))
            down = [o.row_scale(at, block) for at in mine]
            across = [o.column_scale(at, block) for at in own[1]]
            over = [o.over(at, block) for at in mine] if w.bits == 4 else []
            for i in range(OWN * OWN):
                part = k.get(acc, i) - over[i // OWN] if over else k.get(acc, i)
                k.set(totals, i, o.added(k.get(totals, i), part, (down[i // OWN], across[i % OWN])))
                k.set(acc, i, tirx.const(0, "int32"))

    def left(at: Expr, quad: Expr) -> Expr:
        return o.levels(k.let(tirx.min(at, rows - i64(1))), quad)

    tile = Tile(k, row, column, left, o.weights, words=True, turned=True)
    tile.multiply(i64(part_size(w.depth) // 4), join, every)
    tile.finish(totals, rows, i64(w.n), write)


def int8_blockwise(node: Node) -> Call:
    """out[m, n] = epilogue(sum over blocks of float(q . (level - zero)) * (scale of the row * scale of the weight))"""
    x, levels, scales, *extras = node.inputs
    if levels.op != "constant" or scales.op != "constant":
        raise LlmcError(f"{node.op}: the weight is computed at run time")
    a = node.attributes
    if a["has_zeros"]:
        raise LlmcError(
            f"{node.op}: there is no kernel for groups with zero points", hint="leave out --zero-points"
        )
    w = Blocks(int(levels.shape[0]), int(a["columns"]), int(a["bits"]), int(a["block"]))
    epilogue: tuple[str, ...] = a["epilogue"]
    rows = product(node.shape[:-1])
    few = sympy.Max(0, sympy.Min(1, rows, FEW + 1 - rows)) if w.height else 0
    return launch(
        node,
        node.op,
        (w, epilogue),
        partial(_emit, w=w, dtype=scales.dtype, epilogue=epilogue),
        (rows,),
        dim(few * -(-w.n // OUTPUTS) + (1 - few) * ceil_div(rows, ROWS) * -(-w.n // COLUMNS)),
        threads=THREADS,
        operands=(x, *w.operands(levels, scales), *extras),
        dtypes=("u8", "u8", scales.dtype, *("f32" for _ in extras)),
        flops=2 * rows * w.n * w.depth,
    )


def _emit(k: GridEmitter, w: Blocks, dtype: str, epilogue: tuple[str, ...]) -> None:
    x, chunks, scales = k.pointer("rows", "u8"), k.pointer("w", "u8"), k.pointer("w_scale", dtype)
    added = [k.pointer(step, "f32") for step in epilogue_inputs(epilogue)]
    out, rows = k.pointer("out", "f32"), k.scalar("m")
    o = _Operands(k, w, k.alias(x, "int32"), k.alias(x, "float32"), k.alias(chunks, "int32"), scales)

    def write(row: Expr, column: Expr, value: Expr) -> None:
        at = k.let(row * w.n + column)
        k.store(out, at, apply_epilogue(k, epilogue, added, value, column, at))

    heights = {1, w.height} - {0} if w.height else set()
    for height in sorted(heights):
        low, high = (2, FEW) if height > 1 else (1, 1 if w.height > 1 else FEW)
        with k.when(tirx.And(rows >= i64(low), rows <= i64(high))):
            _dots(o, rows, height, write)
    with k.when(rows > i64(FEW if w.height else 0)):
        _tiles(o, rows, write)


def int8_rows(node: Node) -> Call:
    """Rows as signed bytes, each block with a scale and the sum of its levels."""
    x, block = node.inputs[0], int(node.attributes["block"])
    if not isinstance(x.shape[-1], int):
        raise LlmcError(f"the last axis must have a fixed size, found {x.type}")
    depth, rows = x.shape[-1], product(x.shape[:-1])
    emit = partial(_emit_rows, depth=depth, block=min(block, depth))
    return rows_call(node, node.op, (depth, block), emit, (rows,), rows, 4 * rows * depth)


def _emit_rows(k: GridEmitter, depth: int, block: int) -> None:
    source, out = k.pointer("x", "f32"), k.pointer("out", "u8")
    words, floats = k.alias(out, "int32"), k.alias(out, "float32")
    row = Row(k, k.scalar("rows"))
    stride, count, tail = row_bytes(depth, block), -(-depth // block), sums_offset(depth) // 4
    start, target, first = k.let(row.at * depth), k.let(row.at * stride), k.let(row.at * (stride // 4))
    with k.loop(0, count, "block") as number:
        at = k.let(number * block)
        length = k.let(tirx.min(i64(block), i64(depth) - at))
        scale = scale_of(row, source, k.let(start + at), length)
        inverse = k.let(f32(1.0) / scale)
        total = k.registers(1, "int32")
        k.set(total, 0, tirx.const(0, "int32"))

        def convert(column: Expr, at: Expr = at, inverse: Expr = inverse, total: Buffer = total) -> Expr:
            level = to_level(k, k.load(source, start + (at + column)), inverse)
            k.set(total, 0, k.get(total) + level)
            return k.let(tirx.Cast("uint8", level))

        row.write(length, out, k.let(target + at), convert)
        whole = k.across(k.let(k.get(total)), lambda a, b: a + b)
        with k.when(tirx.And(row.live, tirx.EQ(row.lane, i64(0)))):
            k.store(words, k.let(first + (number + tail)), whole)
            k.store(floats, k.let(first + (number + (tail + count))), scale)
    row.write(part_size(depth) - depth, out, k.let(target + depth), lambda c: tirx.const(0, "uint8"))
    one = part_size(depth) // 4
    row.write(
        tail - one, floats, k.let(first + one), lambda c: tirx.Select(tirx.EQ(c, i64(0)), f32(1.0), f32(0.0))
    )
    end = tail + 2 * count
    row.write(stride // 4 - end, floats, k.let(first + end), lambda c: f32(0.0))


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"int8_rows": int8_rows, "int8_blockwise": int8_blockwise}
