"""Integer products by AMX: two by two tiles of 16 x 16 sums, 64 bytes of k at a time.

`tdpbusd` multiplies u8 rows by s8 weights as `vpdpbusd` does, so packed rows, packed weights and the sums' starts
serve both. Tiles are configured once for a call, as loading a configuration takes as long as 50 tile products: all
have the same height, and the last tile of a block begins early enough to end with the block. Rows that two tiles
share are computed twice, to the same bits.

The tile unit works beside the vector units: while one step's products run, the float steps of the one before it
are done on the sums it left in scratch memory, a few rows for each 64 bytes of k.

Tiles come from the L2 cache no faster than they are multiplied, so steps go to and fro: every other one takes k, and
every other block of columns the rows, from the end. What the last step loaded last is then used first, while it is
in L1. Sums of integers are the same in any order.

Where a result has several brackets (`integer.py`), a step sums one after the other; together they wait in scratch
memory. Where weights have scales for blocks of a row (`int16_blocks.py`), the sums of each block wait there while those
of the next are made, and are then scaled into the step's totals, block by block, as the order of float sums wants.
"""

from __future__ import annotations

from typing import Any

from llmc.targets.cpu.products.dots import vnni
from llmc.targets.cpu.products.integer import STRIP, Columns, Item, Product
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, fma, i64, splat
from llmc.targets.tir.later import tirx

ROWS = 16  # of a tile at most
DEPTH = 64  # bytes of k in a row of a tile
SUMS = 2 * ROWS * 2 * LANES  # of a bracket of a step
CONFIG = 64  # bytes

_A, _B = 4, 6  # the first tile of rows and of weights; sums are 0 to 3


def scratch(parts: int = 1) -> int:
    """Bytes for the configuration and the sums of two steps."""
    return CONFIG + 2 * 4 * SUMS * parts


def blocks_scratch() -> int:
    """Likewise for the sums of two blocks, and the totals of a step."""
    return scratch() + 4 * ROWS * STRIP


def emit(p: Product, scratch: Buffer) -> None:
    """The work items of a product kernel."""
    _emit(_Kernel, p, scratch)


def emit_blocks(p: Any, scratch: Buffer) -> None:
    """Likewise where weights have scales for blocks of whole tiles: `p` is a product of `int16_blocks.py`."""
    _emit(_Blocks, p, scratch)


def emit_floats(p: Product, scratch: Buffer) -> None:
    """Likewise of bfloat16 (`bf16.py`), whose sums are float32."""
    _emit(_Floats, p, scratch)


def _emit(of: type[_Kernel], p: Any, scratch: Buffer) -> None:
    e = p.e
    with e.when(e.begin < e.end):
        largest = e.let(div(p.m + (p.blocks - 1), p.blocks))
        tiles = e.let(div(largest + (ROWS - 1), ROWS))
        height = e.let(div(largest + (tiles - 1), tiles))
        kernel = of(p, scratch, height)
        kernel.configure()
        with p.items() as item:
            kernel.item(item)
        kernel.last()
        _tile(e, "tilerelease")


def _tile(e: Emitter, name: str, *arguments: Expr | int) -> None:
    """One instruction; ints are numbers of tiles."""
    numbers = [tirx.const(a, "int8") if isinstance(a, int) else a for a in arguments]
    e.add(tirx.Evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *numbers)))


# What is known of the step whose sums wait in scratch memory, as registers: its first row and column, how many rows,
# by how much row numbers jump from the first tile to the second, and where the sums are.
_FIRST, _COLUMN, _COUNT, _JUMP, _PLACE = range(5)
_ROWS, _DEPTH = range(2)  # what goes to and fro


