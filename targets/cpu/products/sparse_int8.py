"""Integer products that skip zeros: weights of which blocks of 16 outputs by 4 inputs are zero, a line of bytes each.

What one instruction multiplies is a block: 4 bytes of a row meet 4 of each of 16 outputs, as in a dense product
(`dots.py`, `widened.py`, `neon.py`), whose sums start the same and are exact in any order. So 16 outputs are a list
of lines, 64 bytes each, and of the groups of 4 inputs that they read; four lists are a panel.

Fewer lines side by side than a dense product has to hold what a row reads for: each is met by its own broadcast.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import product
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import int16
from llmc.compiler.ops.rows import line_stride
from llmc.targets.cpu.products import neon, widened
from llmc.targets.cpu.products.dots import Tile, add_starts, started, store, vnni
from llmc.targets.cpu.products.integer import Product, row_blocks, rows_of_block, zero_sums
from llmc.targets.cpu.products.qlinear import operands_after, pack_starts, zero_and_extras
from llmc.targets.lowering import Lowerings
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, splat
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles

LINE = 64  # bytes of a block
WIDTH = 64  # columns of a panel: four lists
PAYS = 0.5  # the largest share of lines left with which no number of rows takes longer (bench/sparse.py)
_MOST = 1 << 16  # groups that an index of 16 bits can name
_LISTS = WIDTH // LANES

Array = np.ndarray[Any, Any]


def _lines(array: Array) -> tuple[Array, Array]:
    """Of levels i8 [n, k]: its lines i8 [lists, groups, 64], lists by panels, and whether any of one is not 0."""
    n, k = array.shape
    padded = np.pad(int16.signed_levels(array), ((0, -n % WIDTH), (0, -k % 4)))
    lines = (
        padded.reshape(-1, LANES, padded.shape[1] // 4, 4)
        .swapaxes(1, 2)
        .reshape(len(padded) // LANES, -1, LINE)
    )
    return lines, np.asarray(lines.any(-1))


def share_left(array: Array) -> float:
    """Of lines that are not zero, among those of the outputs that there are."""
    return float(_lines(array)[1].sum() / (-(-array.shape[0] // LANES) * -(-array.shape[1] // 4)))


def bounds(array: Array) -> Array:
    """i32 `[lists + 1]`: where the lines of each list begin."""
    return np.concatenate([[0], np.cumsum(_lines(array)[1].sum(1))]).astype(np.int32)


def groups(array: Array) -> Array:
    """The group of inputs that each line reads, 16 bits as bytes."""
    return np.concatenate([np.nonzero(_lines(array)[1])[1], [0]]).astype("<u2").view(np.uint8)


def kept_lines(array: Array) -> Array:
    """i8 `[lines, 64]`: those that are not zero."""
    lines, there = _lines(array)
    return np.concatenate([lines[there], np.zeros((1, LINE), np.int8)])


def lower_qlinear(node: Node) -> Call | None:
    """`qlinear` with a weight of which enough lines are zero; None for any other."""
    rows_node, w, w_scale, *others = node.inputs
    if w.op != "constant" or w_scale.op != "constant":
        return None
    weight: Weight = w.attributes["value"]
    n, k = (int(d) for d in w.shape)
    zeros = weight.array.size - np.count_nonzero(weight.array)  # quickly seen, and most have few
    if k > 4 * _MOST or zeros < (1 - PAYS) * weight.array.size or share_left(weight.array) > PAYS:
        return None
    zero, extras = zero_and_extras(node, others)
    epilogue: tuple[str, ...] = node.attributes["epilogue"]
    parts = [Packed(weight, f"{p.__name__} of lines", p) for p in (kept_lines, bounds, groups)]
    starts = Packed(weight, f"starts{WIDTH}x1", partial(pack_starts, width=WIDTH))
    after = operands_after(node, w_scale, zero, extras, WIDTH)
    rows, kinds, kept = product(node.shape[:-1]), tuple(z.dtype for z in zero), share_left(weight.array)
    pointers = ("u8", "i8", "i32", "u8", "i32", "f32", *kinds, *("f32",) * (len(extras) + 1))
    emit = partial(emit_qlinear, n=n, k=k, epilogue=epilogue, zero="".join(kinds))
    kernel = Kernel("sparse_qlinear", (n, k, epilogue, *kinds), pointers, 1, emit, widened.scratch(k))
    each = max(1, int(kept * -(-k // 4))) * _LISTS
    return Call(
        kernel,
        (rows_node, *parts, starts, *after, node),
        (rows,),
        -(-n // WIDTH) * row_blocks(rows),
        each * rows_of_block(rows),
        2 * rows * int(n * k * kept),
        rows * (line_stride(k) + 4 * n) + int(n * k * kept),
        node.source,
    )


def emit_qlinear(symbol: str, cpu: Cpu, *, n: int, k: int, epilogue: tuple[str, ...], zero: str) -> Any:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T * scales), of the lines of w that are not zero"""
    e = Emitter(symbol)
    p = _Sparse(e, cpu, n, k, WIDTH, epilogue, zero=zero)
    wide = e.scratch("int32")
    wanted = cpu.machine == "x86_64" and not cpu.dots
    lists = (_Widened if wanted else _Quads if cpu.machine == "aarch64" else _Lists)(p, wide)
    with p.items() as item:
        tiles(e, item.first, item.count, lists.most, partial(lists.tile, item.panel))
    return e.function()


class _Sparse(Product):
    """The operands, with the lists behind the lines."""

    def _weights(self) -> None:
        super()._weights()
        self.bounds, places = self.e.pointer("bounds", "i32"), self.e.pointer("groups", "u8")
        self.places = self.e.alias(places, "uint16")


