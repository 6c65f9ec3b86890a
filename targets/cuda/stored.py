"""`linear` with weights of 8 and 4 bits or as bfloat16, which are read as they are stored and decoded in registers.

Columns of a weight lie in chunks of 16 bytes, `[chunks][rows of the weight][16 bytes]`, so that a thread reads one at a
time and its neighbours read those beside it. Up to 8 rows of the left operand, as next tokens have, are dot products: a
block has 8 outputs, each is shared by up to 32 threads, and every byte of the weight is read once. More rows are tiles,
with the weight decoded on its way to shared memory.

Both sum in one order, so a row has the same bits beside any others. 16 columns, a span, have one scale: their products
with the levels are summed in order by fused multiply-adds, the scale comes last. The columns are cut into at most 32
segments of whole units, 32 columns each: spans are added in order, then segments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Packed, Panels
from llmc.compiler.dims import ceil_div, dim, product
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import OPS, constant, make
from llmc.errors import LlmcError
from llmc.targets.cuda import product as plain
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import launch
from llmc.targets.cuda.operands import apply_epilogue, epilogue_inputs, row_quad, tile_place
from llmc.targets.cuda.tile import COLUMNS, OWN, ROWS, THREADS, Tile
from llmc.targets.tir.emit import Buffer, Expr, div, f32, fma, i64, mod
from llmc.targets.tir.later import tirx

Array = np.ndarray[Any, Any]
Write = Callable[[Expr, Expr, Expr], None]  # (row, column, sum)

CHUNK = 16  # bytes that a thread reads at once
WORDS = CHUNK // 4
UNIT, SPAN = 32, 16  # columns
SEGMENTS = 32
OUTPUTS = THREADS // SEGMENTS  # of a block that has few rows
FEW = 8  # rows
TOGETHER = 4  # of these, where there is more than one
_MAGIC = 0x4B000000  # 2^23 as a float: a small whole number in its last bits is added to it


@dataclass(frozen=True)
class Stored:
    """How a weight `[n, depth]` lies.

    Args:
        bits: of a value; 16 are the upper half of a float.
        block: columns that share a scale, a multiple of `SPAN` or all; 0: there are no scales.
        operands: chunks, and scales f32 or f16 `[blocks][n]`.
    """

    n: int
    depth: int
    bits: int
    block: int
    operands: tuple[Packed, ...]
    dtypes: tuple[str, ...]

    @property
    def wide(self) -> int:
        """Rows of the weight as they are padded."""
        return self.n + -self.n % COLUMNS

    @property
    def units(self) -> int:
        return -(-self.depth // UNIT)

    @property
    def length(self) -> int:
        """Units of a segment."""
        return -(-self.units // SEGMENTS)

    @property
    def segments(self) -> int:
        return -(-self.units // self.length)

    @property
    def chunks(self) -> int:
        """Those of a unit."""
        return UNIT * self.bits // 8 // CHUNK

    def chunk_at(self, chunk: Expr, row: Expr) -> Expr:
        """Where a chunk of a row is, in chunks: it is to be multiplied in a load only, or TVM sees no vector there."""
        return chunk * self.wide + row

    def scale_at(self, span: Expr, row: Expr) -> Expr:
        """Where the scale of a span is."""
        whole = self.block >= self.depth
        return row if whole else div(span * SPAN, self.block) * self.wide + row


def stored_weight(w: Node) -> Stored | None:
    """How a product reads it; None: its blocks are too short, or have zero points.

    Raises:
        LlmcError: it is computed at run time.
    """
    if any(i.op != "constant" for i in w.inputs):
        raise LlmcError("linear: the weight is computed at run time")
    n, depth = (int(d) for d in w.shape)
    bits, block = w.attributes.get("bits", 16), w.attributes.get("block", 0)
    if (block % SPAN and block < depth) or len(w.inputs) > 2:
        return None
    levels, *scales = (i.attributes["value"] for i in w.inputs)
    wide, beyond = n + -n % COLUMNS, -(-depth // UNIT) * UNIT
    stride = beyond * bits // 8
    chunks = Packed(
        levels, f"chunks{COLUMNS}x{stride}", partial(pack_chunks, stride=stride), Panels(wide, stride, CHUNK)
    )
    blocks = -(-beyond // block) if block else 0
    turned = [
        Packed(scale, f"scales{COLUMNS}x{blocks}", partial(pack_scales, blocks=blocks), Panels(wide, blocks))
        for scale in scales
    ]
    dtypes = tuple(i.dtype for i in w.inputs)
    return Stored(n, depth, bits, block, (chunks, *turned), dtypes)


def pack_chunks(array: Array, stride: int) -> Array:
    """u8 `[n, bytes]` -> u8 `[stride / 16][padded n][16]`; what is read beyond the end meets zeros."""
    padded = np.pad(array, ((0, -len(array) % COLUMNS), (0, stride - array.shape[1])))
    return np.ascontiguousarray(padded.reshape(len(padded), -1, CHUNK).transpose(1, 0, 2))


def pack_scales(array: Array, blocks: int) -> Array:
    """`[n, blocks]` -> `[blocks][padded n]`"""
    return np.ascontiguousarray(np.pad(array, ((0, -len(array) % COLUMNS), (0, blocks - array.shape[1]))).T)


# --- decoding


def level_of(k: GridEmitter, word: Expr, shift: Expr, bits: int) -> Expr:
    """The level in some bits of a word as a float; a conversion would take four times as long."""
    mask, magic = (tirx.const(x, "int32") for x in ((1 << bits) - 1, _MAGIC))
    sum_ = k.let(tirx.bitwise_or(tirx.bitwise_and(tirx.shift_right(word, shift), mask), magic))
    zero = float((1 << 23) + (1 << (bits - 1)))
    return k.let(k.let(tirx.reinterpret("float32", sum_)) - f32(zero))


def quad_of(k: GridEmitter, words: Callable[[Expr], Expr], quad: Expr, bits: int) -> list[Expr]:
    """Four values side by side: levels, or floats of 16 bits.

    Args:
        words: number -> word, from where quad 0 is.
    """
    if bits == 16:
        found = []
        for word in (words(k.let(quad * 2)), words(k.let(quad * 2 + 1))):
            low = k.let(tirx.shift_left(word, tirx.const(16, "int32")))
            high = k.let(tirx.bitwise_and(word, tirx.const(-0x10000, "int32")))
            found += [k.let(tirx.reinterpret("float32", half)) for half in (low, high)]
        return found
    each = 32 // bits // 4  # quads of a word
    word = words(k.let(div(quad, each)))
    first = k.let(tirx.Cast("int32", mod(quad, each) * (4 * bits)))
    return [level_of(k, word, k.let(first + tirx.const(i * bits, "int32")), bits) for i in range(4)]


def _scale(k: GridEmitter, w: Stored, scales: Buffer, span: Expr, row: Expr) -> Expr:
    return k.let(tirx.Cast("float32", k.load(scales, k.let(w.scale_at(span, row)))))


def _word(k: GridEmitter, held: Buffer, first: Expr, number: Expr) -> Expr:
    return k.let(k.get(held, first + number))


# --- few rows


@dataclass(frozen=True)
class _Dots:
    """The code of a block with `OUTPUTS` outputs of each of a few rows."""

    k: GridEmitter
    w: Stored
    x: Buffer
    parts: list[Buffer]  # chunks as words, and scales
    rows: Expr
    write: Write

    def emit(self, height: int) -> None:
        """`height` rows at a time."""
        k, w = self.k, self.w
        column = k.let(k.block * OUTPUTS + mod(k.thread, OUTPUTS))
        segment = k.let(div(k.thread, OUTPUTS))
        held = k.shared(SEGMENTS * height * OUTPUTS)
        with k.loop(0, div(self.rows + (height - 1), height), "rows") as group:
            first = k.let(group * height)
            sums = k.registers(height)
            for r in range(height):
                k.set(sums, r, f32(0.0))
            with k.when(segment < i64(w.segments)):
                self._segment(sums, segment, column, first, height)
            for r in range(height):
                k.store(
                    held, k.let((segment * height + r) * OUTPUTS + mod(k.thread, OUTPUTS)), k.get(sums, r)
                )
            k.sync()
            with k.when(k.thread < i64(OUTPUTS * height)):
                row = k.let(first + div(k.thread, OUTPUTS))
                total = k.registers(1)
                k.set(total, 0, f32(0.0))
                with k.loop(0, w.segments, "segment") as i:
                    k.set(total, 0, k.get(total) + k.load(held, k.let(i * (height * OUTPUTS) + k.thread)))
                with k.when(tirx.And(row < self.rows, column < i64(w.n))):
                    self.write(row, column, k.let(k.get(total)))
            k.sync()

    def _segment(self, sums: Buffer, segment: Expr, column: Expr, first: Expr, height: int) -> None:
        """The sums of a segment: what is read together is read before it is used."""
        k, w = self.k, self.w
        start = k.let(segment * w.length)
        stop = k.let(tirx.min(start + i64(w.length), i64(w.units)))
        rows = [k.let(tirx.min(first + r, self.rows - i64(1))) for r in range(height)]
        ahead = min(
            w.length, max(1, WORDS // w.chunks)
        )  # units: 64 bytes of a thread are on their way at once
        held = k.registers(ahead * w.chunks * WORDS, "int32")
        with k.loop(0, -(-w.length // ahead), "ahead") as step:
            base = k.let(start + step * ahead)
            for i in range(ahead):
                unit = k.let(tirx.min(base + i, i64(w.units - 1)))
                for chunk in range(w.chunks):
                    at = k.let(w.chunk_at(unit * w.chunks + chunk, column))
                    k.store(held, (i * w.chunks + chunk) * WORDS, k.load(self.parts[0], at * WORDS, WORDS))
            with k.loop(0, ahead, "unit", unroll=True) as i:
                unit = k.let(base + i)
                with k.when(unit < stop):
                    read = partial(_word, k, held, k.let(i * (w.chunks * WORDS)))
                    self._unit(sums, read, unit, column, rows)

    def _unit(
        self, sums: Buffer, words: Callable[[Expr], Expr], unit: Expr, column: Expr, rows: list[Expr]
    ) -> None:
        k, w = self.k, self.w
        spans, quads = UNIT // SPAN, SPAN // 4
        shared = w.block % UNIT == 0 or w.block >= w.depth
        scale: Expr = None
        for span in range(spans):
            total = k.registers(len(rows)) if w.block else sums
            for r in range(len(rows) if w.block else 0):
                k.set(total, r, f32(0.0))
            with k.loop(0, quads, "quad", unroll=True) as q:
                quad = k.let(q + span * quads)
                values = quad_of(k, words, quad, w.bits)
                for r, row in enumerate(rows):
                    self._multiply(total, r, row, k.let(unit * (UNIT // 4) + quad), values)
            if w.block and not (shared and span):
                scale = _scale(k, w, self.parts[1], k.let(unit * spans + span), column)
            for r in range(len(rows) if w.block else 0):
                k.set(sums, r, fma(k.get(total, r), scale, k.get(sums, r)))

    def _multiply(self, total: Buffer, r: int, row: Expr, quad: Expr, values: list[Expr]) -> None:
        k = self.k
        left = k.registers(4)
        read = row_quad(k, self.x, row, quad, self.w.depth, UNIT)
        for i, value in enumerate(read if isinstance(read, list) else [read]):
            k.store(left, i, value)
        for i, value in enumerate(values):
            k.set(total, r, fma(k.get(left, i), value, k.get(total, r)))


# --- many rows


def _tiles(k: GridEmitter, w: Stored, x: Buffer, parts: list[Buffer], rows: Expr, write: Write) -> None:
    """Tiles of 64 x 64, as of plain weights."""
    row, column = tile_place(k, -(-w.n // COLUMNS))
    inside = UNIT // 4 // w.chunks  # quads of a chunk

    def left(at: Expr, quad: Expr) -> list[Expr] | Expr:
        return row_quad(k, x, k.let(tirx.min(at, rows - i64(1))), quad, w.depth, UNIT)

    def right(at: Expr, quad: Expr) -> list[Expr]:
        start = k.let(w.chunk_at(div(quad, inside), at) * WORDS)
        return quad_of(k, lambda n: k.load(parts[0], start + n), k.let(mod(quad, inside)), w.bits)

    tile = Tile(k, row, column, left, right, turned=True)
    sums, totals = (k.registers(OWN * OWN) for _ in range(2))
    for held in (sums, totals):
        with k.loop(0, OWN * OWN, unroll=True) as i:
            k.set(held, i, f32(0.0))
    spans = UNIT // SPAN * w.units

    def join(acc: Buffer, span: Expr) -> None:
        """After each span: times its scale, onto the segment's sum; that onto the whole behind its last."""
        part = acc
        if w.block:
            part = sums
            own = k.let(column + mod(k.thread, COLUMNS // OWN) * OWN)
            scales = [_scale(k, w, parts[1], span, k.let(own + j)) for j in range(OWN)]
            for i in range(OWN * OWN):
                k.set(sums, i, fma(k.get(acc, i), scales[i % OWN], k.get(sums, i)))
                k.set(acc, i, f32(0.0))
        behind = k.let(span + 1)
        ends = tirx.EQ(mod(behind, w.length * (UNIT // SPAN)), i64(0))
        with k.when(tirx.Or(ends, tirx.EQ(behind, i64(spans)))):
            for i in range(OWN * OWN):
                k.set(totals, i, k.get(totals, i) + k.get(part, i))
                k.set(part, i, f32(0.0))

    tile.multiply(i64(spans * SPAN), join)
    tile.finish(totals, rows, i64(w.n), write)


def linear(node: Node) -> Call | None:
    """out[m, n] = epilogue(x[m, k] . decoded[n, k]^T)"""
    x, w, *extras = node.inputs
    if w.op not in ("blockwise", "bfloat16"):
        return None
    weight = stored_weight(w)
    if weight is None:
        return _whole(node)
    if any(i.dtype != "f32" for i in (x, *extras)):
        raise LlmcError(f"linear: no kernel for {x.dtype} x {w.op}")
    epilogue: tuple[str, ...] = node.attributes["epilogue"]
    rows = product(node.shape[:-1])
    few = sympy.Max(0, sympy.Min(1, rows, FEW + 1 - rows))  # 1 from 1 to 8 rows
    tiles = ceil_div(rows, ROWS) * -(-weight.n // COLUMNS)
    kind = (weight.bits, weight.block if weight.block < weight.depth else -1)
    call = launch(
        node,
        "linear_stored",
        (weight.n, weight.depth, kind, epilogue),
        partial(_emit, w=weight, epilogue=epilogue),
        (rows,),
        dim(few * -(-weight.n // OUTPUTS) + (1 - few) * tiles),
        threads=THREADS,
        operands=(x, *weight.operands, *extras),
        dtypes=("f32", *weight.dtypes, *("f32" for _ in extras)),
        flops=2 * rows * weight.n * weight.depth,
    )
    read = sum(i.attributes["value"].array.nbytes for i in w.inputs)
    return replace(call, bytes=dim(4 * rows * (weight.depth + weight.n) + read))


def _emit(k: GridEmitter, w: Stored, epilogue: tuple[str, ...]) -> None:
    x = k.pointer("x", "f32")
    chunks, *scales = (k.pointer(f"part{i}", dtype) for i, dtype in enumerate(w.dtypes))
    added = [k.pointer(step, "f32") for step in epilogue_inputs(epilogue)]
    out, rows = k.pointer("out", "f32"), k.scalar("m")
    parts = [k.alias(chunks, "int32"), *scales]

    def write(row: Expr, column: Expr, value: Expr) -> None:
        at = k.let(row * w.n + column)
        k.store(out, at, apply_epilogue(k, epilogue, added, value, column, at))

    dots = _Dots(k, w, x, parts, rows, write)
    for height, condition in (
        (1, tirx.EQ(rows, i64(1))),
        (TOGETHER, tirx.And(rows > i64(1), rows <= i64(FEW))),
    ):
        with k.when(condition):
            dots.emit(height)
    with k.when(rows > i64(FEW)):
        _tiles(k, w, x, parts, rows, write)


def _whole(node: Node) -> Call:
    """The product of the plain weight: blocks within a span, and zero points, come from files of others."""
    x, w, *extras = node.inputs
    parts = (i.attributes["value"].array for i in w.inputs)
    array = OPS[w.op].reference(*parts, **w.attributes)
    weight = constant(Weight(array, w.inputs[0].attributes["value"].name), source=w.source)
    call = plain.linear(make("linear", (x, weight, *extras), node.source, **node.attributes))
    return replace(call, operands=(*call.operands[:-1], node))


LOWERINGS: Mapping[str, Callable[[Node], Call | None]] = {"linear": linear}