class _Kernel:
    """Writes the steps of one kernel."""

    multiply = "tdpbusd"  # unsigned rows by signed weights

    def __init__(self, p: Any, scratch: Buffer, height: Expr) -> None:
        e = p.e
        self.p, self.e, self.scratch, self.height = p, e, scratch, height
        self.columns = p.strip if p.strip == STRIP else LANES  # of a step
        self.tiles = self.columns // LANES
        self.depth = p.part // DEPTH
        self.whole = self.depth * int(p.before(p.parts))  # of all brackets
        self.held = e.registers(5, "int64")
        self.ahead = e.registers(1, "int64")
        self.back = e.registers(2, "int64")
        for i in range(2):
            e.set(self.back, i, i64(0))
        for i in range(5):
            e.set(self.held, i, i64(CONFIG // 4 if i == _PLACE else 0))

    def configure(self) -> None:
        """Palette 1, 64 bytes to a row: u16 for each tile from byte 16 on; rows of each: u8 from byte 48 on."""
        e = self.e
        height = tirx.Cast("int32", self.height)
        sums, rows_and_weights = (tirx.const(word, "int32") for word in (0x01010101, 0x0101))
        words: dict[int, Expr] = {at: tirx.const(0x00400040, "int32") for at in range(4, 8)}
        words |= {0: tirx.const(1, "int32"), 12: height * sums}
        words[13] = height * rows_and_weights + tirx.const(0x10100000, "int32")
        for at in range(CONFIG // 4):
            e.store(self.scratch, i64(at), words.get(at, tirx.const(0, "int32")))
        _tile(e, "ldtilecfg", self._at(self.scratch, i64(0)))

    def _at(self, buffer: Buffer, index: Expr) -> Expr:
        return tirx.address_of(tirx.BufferLoad(buffer, [index]))

    def item(self, item: Item) -> None:
        """The steps of an item: 32 columns, or 16, at a time, and for each the pairs of tiles of rows."""
        e, p = self.e, self.p
        tiles = e.let(div(item.count + (self.height - 1), self.height))
        together = 2 // p.pieces  # tiles of rows of a step: the pieces of a row are tiles each
        pairs = e.let(div(tiles + (together - 1), together))
        last = e.let(item.count - self.height)
        steps = p.width // self.columns * self.whole
        lines = e.let(div(item.share + 63, 64))
        per = e.let(div(lines + (pairs * steps - 1), pairs * steps))
        e.set(self.ahead, 0, item.ahead)
        with e.loop(0, p.width // self.columns, "part") as part:
            column = e.let(item.panel * p.width + part * self.columns)
            weights = e.let(4 * p.weights(column))
            with e.loop(0, pairs, "at") as at:
                pair = self._either(_ROWS, at, pairs)
                first = [tirx.min((together * pair + i) * self.height, last) for i in range(together)]
                rows = [e.let(item.first + at) for at in first]
                if together == 1:
                    self.step(rows, column, weights, per)
                else:
                    both = e.let(2 * pair + 1 < tiles)
                    with e.when(both):
                        self.step(rows, column, weights, per)
                    with e.when(tirx.Not(both)):
                        self.step(rows[:1], column, weights, per)
            self._turn(_ROWS)

    def step(self, rows: list[Expr], column: Expr, weights: Expr, per: Expr) -> None:
        """The sums of one or two tiles of rows by a step's columns, to scratch memory."""
        e, p, held = self.e, self.p, self.held
        starts = [start for row in rows for start in p.row_starts(row)]
        sums = [(i, j) for i in range(len(starts)) for j in range(self.tiles)]
        left = e.let(e.get(held, _COUNT))
        columns = self.shared()
        place = e.let(2 * (CONFIG // 4) + p.parts * SUMS - e.get(held, _PLACE))  # the other one of two
        with e.loop(0, p.parts, "bracket") as bracket:
            before = e.let(p.before(bracket) * self.depth)
            depth = e.let((bracket + 1) * self.depth)
            here = e.let(weights + p.skipped(bracket) * p.strip)
            for i, j in sums:
                _tile(e, "tilezero", 2 * i + j)
            with e.loop(0, depth, "k") as at:
                self._multiply(starts, here, self._either(_DEPTH, at, depth), sums)
                first, last = (e.let(div((before + at + i) * left, self.whole)) for i in range(2))
                with e.loop(first, last, "row") as row:
                    self.finish(row, columns)
                    self._announce(rows[0] + row, column)
                self._ask(per)
            for i, j in sums:
                to = e.let(place + bracket * SUMS + i * self.height * self.columns + j * LANES)
                _tile(e, "tilestored64", 2 * i + j, self._at(self.scratch, to), i64(4 * self.columns))
            self._turn(_DEPTH)
        jump = rows[-1] - rows[0] - self.height if len(rows) == 2 else i64(0)
        for i, value in enumerate((rows[0], column, self.height * len(rows), jump, place)):
            e.set(held, i, value)

    def _ask(self, per: Expr) -> None:
        """Ask for so many lines of the next panel."""
        soon = self.e.let(self.e.get(self.ahead))
        with self.e.loop(0, per, "line") as line:
            self.e.prefetch(self.p.w, soon + line * 64, locality=2)
        self.e.set(self.ahead, 0, soon + per * 64)

    def _announce(self, row: Expr, column: Expr) -> None:
        """Ask, a step before, for what the float steps of a row will read, or for what they write if they read none."""
        e, p = self.e, self.p
        at = e.let(p.place(row, column))
        buffer = p.out if p.residual is None else p.residual
        for j in range(self.tiles):
            e.prefetch(buffer, at + j * LANES, locality=2)

    def _either(self, way: int, at: Expr, count: Expr) -> Expr:
        """`at`, or as far from the end of `count`, as it goes now."""
        back = self.e.let(self.e.get(self.back, way))
        return self.e.let(back * (count - 1) + (1 - 2 * back) * at)

    def _turn(self, way: int) -> None:
        """From now on the other way."""
        self.e.set(self.back, way, 1 - self.e.get(self.back, way))

    def _multiply(self, starts: list[Expr], weights: Expr, at: Expr, sums: list[tuple[int, int]]) -> None:
        """sums += 64 bytes of each row times 16 groups of each column"""
        e, p = self.e, self.p
        line = e.let(weights + at * (DEPTH * p.strip))
        for j in range(self.tiles):
            _tile(e, "tileloadd64", _B + j, self._at(p.w, e.let(line + j * 4 * LANES)), i64(4 * p.strip))
        for i, start in enumerate(starts):
            here = e.let(start + at * DEPTH)
            _tile(e, "tileloadd64", _A + i, self._at(p.rows, here), i64(p.stride))
        for i, j in sums:
            _tile(e, self.multiply, 2 * i + j, _A + i, _B + j)

    def last(self) -> None:
        """The float steps of the last step."""
        columns = self.shared()
        with self.e.loop(0, self.e.let(self.e.get(self.held, _COUNT)), "row") as row:
            self.finish(row, columns)

    def shared(self) -> list[tuple[Columns, list[Expr]]]:
        """Of the step whose sums are held: what its rows share, and what the sums of each bracket start from."""
        p, column = self.p, self.e.let(self.e.get(self.held, _COLUMN))
        return [
            (c, [p.start(c.column, bracket=b) for b in range(p.parts)]) for c in p.columns(column, self.tiles)
        ]

    def finish(self, at: Expr, columns: list[tuple[Columns, list[Expr]]]) -> None:
        """The float steps of row `at` of the step whose sums are held."""
        e, p = self.e, self.p
        row, here = self._held_row(at)
        column = e.let(e.get(self.held, _COLUMN))
        places = [(here + b * SUMS, b) for b in range(p.parts)]
        if p.pieces > 1:
            places = [(here + i * self.height * self.columns, 0) for i in range(p.pieces)]
        each = [
            [
                e.let(e.load(self.scratch, at + j * LANES, LANES) + starts[b])
                for j, (_, starts) in enumerate(columns)
            ]
            for at, b in places
        ]
        if len(each) == 1:
            each = [self._tail(each[0], row, column)]
        totals = [p.total(list(sums)) for sums in zip(*each, strict=True)]
        p.store(row, [c for c, _ in columns], totals)

    def _held_row(self, at: Expr) -> tuple[Expr, Expr]:
        """The number of row `at` of the step whose sums are held, and where these lie."""
        e = self.e
        first, jump, place = (e.let(e.get(self.held, i)) for i in (_FIRST, _JUMP, _PLACE))
        row = e.let(first + at + tirx.Select(at < self.height, i64(0), jump))
        return row, e.let(place + at * self.columns)

    def _tail(self, sums: list[Expr], row: Expr, column: Expr) -> list[Expr]:
        """Add the products of the last k % 64 bytes, by vectors."""
        e, p = self.e, self.p
        base, start = p.row_base(row), p.weights(column)
        for group in range(self.depth * DEPTH // 4, p.groups):
            a = e.let(splat(e.load(p.row_words, base + group)))
            b = [e.load(p.w_words, start + group * p.strip + j * LANES, LANES) for j in range(self.tiles)]
            sums = [e.let(total) for total in vnni(e, LANES, b)(a, sums)]
        return sums


class _Floats(_Kernel):
    """Writes the steps of bfloat16: sums of floats have one order, and start from 0."""

    multiply = "tdpbf16ps"

    def _either(self, way: int, at: Expr, count: Expr) -> Expr:
        return at if way == _DEPTH else super()._either(way, at, count)

    def shared(self) -> list[tuple[Columns, list[Expr]]]:
        column = self.e.let(self.e.get(self.held, _COLUMN))
        return [(c, []) for c in self.p.columns(column, self.tiles)]

    def finish(self, at: Expr, columns: list[tuple[Columns, list[Expr]]]) -> None:
        e, sums = self.e, self.e.alias(self.scratch, "float32")
        row, here = self._held_row(at)
        totals = [e.load(sums, here + j * LANES, LANES) for j in range(self.tiles)]
        self.p.store(row, [c for c, _ in columns], totals)


_BLOCK = _JUMP  # of the block whose sums wait: its number, as there is one tile of rows


class _Blocks(_Kernel):
    """Writes the steps of weights in blocks: the pieces of a row are signed, and levels are not."""

    multiply = "tdpbsud"

    def __init__(self, p: Any, scratch: Buffer, height: Expr) -> None:
        super().__init__(p, scratch, height)
        self.totals, self.of_totals = p.e.alias(scratch, "float32"), CONFIG // 4 + 2 * SUMS
        for at in range(0, ROWS * self.columns, LANES):
            p.e.store(self.totals, i64(self.of_totals + at), splat(0.0))

    def step(self, rows: list[Expr], column: Expr, weights: Expr, per: Expr) -> None:
        """The sums of a tile of rows by a step's columns, block by block."""
        e, p, (row,) = self.e, self.p, rows
        deep, whole = p.block // DEPTH, p.columns_of_row // p.block
        with e.loop(0, self.height, "row") as at:
            self._announce(row + at, column)
        with e.loop(0, whole, "block") as number:
            self._block(row, column, weights, number, deep, per)
        if self.depth > whole * deep:
            self._block(row, column, weights, i64(whole), self.depth - whole * deep, per)

    def _block(self, row: Expr, column: Expr, weights: Expr, number: Expr, depth: int, per: Expr) -> None:
        """The sums of a block, and meanwhile the float steps of the one before it."""
        e, p, held = self.e, self.p, self.held
        starts = p.row_starts(row)
        sums = [(i, j) for i in range(p.pieces) for j in range(self.tiles)]
        for i, j in sums:
            _tile(e, "tilezero", 2 * i + j)
        first = e.let(number * (p.block // DEPTH))
        for at in range(depth):
            self._multiply(starts, weights, e.let(first + at), sums)
            self._ask(per)
        self.last()
        place = e.let(2 * (CONFIG // 4) + SUMS - e.get(held, _PLACE))  # the other one of two
        for i, j in sums:
            to = e.let(place + i * self.height * self.columns + j * LANES)
            _tile(e, "tilestored64", 2 * i + j, self._at(self.scratch, to), i64(4 * self.columns))
        for i, value in enumerate((row, column, self.height, number, place)):
            e.set(held, i, value)

    def last(self) -> None:
        """The float steps of the block whose sums are held; of a row's last block, all that is left."""
        e, p = self.e, self.p
        column, count, number = (e.let(e.get(self.held, i)) for i in (_COLUMN, _COUNT, _BLOCK))
        scales = [
            (p.scale_of_block(at, number, 2), p.zeros_of_block(at, number))
            for at in (e.let(column + j * LANES) for j in range(self.tiles))
        ]
        ends = e.let(number == p.blocks_of_row - 1)
        with e.when(tirx.Not(ends)), e.loop(0, count, "row") as at:
            for to, total in self._totals(at, number, scales):
                e.store(self.totals, to, total)
        with e.when(ends):
            columns = p.columns(column, self.tiles)
            with e.loop(0, count, "row") as at:
                totals = self._totals(at, number, scales)
                row = e.let(e.get(self.held, _FIRST) + at)
                p.store(row, columns, [total for _, total in totals])
                for to, _ in totals:
                    e.store(self.totals, to, splat(0.0))

    def _totals(self, at: Expr, number: Expr, scales: list[tuple[Expr, Expr]]) -> list[tuple[Expr, Expr]]:
        """Where the totals of row `at` lie, and what they are with the block's sums."""
        e, p = self.e, self.p
        row, place = (e.let(e.get(self.held, i)) for i in (_FIRST, _PLACE))
        here = e.let(place + at * self.columns)
        apart = e.let(self.height * self.columns)
        block_sum = p.block_sum(e.let(row + at), number)
        made = []
        for j, (scale, zero) in enumerate(scales):
            first = e.let(here + j * LANES)
            parts = [e.load(self.scratch, first + i * apart, LANES) for i in range(p.pieces)]
            to = e.let(at * self.columns + (self.of_totals + j * LANES))
            made.append(
                (to, e.let(fma(p.joined(parts, zero, block_sum), scale, e.load(self.totals, to, LANES))))
            )
        return made
