"""Integer products on x86 without an instruction for bytes: `vpmaddwd` multiplies and sums pairs of 16-bit values.

Bytes 0 and 2 of each four of k become one pair, bytes 1 and 3 another: products of 9 by 8 bits, summed in 32.
`vpmaddubsw` would take twice as many at once but saturates: 255 * 127 * 2 does not fit 16 bits.

The rows of a tile are widened once, into scratch memory, and then serve all columns of the panel as broadcast
loads; so only weights are widened between products, and each serves all rows of the tile.
"""

from __future__ import annotations

from llmc.targets.cpu.products.dots import Tile, finish
from llmc.targets.cpu.products.integer import Ahead, Item, Product
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, splat, vector
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles

ROWS = 12  # of the highest tile


def scratch(k: int) -> int:
    """Bytes for the widened rows of a tile, of k values."""
    return 2 * 4 * ROWS * _words(k)


def _words(k: int) -> int:
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
            body = _Rows(product, Tile(h, tile.vectors, tile.lanes), wide, row)
            body.panel(item)

        tiles(e, item.first, item.count, tile.rows, rows)


def _widen(p: Product, row: Expr, wide: Buffer, to: Expr) -> None:
    """Bytes 0 and 2 of each four of a row as 16-bit values, then bytes 1 and 3 of each."""
    e = p.e
    base = p.row_base(row)
    low, eight = (splat(tirx.const(value, "int32")) for value in (0x00FF00FF, 8))
    with e.loop(0, _words(p.k) // LANES, "vector") as at:
        here = e.let(at * LANES)
        four = e.let(e.load(p.row_words, base + here, LANES))
        e.store(wide, to + here, tirx.bitwise_and(four, low))
        odd = tirx.bitwise_and(e.let(tirx.shift_right(four, eight)), low)
        e.store(wide, to + _words(p.k) + here, odd)


class _Rows:
    """Writes the products of one tile's rows."""

    def __init__(self, p: Product, tile: Tile, wide: Buffer, row: Expr) -> None:
        self.p, self.e, self.tile, self.wide, self.row = p, p.e, tile, wide, row

    def panel(self, item: Item) -> None:
        """All columns of the item's panel; meanwhile the next one comes nearer."""
        e, p, tile = self.e, self.p, self.tile
        with e.loop(0, tile.rows, "row") as i:
            _widen(p, self.row + i, self.wide, e.let(i * (2 * _words(p.k))))
        ahead, share = item.part(e, self.row, tile.rows)
        columns = tile.vectors * tile.lanes
        groups = -(-p.part // 4) * p.before(p.parts)  # of all brackets
        step = e.let(div(share, groups * (p.width // columns)))  # bytes for each step
        with e.loop(0, p.width // columns, "part") as part:
            column = e.let(item.panel * p.width + part * columns)
            weights = e.let(p.weights(column))

            def add(acc: Buffer, skipped: Expr, groups: Expr, soon: Expr) -> None:
                self._add(acc, e.let(weights + skipped * p.strip), groups, soon, step)

            finish(p, tile, add, self.row, column, e.let(ahead + part * (step * groups)), step)

    def _add(self, acc: Buffer, weights: Expr, groups: Expr, ahead: Expr, step: Expr) -> None:
        """acc[i, j] += exact sums of 4-byte groups"""
        e, p, tile = self.e, self.p, self.tile
        prefetch = Ahead(p, ahead, step)
        with e.loop(0, groups, "k") as at:
            here = e.let(weights + at * p.strip)
            offsets = [p.offset(j * tile.lanes) for j in range(tile.vectors)]
            pairs = [_pairs(e, e.load(p.w_words, here + offset, tile.lanes)) for offset in offsets]
            prefetch.ask(LANES)
            # Both halves of a row one after the other: LLVM joins their sums, and would hold those of all rows.
            for i in range(tile.rows):
                halves = [self._broadcast(e.let(at + (2 * i + half) * _words(p.k))) for half in range(2)]
                for j, pair in enumerate(pairs):
                    n = i * tile.vectors + j
                    for a, w in zip(halves, pair, strict=True):
                        e.set(acc, n, e.get(acc, n) + self._multiply(a, w))

    def _broadcast(self, at: Expr) -> Expr:
        e, lanes = self.e, self.tile.lanes
        return e.let(tirx.reinterpret(f"int16x{2 * lanes}", e.let(splat(e.load(self.wide, at), lanes))))

    def _multiply(self, a: Expr, w: Expr) -> Expr:
        """Each lane: the sum of two products of 16-bit values."""
        lanes = self.tile.lanes
        name = "llvm.x86.avx512.pmaddw.d.512" if lanes == LANES else "llvm.x86.avx2.pmadd.wd"
        return self.e.let(tirx.call_llvm_pure_intrin(vector("int32", lanes), name, a, w))


def _pairs(e: Emitter, w: Expr) -> tuple[Expr, Expr]:
    """Bytes 0 and 2, and bytes 1 and 3, of each 4 bytes as signed 16-bit values."""
    lanes = int(str(w.ty.dtype).rpartition("x")[2])
    eight = splat(tirx.const(8, "int16"), 2 * lanes)
    words = e.let(tirx.reinterpret(f"int16x{2 * lanes}", w))
    even = e.let(tirx.shift_right(e.let(tirx.shift_left(words, eight)), eight))
    return even, e.let(tirx.shift_right(words, eight))
