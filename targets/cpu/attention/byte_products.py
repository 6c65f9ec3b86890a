"""The two products of attention on bytes, by x86's instructions that sum four of them into each int32."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.targets.cpu.attention.int8 import Levels
from llmc.targets.cpu.attention.item import Item
from llmc.targets.cpu.attention.scratch import FOURS, QUERIES, ByteScratch
from llmc.targets.cpu.attention.stages import Work
from llmc.targets.cpu.products.dots import vnni
from llmc.targets.cpu.products.integer import accumulators
from llmc.targets.tir.emit import LANES, Buffer, Expr, i64, splat
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles


@dataclass(frozen=True)
class Sums:
    """A register tile of int32: `rows` of keys or features by one register for each of `columns`, queries."""

    work: Work
    words: Buffer
    lanes: int
    registers: Buffer
    rows: int
    columns: list[Expr]

    def row(self, row: int) -> list[Expr]:
        count = len(self.columns)
        return [self.work.e.get(self.registers, row * count + j) for j in range(count)]

    def column(self, column: int) -> list[Expr]:
        return [self.work.e.get(self.registers, i * len(self.columns) + column) for i in range(self.rows)]

    def set(self, row: int, column: int, value: Expr) -> None:
        self.work.e.set(self.registers, row * len(self.columns) + column, value)

    def store(self, first: Expr) -> None:
        """To where scores are, [row][query], from row `first` on."""
        e = self.work.e
        for i in range(self.rows):
            line = e.let(self.work.at.scores + (first + i) * QUERIES)
            for column, total in zip(self.columns, self.row(i), strict=True):
                e.store(self.words, line + column, total)


@dataclass(frozen=True)
class ByteProducts:
    """Both products, of a kernel whose `words` are scratch memory as int32 and whose registers have `lanes` of them."""

    work: Work
    at: ByteScratch
    words: Buffer
    lanes: int

    def score(self, item: Item, keys: Expr, levels: Levels) -> None:
        """scores[key][query] = K q, from the starts of each query"""

        def of(first: Expr, vectors: int) -> None:
            columns = self._columns(first, vectors)

            def tile(row: Expr, height: int) -> None:
                self._score_tile(item.k.size // 4, levels, columns, row, height)

            tiles(self.work.e, i64(0), keys, self.work.tile_rows(vectors), tile)

        self.work.by_vectors(item, of)

    def _score_tile(self, fours: int, levels: Levels, columns: list[Expr], row: Expr, height: int) -> None:
        e = self.work.e
        starts = [e.load(self.words, self.at.starts + column, self.lanes) for column in columns]
        at = [e.let(levels.keys + (row + i) * fours) for i in range(height)]
        sums = self._sums(height, columns)
        for i in range(height):
            for j, start in enumerate(starts):
                sums.set(i, j, start)
        with e.loop(0, fours, "four") as four:
            queries = [e.load(self.words, four * QUERIES + c, self.lanes) for c in columns]
            dots = vnni(e, self.lanes, queries)
            for i in range(height):
                key = e.let(splat(e.load(self.words, at[i] + four), self.lanes))
                for j, total in enumerate(dots(key, sums.row(i))):
                    sums.set(i, j, total)
        sums.store(row)

    def mix(self, item: Item, group: Expr, fours: Expr, levels: Levels) -> None:
        """V^T weights of 16 features, [feature][query], to where the scores were; keys are `fours` groups of four."""

        def of(first: Expr, vectors: int) -> None:
            columns = self._columns(first, vectors)

            def tile(row: Expr, height: int) -> None:
                self._mix_tile(levels.values, group * LANES + row, fours, columns, row, height)

            tiles(self.work.e, i64(0), i64(LANES), self.work.tile_rows(vectors), tile)

        self.work.by_vectors(item, of)

    def _mix_tile(
        self, values: Expr, feature: Expr, fours: Expr, columns: list[Expr], row: Expr, height: int
    ) -> None:
        e = self.work.e
        at = [e.let(values + (feature + i) * FOURS) for i in range(height)]
        sums = self._sums(height, columns)
        for i in range(height):
            for j in range(len(columns)):
                sums.set(i, j, splat(tirx.const(0, "int32"), self.lanes))
        with e.loop(0, fours, "four") as four:
            lines = [e.let(splat(e.load(self.words, index + four), self.lanes)) for index in at]
            dots = vnni(e, self.lanes, lines)
            for j, column in enumerate(columns):
                weights = e.load(self.words, self.at.weights + four * QUERIES + column, self.lanes)
                for i, total in enumerate(dots(weights, sums.column(j))):
                    sums.set(i, j, total)
        sums.store(row)

    def _columns(self, first: Expr, vectors: int) -> list[Expr]:
        """The first query of each register of `vectors` vectors."""
        return [self.work.e.let(first * LANES + at) for at in range(0, vectors * LANES, self.lanes)]

    def _sums(self, rows: int, columns: list[Expr]) -> Sums:
        registers = accumulators(self.work.e, rows * len(columns), self.lanes)
        return Sums(self.work, self.words, self.lanes, registers, rows, columns)
