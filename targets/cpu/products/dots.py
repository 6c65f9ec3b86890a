"""Integer products by vector instructions: a register tile of sums, 4 bytes of k at a time.

`vpdpbusd` multiplies u8 by s8 and sums fours; `widened.py` is for x86 CPUs without it. ARM's instructions are in
`neon.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmc.errors import LlmcError
from llmc.targets.cpu.products import neon
from llmc.targets.cpu.products.integer import Ahead, Item, Product, accumulators
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import (
    LANES,
    Buffer,
    Emitter,
    Expr,
    div,
    dtype_of,
    f32,
    fma,
    i64,
    splat,
    vector,
)
from llmc.targets.tir.epilogue import Coming
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles

_SHORT = 16  # groups of 4 products to a sum


@dataclass(frozen=True)
class Tile:
    """A register tile: `rows` x `vectors` accumulators of `lanes` int32; the pieces of a row are rows each."""

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
                _tile(product, item, Tile(h * product.pieces, vectors, tile.lanes), row, part)

            tiles(e, item.first, item.count, tile.rows // product.pieces, rows)


def _tile(p: Product, item: Item, tile: Tile, row: Expr, part: int) -> None:
    """The rows of a tile from `row` on, `tile.vectors` vectors of columns from `part` of the panel on."""
    e, count = p.e, tile.rows // p.pieces
    column = e.let(item.panel * p.width + part)
    panel = p.weights(column)
    bases = [base for i in range(count) for base in p.row_bases(row + i)]
    if p.cpu.machine == "aarch64":
        if p.parts > 1:
            raise LlmcError("products in parts have no kernel for ARM")
        lowest = p.zero is not None or p.pieces > 1
        acc = neon.sums(e, p.cpu, p.row_words, bases, p.w_words, panel, p.groups, p.strip, lowest)
        add_starts(p, tile, acc, column)
        store(p, tile, acc, row, column)
        return
    if p.groups <= _SHORT:
        _announce(p, tile, row, column)
    offsets = [p.offset(part + j * tile.lanes) - p.offset(part) for j in range(tile.vectors)]
    ahead, share = item.part(e, row, count)
    step = e.let(div(share, -(-p.part // 4) * p.before(p.parts)))
    coming = p.coming(row, column, count, tile.vectors * tile.lanes)

    def add(acc: Buffer, skipped: Expr, groups: Expr, soon: Expr) -> None:
        here = e.let(panel + skipped * p.strip)
        _add(p, tile, acc, bases, here, groups, offsets, Ahead(p, soon, step), coming)

    finish(p, tile, add, row, column, ahead, step)


def _announce(p: Product, tile: Tile, row: Expr, column: Expr) -> None:
    """Ask for the lines that the next tile will write: after few products its stores would wait for each."""
    count = tile.rows // p.pieces
    for i in range(count):
        at = p.e.let(p.place(p.e.let(row + (count + i)), column))
        for j in range(0, tile.vectors * tile.lanes, LANES):
            p.e.prefetch(p.out, p.e.let(at + j), locality=2)


def add_starts(p: Product, tile: Tile, acc: Buffer, column: Expr) -> None:
    """What a zero point adds to sums that started at 0."""
    if p.zero is None:
        return
    for j in range(tile.vectors):
        start = p.start(column + j * tile.lanes, tile.lanes)
        for i in range(tile.rows):
            at = i * tile.vectors + j
            p.e.set(acc, at, p.e.get(acc, at) + start)


Add = Callable[[Buffer, Expr, Expr, Expr], None]
# (sums, groups of the column left out, groups, byte of the weights to ask for first): adds a bracket's products


def finish(p: Product, tile: Tile, add: Add, row: Expr, column: Expr, ahead: Expr, step: Expr) -> None:
    """The sums of a tile by `add`, bracket by bracket, and the float steps; `step` bytes are asked for at a group."""
    e, count, groups = p.e, tile.rows * tile.vectors, -(-p.part // 4)
    if p.parts == 1:
        acc = started(p, tile, column)
        add(acc, i64(0), i64(groups), ahead)
        store(p, tile, acc, row, column)
        return
    totals = e.registers(count, vector("float32", tile.lanes))
    for i in range(count):
        e.set(totals, i, splat(f32(0.0), tile.lanes))
    weight = e.registers(1, "float32")
    e.set(weight, 0, f32(1.0))
    with e.loop(0, p.parts, "bracket") as bracket:
        acc = started(p, tile, column, bracket)
        soon = e.let(ahead + p.before(bracket) * step * groups)
        add(acc, e.let(div(p.skipped(bracket), 4)), e.let((bracket + 1) * groups), soon)
        scale = e.let(splat(e.let(e.get(weight)), tile.lanes))
        for i in range(count):
            value = e.let(tirx.Cast(vector("float32", tile.lanes), e.get(acc, i)))
            e.set(totals, i, fma(value, scale, e.get(totals, i)))
        e.set(weight, 0, e.get(weight) * f32(1 / 256))
    store(p, tile, totals, row, column)


def store(p: Product, tile: Tile, results: Buffer, row: Expr, column: Expr) -> None:
    """The float steps of a tile's sums, or of their totals."""
    e, lanes, each = p.e, tile.lanes, p.pieces * tile.vectors

    def one(row: Expr, values: list[Expr]) -> None:
        by_column = [values[j :: tile.vectors] for j in range(tile.vectors)]
        totals = [v[0] if dtype_of(v[0]).startswith("float") else p.total(v) for v in by_column]
        p.store(row, p.columns(column, tile.vectors, lanes), totals, lanes)

    if not p.long:
        for i in range(tile.rows // p.pieces):
            one(e.let(row + i), [e.get(results, i * each + j) for j in range(each)])
        return
    # An activation is long: writing it out for every register of every tile would cost code.
    held = e.registers(tile.rows * tile.vectors, dtype_of(e.get(results)))
    for i in range(tile.rows * tile.vectors):
        e.set(held, i, e.get(results, i))
    with e.loop(0, tile.rows // p.pieces, "row") as at:
        one(e.let(row + at), [e.let(e.get(held, at * each + j)) for j in range(each)])


def started(p: Product, tile: Tile, column: Expr, bracket: Expr | int = 0) -> Buffer:
    """A tile's sums before the first product."""
    e = p.e
    acc = accumulators(e, tile.rows * tile.vectors, tile.lanes)
    for j in range(tile.vectors):
        start = p.start(column + j * tile.lanes, tile.lanes, bracket)
        for i in range(tile.rows):
            e.set(acc, i * tile.vectors + j, start)
    return acc


def _add(
    p: Product,
    tile: Tile,
    acc: Buffer,
    bases: list[Expr],
    panel: Expr,
    groups: Expr,
    offsets: list[int],
    ahead: Ahead,
    coming: Coming,
) -> None:
    """acc[i, j] += exact sums of 4-byte groups, in any order; meanwhile the next panel comes nearer."""
    e, lanes, vectors = p.e, tile.lanes, tile.vectors
    with e.loop(0, groups, "k") as at:
        here = e.let(panel + at * p.strip)
        b = [e.load(p.w_words, here + offset, lanes) for offset in offsets]
        ahead.ask(vectors * lanes)
        coming.ask(at)
        dots = vnni(e, lanes, b)
        for i in range(tile.rows):
            a = e.let(splat(e.load(p.row_words, bases[i] + at), lanes))
            for j, total in enumerate(dots(a, [e.get(acc, i * vectors + j) for j in range(vectors)])):
                e.set(acc, i * vectors + j, total)


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