class _Lists:
    """Writes the sums of tiles of rows with lists, by an instruction that multiplies u8 by s8 and sums fours."""

    most = 12  # rows of a tile

    def __init__(self, p: Product, wide: Buffer) -> None:
        assert isinstance(p, _Sparse)
        self.p, self.e, self.wide = p, p.e, wide
        self.lanes = p.cpu.lanes
        self.vectors = LANES // self.lanes
        if self.vectors > 1:
            self.most = 6

    def tile(self, panel: Expr, row: Expr, rows: int) -> None:
        """All lists of a panel with rows row..row+rows."""
        e, p = self.e, self.p
        self.prepare(row, rows)
        with e.loop(0, _LISTS, "list") as number:
            column = e.let(panel * WIDTH + number * LANES)
            with e.when(column < p.n):
                one = e.let(panel * _LISTS + number)
                first, last = (e.let(tirx.Cast("int64", e.load(p.bounds, one + i))) for i in range(2))
                self._list(Tile(rows, self.vectors, self.lanes), row, column, first, last)

    def prepare(self, row: Expr, rows: int) -> None:
        """What is done once for all lists."""
        self.bases = [self.p.row_base(row + i) for i in range(rows)]

    def _list(self, tile: Tile, row: Expr, column: Expr, first: Expr, last: Expr) -> None:
        """Several lines at a time with few rows, each to sums of its own: none waits for the one before."""
        e, p = self.e, self.p
        together = max(1, 4 // tile.rows)
        sums = [self.begun(tile, column), *(self.nothing(tile) for _ in range(together - 1))]
        whole = e.let(tirx.truncdiv(last - first, tirx.IntImm("int64", together)))
        with e.loop(0, whole, "lines") as at:
            for i, acc in enumerate(sums):
                self.line(tile, acc, e.let(first + at * together + i))
        if together > 1:
            with e.loop(e.let(first + whole * together), last, "line") as at:
                self.line(tile, sums[0], e.let(at))
        for acc in sums[1:]:
            for i in range(tile.rows * tile.vectors):
                e.set(sums[0], i, e.get(sums[0], i) + e.get(acc, i))
        store(p, tile, self.ended(tile, sums[0], column), row, column)

    def begun(self, tile: Tile, column: Expr) -> Buffer:
        """Sums before the first line."""
        return started(self.p, tile, column)

    def nothing(self, tile: Tile) -> Buffer:
        return zero_sums(self.e, tile.rows * tile.vectors, tile.lanes)

    def ended(self, tile: Tile, acc: Buffer, column: Expr) -> Buffer:
        """Sums after the last one."""
        return acc

    def group(self, at: Expr) -> Expr:
        """The group that a line reads."""
        return self.e.let(tirx.Cast("int64", self.e.load(self.p.places, at)))

    def weights(self, tile: Tile, at: Expr) -> list[Expr]:
        """A line, by vectors of columns."""
        return [
            self.e.load(self.p.w_words, at * LANES + j * tile.lanes, tile.lanes) for j in range(tile.vectors)
        ]

    def line(self, tile: Tile, acc: Buffer, at: Expr) -> None:
        """acc += what a line multiplies."""
        e, group = self.e, self.group(at)
        dots = vnni(e, tile.lanes, self.weights(tile, at))
        for i, base in enumerate(self.bases):
            a = e.let(splat(e.load(self.p.row_words, base + group), tile.lanes))
            totals = dots(a, [e.get(acc, i * tile.vectors + j) for j in range(tile.vectors)])
            for j, total in enumerate(totals):
                e.set(acc, i * tile.vectors + j, total)


class _Widened(_Lists):
    """The same by products of 16-bit values: the rows of a tile are widened once."""

    def __init__(self, p: Product, wide: Buffer) -> None:
        super().__init__(p, wide)
        self.most = 12 if p.cpu.vectors == 32 else 4

    def prepare(self, row: Expr, rows: int) -> None:
        with self.e.loop(0, rows, "row") as i:
            widened.widen(self.p, row + i, self.wide, self.e.let(i * (2 * widened.words_of(self.p.k))))

    def line(self, tile: Tile, acc: Buffer, at: Expr) -> None:
        e, group, words = self.e, self.group(at), widened.words_of(self.p.k)
        pairs = [widened.pairs(e, w) for w in self.weights(tile, at)]
        for i in range(tile.rows):
            halves = [e.load(self.wide, group + (2 * i + half) * words) for half in range(2)]
            for j, pair in enumerate(pairs):
                for a, w in zip(halves, pair, strict=True):
                    more = widened.multiply(e, e.let(splat(a, tile.lanes)), w, tile.lanes)
                    e.set(acc, i * tile.vectors + j, e.get(acc, i * tile.vectors + j) + more)


class _Quads(_Lists):
    """The same on ARM, whose bytes are signed: sums start at 0."""

    def begun(self, tile: Tile, column: Expr) -> Buffer:
        return self.nothing(tile)

    def ended(self, tile: Tile, acc: Buffer, column: Expr) -> Buffer:
        add_starts(self.p, tile, acc, column)
        return acc

    def line(self, tile: Tile, acc: Buffer, at: Expr) -> None:
        e, group, weights = self.e, self.group(at), self.weights(tile, at)
        for i, base in enumerate(self.bases):
            four = neon.flip(e, splat(e.load(self.p.row_words, base + group), 4), 4)
            for j, w in enumerate(weights):
                n = i * tile.vectors + j
                e.set(acc, n, neon.dot(e, self.p.cpu, e.get(acc, n), w, four))


LOWERINGS: Lowerings = {"qlinear": lower_qlinear}
