"""Integer products on x86 without an instruction for bytes: `vpmaddwd` multiplies and sums pairs of 16-bit values.

Bytes 0 and 2 of each four of k become one pair, bytes 1 and 3 another: products of 9 by 8 bits, summed in 32.
`vpmaddubsw` would take twice as many at once but saturates: 255 * 127 * 2 does not fit 16 bits.

The rows of a tile are widened once, into scratch memory, and then serve all columns of the panel as broadcast
loads; so only weights are widened between products, and each serves all rows of the tile.

Levels of int16 are what the instruction takes: one product where bytes have two. 32 bits hold _SHORT groups of such
products, then they are taken up by two sums: of what stands above the last 8 bits, and of these.
"""

from __future__ import annotations

from llmc.compiler.ops.rows import ZERO
from llmc.targets.cpu.products.dots import Tile, finish, store
from llmc.targets.cpu.products.integer import Ahead, Item, Product, accumulators, zero_sums
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, i64, splat, vector
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles

ROWS = 12  # of the highest tile
_SHORT = 128  # groups of 4 products of 127 * (127 * 256 + 127) at most that fit 32 bits


def scratch(k: int) -> int:
    """Bytes for the widened rows of a tile, of k values."""
    return 2 * 4 * ROWS * words_of(k)


def words_of(k: int) -> int:
    """Groups of four values of a row, up to the end of a vector."""
    return -(-k // (4 * LANES)) * LANES


def tile_of(cpu: Cpu, width: int) -> Tile:
    """The tile whose sums, weights, one row's two broadcasts and one product fit the registers."""
    vectors = width // LANES if cpu.vectors == 32 else 2
    return Tile(min(ROWS, (cpu.vectors - 3 - 2 * vectors) // vectors), vectors, cpu.lanes)


def emit(product: Product, wide: Buffer) -> None:
    """The work items of a product kernel: tile after tile of rows, and for each all columns of the panel."""
    e, tile = product.e, tile_of(product.cpu, product.width)
    with product.items() as item:

        def rows(row: Expr, h: int) -> None:
            of = _Levels if product.pieces > 1 else _Rows
            of(product, Tile(h, tile.vectors, tile.lanes), wide, row).panel(item)

        tiles(e, item.first, item.count, tile.rows, rows)


def widen(p: Product, row: Expr, wide: Buffer, to: Expr, signed: bool = False) -> None:
    """Values 0 and 2 of each four of a row as 16-bit values, then values 1 and 3 of each.

    Args:
        signed: whether the bytes of the row are so, in place of 128 more.
    """
    e, top = p.e, splat(tirx.const(0x80808080 - (1 << 32), "int32"))
    bases = p.row_bases(row)
    with e.loop(0, words_of(p.k) // LANES, "vector") as at:
        here = e.let(at * LANES)
        fours = [e.let(e.load(p.row_words, base + here, LANES)) for base in bases]
        if signed:
            fours = [e.let(tirx.bitwise_xor(four, top)) for four in fours]
        pieces = zip(*(_halves(e, four) for four in fours), strict=True)
        for half, piece in enumerate(pieces):
            level = _level(e, *piece) if p.pieces > 1 else _less_zero(e, piece[0]) if signed else piece[0]
            e.store(wide, to + half * words_of(p.k) + here, level)


def _halves(e: Emitter, four: Expr) -> tuple[Expr, Expr]:
    """Bytes 0 and 2, and bytes 1 and 3, of each 4 bytes, unsigned."""
    low, eight = (splat(tirx.const(value, "int32")) for value in (0x00FF00FF, 8))
    odd = tirx.bitwise_and(e.let(tirx.shift_right(four, eight)), low)
    return e.let(tirx.bitwise_and(four, low)), e.let(odd)


def _level(e: Emitter, high: Expr, low: Expr) -> Expr:
    """256 (high - 128) + low - 128 of each 16 bits."""
    both = e.let(tirx.bitwise_or(e.let(tirx.shift_left(high, splat(tirx.const(8, "int32")))), low))
    return _less_zero(e, both, 0x8080 - (1 << 16))


def _less_zero(e: Emitter, pairs: Expr, zero: int = ZERO) -> Expr:
    """Of each 16 bits that much less."""
    levels = e.let(tirx.reinterpret(f"int16x{2 * LANES}", pairs))
    moved = e.let(levels - splat(tirx.const(zero, "int16"), 2 * LANES))
    return e.let(tirx.reinterpret(f"int32x{LANES}", moved))


class _Rows:
    """Writes the products of one tile's rows."""

    def __init__(self, p: Product, tile: Tile, wide: Buffer, row: Expr) -> None:
        self.p, self.e, self.tile, self.wide, self.row = p, p.e, tile, wide, row

    def panel(self, item: Item) -> None:
        """All columns of the item's panel; meanwhile the next one comes nearer."""
        e, p, tile = self.e, self.p, self.tile
        with e.loop(0, tile.rows, "row") as i:
            widen(p, self.row + i, self.wide, e.let(i * (2 * words_of(p.k))))
        ahead, share = item.part(e, self.row, tile.rows)
        columns = tile.vectors * tile.lanes
        groups = -(-p.part // 4) * p.before(p.parts)  # of all brackets
        step = e.let(div(share, groups * (p.width // columns)))  # bytes for each step
        with e.loop(0, p.width // columns, "part") as part:
            column = e.let(item.panel * p.width + part * columns)
            self.coming = p.coming(self.row, column, tile.rows, columns)
            self._part(column, e.let(p.weights(column)), e.let(ahead + part * (step * groups)), step)

    def _part(self, column: Expr, weights: Expr, ahead: Expr, step: Expr) -> None:
        """The columns of a tile."""
        p = self.p

        def add(acc: Buffer, skipped: Expr, groups: Expr, soon: Expr) -> None:
            self._add(acc, self.e.let(weights + skipped * p.strip), groups, soon, step)

        finish(p, self.tile, add, self.row, column, ahead, step)

    def _add(
        self, acc: Buffer, weights: Expr, groups: Expr, ahead: Expr, step: Expr, first: Expr | int = 0
    ) -> None:
        """acc[i, j] += exact sums of 4-byte groups, of rows from the group `first` on"""
        e, p, tile = self.e, self.p, self.tile
        prefetch = Ahead(p, ahead, step)
        with e.loop(0, groups, "k") as at:
            here = e.let(weights + at * p.strip)
            offsets = [p.offset(j * tile.lanes) for j in range(tile.vectors)]
            lines = [pairs(e, e.load(p.w_words, here + offset, tile.lanes)) for offset in offsets]
            prefetch.ask(LANES)
            self.coming.ask(at)
            # Both halves of a row one after the other: LLVM joins their sums, and would hold those of all rows.
            for i in range(tile.rows):
                places = [e.let(at + (first + (2 * i + half) * words_of(p.k))) for half in range(2)]
                halves = [self._broadcast(place) for place in places]
                for j, pair in enumerate(lines):
                    n = i * tile.vectors + j
                    for a, w in zip(halves, pair, strict=True):
                        e.set(acc, n, e.get(acc, n) + multiply(e, a, w, tile.lanes))

    def _broadcast(self, at: Expr) -> Expr:
        return self.e.let(splat(self.e.load(self.wide, at), self.tile.lanes))


def multiply(e: Emitter, a: Expr, w: Expr, lanes: int) -> Expr:
    """Each of `lanes` lanes: the sum of two products of 16-bit values."""
    pairs = [e.let(tirx.reinterpret(f"int16x{2 * lanes}", value)) for value in (a, w)]
    name = "llvm.x86.avx512.pmaddw.d.512" if lanes == LANES else "llvm.x86.avx2.pmadd.wd"
    return e.let(tirx.call_llvm_pure_intrin(vector("int32", lanes), name, *pairs))


class _Levels(_Rows):
    """The same of levels of int16."""

    def _part(self, column: Expr, weights: Expr, ahead: Expr, step: Expr) -> None:
        e, p, tile = self.e, self.p, self.tile
        count = tile.rows * tile.vectors
        above, below = (zero_sums(e, count, tile.lanes) for _ in range(2))
        eight, last = (splat(tirx.const(value, "int32"), tile.lanes) for value in (8, 255))
        with e.loop(0, -(-p.groups // _SHORT), "block") as block:
            first = e.let(block * _SHORT)
            groups = e.let(tirx.min(i64(_SHORT), i64(p.groups) - first))
            acc = zero_sums(e, count, tile.lanes)
            self._add(acc, e.let(weights + first * p.strip), groups, e.let(ahead + first * step), step, first)
            for i in range(count):
                total = e.let(e.get(acc, i))
                e.set(above, i, e.get(above, i) + tirx.shift_right(total, eight))
                e.set(below, i, e.get(below, i) + tirx.bitwise_and(total, last))
        pieces = accumulators(e, 2 * count, tile.lanes)
        for i in range(count):
            row, j = divmod(i, tile.vectors)
            for piece, sums in enumerate((above, below)):
                e.set(pieces, (2 * row + piece) * tile.vectors + j, e.get(sums, i))
        store(p, Tile(2 * tile.rows, tile.vectors, tile.lanes), pieces, self.row, column)


def pairs(e: Emitter, w: Expr) -> tuple[Expr, Expr]:
    """Bytes 0 and 2, and bytes 1 and 3, of each 4 bytes as signed 16-bit values."""
    lanes = int(str(w.ty.dtype).rpartition("x")[2])
    eight = splat(tirx.const(8, "int16"), 2 * lanes)
    words = e.let(tirx.reinterpret(f"int16x{2 * lanes}", w))
    even = e.let(tirx.shift_right(e.let(tirx.shift_left(words, eight)), eight))
    return even, e.let(tirx.shift_right(words, eight))
