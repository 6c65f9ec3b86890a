"""Attention on int8 by x86's instructions that sum four products of bytes.

Four bytes of k lie in each lane: of 16 queries four features, and four weights of four keys. Packing them so takes
shifts only, as each comes in a vector of its own. One operand is unsigned: keys are stored as K + 128, and scores
start at -128 times the sum of the query.

AMX has no code of its own: half of the time goes into softmax, and tiles, raced, saved nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm import tirx

from llmc.compiler.ops.int8_attention import KEYS, LOWEST, ROUND
from llmc.compiler.ops.rows import ZERO
from llmc.targets import Cpu
from llmc.targets.cpu.attention.attention_head import QUERIES
from llmc.targets.cpu.attention.attention_int8 import Int8Head, level, weigh
from llmc.targets.cpu.attention.transpose import load_transposed
from llmc.targets.cpu.products.dots import vnni
from llmc.targets.cpu.products.integer import accumulators
from llmc.targets.tir.attention_shape import Shape
from llmc.targets.tir.emit import (
    LANES,
    Buffer,
    Emitter,
    Expr,
    div,
    f32,
    fma,
    i64,
    lanes_of,
    splat,
    vector,
)
from llmc.targets.tir.tiling import tiles

FOURS = KEYS // 4  # groups of keys of a block


def scratch(size: int) -> int:
    """Bytes for heads of so many features, more than `Head` takes."""
    return 4 * (
        4 * size + (ByteHead.blocks + 1) * 2 * FOURS * size + QUERIES + FOURS * QUERIES + FOURS * size
    )


def pack(e: Emitter, parts: Sequence[Expr]) -> Expr:
    """The last bytes of four vectors of int32, side by side."""
    byte = splat(tirx.const(0xFF, "int32"))
    word = tirx.bitwise_and(parts[0], byte)
    for i, part in enumerate(parts[1:], 1):
        kept = part if i == 3 else tirx.bitwise_and(part, byte)
        word = tirx.bitwise_or(word, tirx.shift_left(kept, splat(tirx.const(8 * i, "int32"))))
    return e.let(word)


def bits(e: Emitter, x: Expr) -> Expr:
    """The bits of float32 values as int32."""
    return e.let(tirx.reinterpret(vector("int32", lanes_of(x)), x))


class ByteHead(Int8Head):
    """A work item whose integers are bytes and their sums int32."""

    blocks = 8

    def __init__(
        self, e: Emitter, cpu: Cpu, shape: Shape, pointers: Mapping[str, Buffer], s: Expr, t: Expr
    ) -> None:
        super().__init__(e, cpu, shape, pointers, s, t)
        self.words, self.bytes = e.scratch("int32"), e.scratch("uint8")
        self.starts = self.room + (self.blocks + 1) * 2 * FOURS * self.size  # of the sums of each query
        self.weights = self.starts + QUERIES  # [four keys][query]
        self.fours = self.weights + FOURS * QUERIES  # of values: [four keys][feature]
        self.lanes = cpu.lanes
        self.groups: Expr = None  # of four keys, in this block

    def place_levels(self, slot: Expr) -> None:
        self.levels = self.e.let(self.room + slot * (2 * FOURS * self.size))
        self.values = self.e.let(self.levels + FOURS * self.size)

    def keep(self, vector: Expr, held: int, inverse: Expr) -> None:
        """[four features][query], and what the scores of each query start from."""
        e = self.e
        total = e.registers(1, "int32x16")
        e.set(total, 0, splat(tirx.const(0, "int32")))
        with e.loop(0, self.size // 4, "four") as four:
            parts = []
            for i in range(4):
                x = e.load(self.memory, held + (four * 4 + i) * LANES, LANES)
                parts.append(bits(e, level(e, x, inverse)))
                e.set(total, 0, e.get(total) + (parts[-1] - splat(bits(e, f32(ROUND)))))
            e.store(self.words, four * QUERIES + vector * LANES, pack(e, parts))
        e.store(self.words, self.starts + vector * LANES, e.get(total) * splat(tirx.const(-ZERO, "int32")))

    def gather(self, keys: Expr) -> None:
        """Keys by row, [key][feature]; values by feature, [feature][key], by way of groups of four keys."""
        e = self.e
        inverses = {name: self.inverses(name) for name in "kv"}
        with e.loop(0, keys, "j") as j:
            start = e.let(self.start["k"] + e.get(self.kept, j) * self.shape.layouts.k.width)
            for group, inverse in enumerate(inverses["k"]):
                x = e.load(self.at["k"], start + group * LANES, LANES)
                here = 4 * self.levels + j * self.size + group * LANES
                byte = tirx.Cast("uint8x16", bits(e, level(e, x, inverse, ZERO)))
                e.store(self.bytes, here, byte)
        with e.loop(0, e.let(div(keys + 3, 4)), "four") as four:
            width = self.shape.layouts.v.width
            rows = [
                e.let(tirx.min(four * 4 + i, keys - 1)) for i in range(4)
            ]  # some twice: they weigh nothing
            at = [e.let(self.start["v"] + e.get(self.kept, row) * width) for row in rows]
            for group, inverse in enumerate(inverses["v"]):
                values = [e.load(self.at["v"], i + group * LANES, LANES) for i in at]
                parts = [bits(e, level(e, x, inverse)) for x in values]
                e.store(self.words, self.fours + four * self.size + group * LANES, pack(e, parts))
        with e.loop(0, self.size // LANES, "group") as group:
            lines = [e.let(self.fours + i * self.size + group * LANES) for i in range(FOURS)]
            for i, value in enumerate(load_transposed(e, self.memory, lines, LANES)):
                e.store(self.memory, self.values + (group * LANES + i) * FOURS, value)

    # Products.

    def score(self, keys: Expr) -> None:
        self.groups = self.e.let(div(keys + 3, 4))
        e = self.e

        def of(first: Expr, vectors: int) -> None:
            columns = self._columns(first, vectors)

            def tile(row: Expr, height: int) -> None:
                starts = [e.load(self.words, self.starts + column, self.lanes) for column in columns]
                at = [e.let(self.levels + (row + i) * (self.size // 4)) for i in range(height)]
                acc = accumulators(e, height * len(columns), self.lanes)
                for i in range(height):
                    for j, start in enumerate(starts):
                        e.set(acc, i * len(columns) + j, start)
                with e.loop(0, self.size // 4, "four") as four:
                    queries = [e.load(self.words, four * QUERIES + c, self.lanes) for c in columns]
                    dots = vnni(e, self.lanes, queries)
                    for i in range(height):
                        key = e.let(splat(e.load(self.words, at[i] + four), self.lanes))
                        self._add(acc, i, dots(key, self._row(acc, i, len(columns))))
                for i in range(height):
                    line = e.let(self.scores + (row + i) * QUERIES)
                    for column, total in zip(columns, self._row(acc, i, len(columns)), strict=True):
                        e.store(self.words, line + column, total)

            tiles(e, i64(0), keys, self.tile_rows(vectors), tile)

        self.by_vectors(of)

    def _columns(self, first: Expr, vectors: int) -> list[Expr]:
        """The first query of each register of `vectors` vectors."""
        return [self.e.let(first * LANES + at) for at in range(0, vectors * LANES, self.lanes)]

    def _row(self, acc: Buffer, row: int, count: int) -> list[Expr]:
        return [self.e.get(acc, row * count + j) for j in range(count)]

    def _add(self, acc: Buffer, row: int, sums: list[Expr]) -> None:
        for j, total in enumerate(sums):
            self.e.set(acc, row * len(sums) + j, total)

    def mix(self, keys: Expr) -> None:
        """output[feature][query] = fade * output + V^T weights, 16 features at a time"""
        e = self.e
        with e.loop(0, self.size // LANES, "group") as group:
            self.multiply(group)

            def of(first: Expr, vectors: int, group: Expr = group) -> None:
                fades = [e.let(e.get(self.fade, first + v)) for v in range(vectors)]
                with e.loop(0, LANES, "feature") as feature:
                    at = e.let(feature * QUERIES + first * LANES)
                    target = e.let(self.output + group * (LANES * QUERIES) + at)
                    for v, fade in enumerate(fades):
                        total = tirx.Cast(
                            "float32x16", e.load(self.words, self.scores + at + v * LANES, LANES)
                        )
                        held = e.load(self.memory, target + v * LANES, LANES)
                        e.store(self.memory, target + v * LANES, fma(held, fade, e.let(total)))

            self.by_vectors(of)

    def multiply(self, group: Expr) -> None:
        """The sums of 16 features, [feature][query], to where the scores were."""
        e = self.e

        def of(first: Expr, vectors: int) -> None:
            columns = self._columns(first, vectors)

            def tile(row: Expr, height: int) -> None:
                at = [e.let(self.values + (group * LANES + row + i) * FOURS) for i in range(height)]
                acc = accumulators(e, height * len(columns), self.lanes)
                for i in range(height * len(columns)):
                    e.set(acc, i, splat(tirx.const(0, "int32"), self.lanes))
                with e.loop(0, self.groups, "four") as four:
                    values = [e.let(splat(e.load(self.words, index + four), self.lanes)) for index in at]
                    dots = vnni(e, self.lanes, values)
                    for j, column in enumerate(columns):
                        weights = e.load(self.words, self.weights + four * QUERIES + column, self.lanes)
                        sums = dots(weights, [e.get(acc, i * len(columns) + j) for i in range(height)])
                        for i, total in enumerate(sums):
                            e.set(acc, i * len(columns) + j, total)
                for i in range(height):
                    line = e.let(self.scores + (row + i) * QUERIES)
                    for column, total in zip(columns, self._row(acc, i, len(columns)), strict=True):
                        e.store(self.words, line + column, total)

            tiles(e, i64(0), i64(LANES), self.tile_rows(vectors), tile)

        self.by_vectors(of)

    # Softmax.

    def soften(self, keys: Expr) -> None:
        """scores -> weights, [four keys][query], zero past the last key; the running maximum and sum move on"""
        e = self.e

        def of(first: Expr, vectors: int) -> None:
            line = e.let(self.scores + first * LANES)
            top, total = e.registers(vectors, "int32x16"), e.registers(vectors, "int32x16")
            for v in range(vectors):
                e.set(top, v, splat(tirx.const(LOWEST, "int32")))
                e.set(total, v, splat(tirx.const(0, "int32")))
            with e.loop(0, keys, "j") as j:
                at = e.let(line + j * QUERIES)
                for v in range(vectors):
                    e.set(top, v, tirx.max(e.get(top, v), e.load(self.words, at + v * LANES, LANES)))
            lifts = [
                self.rise(first + v, e.let(tirx.Cast("float32x16", e.get(top, v)))) for v in range(vectors)
            ]
            with e.loop(0, self.groups, "four") as four:
                at = e.let(line + four * (4 * QUERIES))
                target = e.let(self.weights + four * QUERIES + first * LANES)
                kept = self._tail(e.let(keys - four * 4))
                for v, lift in enumerate(lifts):
                    parts = [self._weight(at + (i * QUERIES + v * LANES), lift) for i in range(4)]
                    word = e.let(tirx.bitwise_and(pack(e, parts), kept))
                    e.store(self.words, target + v * LANES, word)
                    e.set(total, v, self._sum(e.get(total, v), word))
            for v in range(vectors):
                self.add(first + v, e.let(tirx.Cast("float32x16", e.get(total, v))))

        self.by_vectors(of)

    def _weight(self, at: Expr, lift: tuple[Expr, Expr]) -> Expr:
        e, (factor, start) = self.e, lift
        score = e.let(tirx.Cast("float32x16", e.load(self.words, at, LANES)))
        return bits(e, weigh(e, e.let(fma(score, factor, start))))

    def _tail(self, left: Expr) -> Expr:
        """A mask of the first `left` of four bytes."""
        bits = tirx.Cast("int32", tirx.min(left, i64(3)) * 8)
        some = tirx.shift_left(tirx.const(1, "int32"), bits) - tirx.const(1, "int32")
        return self.e.let(splat(self.e.let(tirx.Select(left > 3, tirx.const(-1, "int32"), some))))

    def _sum(self, total: Expr, word: Expr) -> Expr:
        """Plus the four bytes of each lane."""
        e, lanes = self.e, self.lanes
        ones = splat(tirx.const(0x01010101, "int32"), lanes)
        if lanes == LANES:
            return e.let(vnni(e, lanes, [ones])(word, [total])[0])
        byte = splat(tirx.const(0xFF, "int32"))
        for i in range(4):
            shifted = tirx.shift_right(word, splat(tirx.const(8 * i, "int32")))
            total = total + tirx.bitwise_and(shifted, byte)
        return e.let(total)
