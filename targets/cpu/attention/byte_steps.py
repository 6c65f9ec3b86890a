"""Attention on int8 by x86's instructions that sum four products of bytes.

Four bytes of k lie in each lane: of 16 queries four features, and four weights of four keys. Packing them so takes
shifts only, as each comes in a vector of its own. One operand is unsigned: keys are stored as K + 128, and scores
start at -128 times the sum of the query.

AMX has no code of its own: half of the time goes into softmax, and tiles, raced, saved nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmc.compiler.ops.int8_attention import LOWEST, ROUND
from llmc.compiler.ops.rows import ZERO
from llmc.targets.cpu.attention import int8
from llmc.targets.cpu.attention.byte_products import ByteProducts
from llmc.targets.cpu.attention.int8 import Int8, Levels, level, weigh
from llmc.targets.cpu.attention.item import Item
from llmc.targets.cpu.attention.scratch import FOURS, KEPT_BYTES, QUERIES, ByteScratch, byte_scratch
from llmc.targets.cpu.attention.stages import Work
from llmc.targets.cpu.products.dots import vnni
from llmc.targets.target import Cpu
from llmc.targets.tir.attention_shape import Shape
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, fma, i64, lanes_of, splat, vector
from llmc.targets.tir.later import tirx
from llmc.targets.tir.transpose import load_transposed


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


@dataclass(frozen=True)
class ByteSteps:
    """The arithmetic of a kernel whose integers are bytes and their sums int32.

    Args:
        words, bytes: scratch memory as int32 and as bytes.
        lanes: int32 lanes of a register.
    """

    int8: Int8
    own: ByteScratch
    words: Buffer
    bytes: Buffer
    lanes: int

    @classmethod
    def of(cls, e: Emitter, cpu: Cpu, shape: Shape, at: Mapping[str, Buffer]) -> ByteSteps:
        own = byte_scratch(shape.layouts)
        shared = Int8.of(e, cpu, shape, own.scales, KEPT_BYTES)
        return cls(shared, own, e.scratch("int32"), e.scratch("uint8"), cpu.lanes)

    @property
    def work(self) -> Work:
        return self.int8.work

    @property
    def products(self) -> ByteProducts:
        return ByteProducts(self.work, self.own, self.words, self.lanes)

    def attend(self, item: Item) -> None:
        """The whole of one item."""
        int8.attend(self, item)

    def levels(self, slot: Expr) -> Levels:
        e, size = self.work.e, self.int8.scales.size
        keys = e.let(self.own.levels + slot * (2 * FOURS * size))
        return Levels(keys, e.let(keys + FOURS * size))

    def keep(self, vector: Expr, features: int, inverse: Expr) -> None:
        """[four features][query], and what the scores of each query start from."""
        e = self.work.e
        total = e.registers(1, "int32x16")
        e.set(total, 0, splat(tirx.const(0, "int32")))
        with e.loop(0, self.int8.scales.size // 4, "four") as four:
            parts = []
            for i in range(4):
                x = e.load(self.work.memory, features + (four * 4 + i) * LANES, LANES)
                parts.append(bits(e, level(e, x, inverse)))
                e.set(total, 0, e.get(total) + (parts[-1] - splat(bits(e, f32(ROUND)))))
            e.store(self.words, four * QUERIES + vector * LANES, pack(e, parts))
        start = e.get(total) * splat(tirx.const(-ZERO, "int32"))
        e.store(self.words, self.own.starts + vector * LANES, start)

    def gather(self, item: Item, keys: Expr, levels: Levels) -> None:
        """Keys by row, [key][feature]; values by feature, [feature][key], by way of groups of four keys."""
        inverses = {name: self.int8.scales.inverses(name) for name in "kv"}
        self._gather_keys(item, keys, levels, inverses["k"])
        self._gather_values(item, keys, inverses["v"])
        e, size = self.work.e, self.int8.scales.size
        with e.loop(0, size // LANES, "group") as group:
            lines = [e.let(self.own.fours + i * size + group * LANES) for i in range(FOURS)]
            for i, value in enumerate(load_transposed(e, self.work.memory, lines, LANES)):
                e.store(self.work.memory, levels.values + (group * LANES + i) * FOURS, value)

    def _gather_keys(self, item: Item, keys: Expr, levels: Levels, inverses: Sequence[Expr]) -> None:
        e, k = self.work.e, item.k
        with e.loop(0, keys, "j") as j:
            start = e.let(k.row(self.work.listed.key(j)))
            for group, inverse in enumerate(inverses):
                x = e.load(k.buffer, start + group * LANES, LANES)
                here = 4 * levels.keys + j * k.size + group * LANES
                byte = tirx.Cast("uint8x16", bits(e, level(e, x, inverse, ZERO)))
                e.store(self.bytes, here, byte)

    def _gather_values(self, item: Item, keys: Expr, inverses: Sequence[Expr]) -> None:
        """To [four keys][feature]; of the last four some are there twice: they weigh nothing."""
        e, v = self.work.e, item.v
        with e.loop(0, e.let(div(keys + 3, 4)), "four") as four:
            rows = [e.let(tirx.min(four * 4 + i, keys - 1)) for i in range(4)]
            at = [e.let(v.row(self.work.listed.key(row))) for row in rows]
            for group, inverse in enumerate(inverses):
                values = [e.load(v.buffer, i + group * LANES, LANES) for i in at]
                parts = [bits(e, level(e, x, inverse)) for x in values]
                e.store(self.words, self.own.fours + four * v.size + group * LANES, pack(e, parts))

    def block(self, item: Item, keys: Expr, levels: Levels) -> None:
        e, products = self.work.e, self.products
        fours = e.let(div(keys + 3, 4))
        products.score(item, keys, levels)
        self._soften(item, keys, fours)
        with e.loop(0, self.int8.scales.size // LANES, "group") as group:
            products.mix(item, group, fours, levels)
            self._join(item, group)

    # Softmax.

    def _soften(self, item: Item, keys: Expr, fours: Expr) -> None:
        """scores -> weights, [four keys][query], zero past the last key; the running maximum and sum move on"""
        e = self.work.e

        def of(first: Expr, vectors: int) -> None:
            line = e.let(self.work.at.scores + first * LANES)
            top, total = e.registers(vectors, "int32x16"), e.registers(vectors, "int32x16")
            for v in range(vectors):
                e.set(top, v, splat(tirx.const(LOWEST, "int32")))
                e.set(total, v, splat(tirx.const(0, "int32")))
            with e.loop(0, keys, "j") as j:
                at = e.let(line + j * QUERIES)
                for v in range(vectors):
                    e.set(top, v, tirx.max(e.get(top, v), e.load(self.words, at + v * LANES, LANES)))
            lifts = [self.int8.rise(first + v, self._float(e.get(top, v))) for v in range(vectors)]
            with e.loop(0, fours, "four") as four:
                at = e.let(line + four * (4 * QUERIES))
                target = e.let(self.own.weights + four * QUERIES + first * LANES)
                kept = self._tail(e.let(keys - four * 4))
                for v, lift in enumerate(lifts):
                    parts = [self._weight(at + (i * QUERIES + v * LANES), lift) for i in range(4)]
                    word = e.let(tirx.bitwise_and(pack(e, parts), kept))
                    e.store(self.words, target + v * LANES, word)
                    e.set(total, v, self._sum(e.get(total, v), word))
            for v in range(vectors):
                self.int8.add(first + v, self._float(e.get(total, v)))

        self.work.by_vectors(item, of)

    def _float(self, x: Expr) -> Expr:
        return self.work.e.let(tirx.Cast("float32x16", x))

    def _weight(self, at: Expr, lift: tuple[Expr, Expr]) -> Expr:
        e, (factor, start) = self.work.e, lift
        score = self._float(e.load(self.words, at, LANES))
        return bits(e, weigh(e, e.let(fma(score, factor, start))))

    def _tail(self, left: Expr) -> Expr:
        """A mask of the first `left` of four bytes."""
        bits = tirx.Cast("int32", tirx.min(left, i64(3)) * 8)
        some = tirx.shift_left(tirx.const(1, "int32"), bits) - tirx.const(1, "int32")
        e = self.work.e
        return e.let(splat(e.let(tirx.Select(left > 3, tirx.const(-1, "int32"), some))))

    def _sum(self, total: Expr, word: Expr) -> Expr:
        """Plus the four bytes of each lane."""
        e, lanes = self.work.e, self.lanes
        ones = splat(tirx.const(0x01010101, "int32"), lanes)
        if lanes == LANES:
            return e.let(vnni(e, lanes, [ones])(word, [total])[0])
        byte = splat(tirx.const(0xFF, "int32"))
        for i in range(4):
            shifted = tirx.shift_right(word, splat(tirx.const(8 * i, "int32")))
            total = total + tirx.bitwise_and(shifted, byte)
        return e.let(total)

    # Output.

    def _join(self, item: Item, group: Expr) -> None:
        """output[feature][query] = fade * output + the sums of 16 features"""
        work, e = self.work, self.work.e

        def of(first: Expr, vectors: int) -> None:
            fades = [e.let(e.get(work.running.fade, first + v)) for v in range(vectors)]
            with e.loop(0, LANES, "feature") as feature:
                at = e.let(feature * QUERIES + first * LANES)
                target = e.let(work.at.output + group * (LANES * QUERIES) + at)
                for v, fade in enumerate(fades):
                    total = tirx.Cast(
                        "float32x16", e.load(self.words, work.at.scores + at + v * LANES, LANES)
                    )
                    held = e.load(work.memory, target + v * LANES, LANES)
                    e.store(work.memory, target + v * LANES, fma(held, fade, e.let(total)))

        work.by_vectors(item, of)
