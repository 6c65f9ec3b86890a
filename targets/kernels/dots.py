"""Integer products by vector instructions: a register tile of sums, 4 bytes of k at a time.

`vpdpbusd` multiplies u8 by s8 and sums fours; `widened.py` is for x86 CPUs without it. ARM's instructions are in
`neon.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from llmc.targets import Cpu
from llmc.targets.kernels import neon
from llmc.targets.kernels.emit import LANES, Buffer, Emitter, Expr, div, splat, vector
from llmc.targets.kernels.integer import Item, Product, accumulators
from llmc.targets.kernels.tiling import tiles


@dataclass(frozen=True)
class Tile:
    """A register tile: `rows` x `vectors` accumulators of `lanes` int32."""

    rows: int
    vectors: int
    lanes: int


def tile_of(cpu: Cpu, width: int) -> Tile:
    """The tile whose accumulators, weights and one row's bytes fit the registers."""
    if cpu.machine == "aarch64":
        return Tile(neon.DOT_ROWS if cpu.dots else neon.WIDE_ROWS, neon.QUADS, 4)
    if cpu.vectors < 32:
        return Tile(6, 2, cpu.lanes)
    vectors = width // LANES
    return Tile({1: 12, 2: 12, 3: 8, 4: 6}[vectors], vectors, LANES)


def emit(product: Product) -> None:
    """The work items of a product kernel."""
    e, tile = product.e, tile_of(product.cpu, product.width)
    with product.items() as item:
        for part in range(0, product.width, tile.vectors * tile.lanes):
            vectors = min(tile.vectors, (product.width - part) // tile.lanes)

            def rows(row: Expr, h: int, part: int = part, vectors: int = vectors) -> None:
                _tile(product, item, Tile(h, vectors, tile.lanes), row, part)

            tiles(e, item.first, item.count, tile.rows, rows)


def _tile(p: Product, item: Item, tile: Tile, row: Expr, part: int) -> None:
    """Rows row..row + tile.rows, `tile.vectors` vectors of columns from `part` of the panel on."""
    e = p.e
    column = e.let(item.panel * p.width + part)
    panel = p.weights(column)
    bases = [p.row_base(row + i) for i in range(tile.rows)]
    if p.cpu.machine == "aarch64":
        acc = neon.sums(e, p.cpu, p.row_words, bases, p.w_words, panel, p.groups, p.strip)
    else:
        offsets = [p.offset(part + j * tile.lanes) - p.offset(part) for j in range(tile.vectors)]
        ahead, share = item.part(e, row, tile.rows)
        acc = _sums(p, tile, bases, panel, offsets, column, ahead, e.let(div(share, p.groups)))
    store(p, tile, acc, row, column)


def store(p: Product, tile: Tile, acc: Buffer, row: Expr, column: Expr) -> None:
    """The float steps of a tile's sums."""
    e, lanes = p.e, tile.lanes
    if not p.long:
        for i in range(tile.rows):
            sums = [e.get(acc, i * tile.vectors + j) for j in range(tile.vectors)]
            p.store(e.let(row + i), p.columns(column, tile.vectors, lanes), sums, lanes)
        return
    # An activation is long: writing it out for every register of every tile would cost code.
    held = accumulators(e, tile.rows * tile.vectors, lanes)
    for i in range(tile.rows * tile.vectors):
        e.set(held, i, e.get(acc, i))
    with e.loop(0, tile.rows, "row") as at:
        sums = [e.let(e.get(held, at * tile.vectors + j)) for j in range(tile.vectors)]
        p.store(e.let(row + at), p.columns(column, tile.vectors, lanes), sums, lanes)


def started(p: Product, tile: Tile, column: Expr) -> Buffer:
    """A tile's sums before the first product."""
    e = p.e
    acc = accumulators(e, tile.rows * tile.vectors, tile.lanes)
    for j in range(tile.vectors):
        start = p.start(column + j * tile.lanes, tile.lanes)
        for i in range(tile.rows):
            e.set(acc, i * tile.vectors + j, start)
    return acc


def _sums(
    p: Product,
    tile: Tile,
    bases: list[Expr],
    panel: Expr,
    offsets: list[int],
    column: Expr,
    ahead: Expr,
    step: Expr,
) -> Buffer:
    """acc[i, j] = exact sums of 4-byte groups, in any order; meanwhile the next panel comes nearer."""
    e, lanes, vectors = p.e, tile.lanes, tile.vectors
    acc = started(p, tile, column)
    with e.loop(0, p.groups, "k") as at:
        here = e.let(panel + at * p.strip)
        b = [e.load(p.w_words, here + offset, lanes) for offset in offsets]
        soon = e.let(ahead + at * step)
        for j in range(0, vectors * lanes, LANES):
            e.prefetch(p.w, soon + 4 * j, locality=2)
        dots = vnni(e, lanes, b)
        for i in range(tile.rows):
            a = e.let(splat(e.load(p.row_words, bases[i] + at), lanes))
            for j, total in enumerate(dots(a, [e.get(acc, i * vectors + j) for j in range(vectors)])):
                e.set(acc, i * vectors + j, total)
    return acc


Dots = Callable[[Expr, list[Expr]], list[Expr]]  # (4 bytes of a row in each lane, sums) -> sums


def vnni(e: Emitter, lanes: int, b: list[Expr]) -> Dots:
    """sums + 4 products u8 x s8 in each lane: one instruction."""
    weights = [e.let(tirx.reinterpret(f"int8x{4 * lanes}", w)) for w in b]
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"

    def dots(a: Expr, sums: list[Expr]) -> list[Expr]:
        row = e.let(tirx.reinterpret(f"uint8x{4 * lanes}", a))
        pairs = zip(sums, weights, strict=True)
        return [tirx.call_llvm_pure_intrin(vector("int32", lanes), name, total, row, w) for total, w in pairs]

    return dots
