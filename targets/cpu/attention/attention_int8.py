"""Attention on int8, step by step as `compiler/ops/int8_attention.py` has it: scales, softmax, the end.

What is here multiplies integers as floats, which is exact: no sum reaches 2^24. It serves CPUs without an instruction
for bytes; `attention_bytes.py` is for the others.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import tirx

from llmc.compiler.ops.int8_attention import FLOOR, KEYS, LOG2_E, LOWEST, POWER, ROUND, WEIGHT
from llmc.targets import Cpu
from llmc.targets.cpu.attention.attention_head import QUERIES, VECTORS, Head
from llmc.targets.cpu.attention.transpose import load_transposed
from llmc.targets.cpu.rows.quantised import magnitude, scale_of
from llmc.targets.tir.attention_shape import Shape
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, fma, i64, splat
from llmc.targets.tir.math import exp2_of

_AHEAD = 16  # keys that are asked for before their largest values are


def scratch(size: int) -> int:
    """Bytes for heads of so many features, more than `Head` takes."""
    return 4 * (4 * size + (Int8Head.blocks + 1) * 2 * KEYS * size)


def power(e: Emitter, x: Expr) -> Expr:
    """2**x of 16 x <= 0, as the reference's `power`."""
    return exp2_of(e, e.let(tirx.max(x, splat(f32(FLOOR)))), POWER)  # NaN picks the second operand


def level(e: Emitter, x: Expr, inverse: Expr, zero: int = 0) -> Expr:
    """ROUND + zero + x * inverse, a whole number: its last 8 bits are those of level + zero.

    No level is beyond 127, as the scale is that of the largest x. What NaN gives does not matter: its scale is NaN.
    """
    return e.let(fma(x, inverse, splat(f32(ROUND + zero))))


def weigh(e: Emitter, x: Expr) -> Expr:
    """ROUND + 255 * 2**x, whose last 8 bits are the weight."""
    return level(e, power(e, x), splat(f32(float(WEIGHT))))


def whole(e: Emitter, level: Expr) -> Expr:
    """Without ROUND."""
    return e.let(level - splat(f32(ROUND)))


class Int8Head(Head):
    """A work item on integers. A query's largest score, sum and output are held as floats.

    The levels of a head's first keys serve all items of the head that this call has.
    """

    lowest = float(LOWEST)
    blocks = 2  # of keys whose levels are kept

    def __init__(
        self, e: Emitter, cpu: Cpu, shape: Shape, pointers: Mapping[str, Buffer], s: Expr, t: Expr
    ) -> None:
        super().__init__(e, cpu, shape, pointers, s, t)
        self.size = shape.layouts.q.size
        self.scales = self.values  # of the features of keys and values, and their inverses
        self.room = self.scales + 4 * self.size  # for the levels of blocks of keys, then of their values
        self.query_scale, self.factor = (e.registers(VECTORS) for _ in range(2))
        self.counts, self.held = e.registers(self.blocks + 1, "int64"), e.registers(1, "int64")
        e.set(self.held, 0, i64(-1))  # the head whose levels are kept

    def attend(self) -> None:
        """As `Head` does, but scales and levels are found by the first item of a head only."""
        e = self.e
        first = e.let(tirx.Cast("int64", tirx.NE(e.let(e.get(self.held)), self.pair)))
        with e.when(first > 0):
            self.scan()
            e.set(self.held, 0, self.pair)
        with e.when(first < 1):
            self.recall()
        self.begin()
        with e.loop(0, div(self.span() + (KEYS - 1), KEYS), "block") as block:
            slot = e.let(tirx.min(block, i64(self.blocks)))
            self.place_levels(slot)
            with e.when(tirx.any(first > 0, block >= self.blocks)):
                keys = self.select(e.let(block * KEYS))
                e.set(self.counts, slot, keys)
                with e.when(keys > 0):
                    self.gather(keys)
                with e.when(block < self.blocks):
                    self.mark()
            keys = e.let(e.get(self.counts, slot))
            with e.when(keys > 0):
                self.score(keys)
                self.soften(keys)
                self.mix(keys)
        self.finish()

    def place_levels(self, slot: Expr) -> None:
        """Where the levels of a block are."""
        self.levels = self.e.let(self.room + slot * (2 * KEYS * self.size))
        self.values = self.e.let(self.levels + KEYS * self.size)

    # Scales.

    def scale_at(self, operand: str, inverse: bool, feature: int) -> int:
        """Where the scale of a feature is, or 1 / it."""
        return self.scales + (2 * (operand == "v") + inverse) * self.size + feature

    def scan(self) -> None:
        """The scale of each feature: its largest magnitude in the keys that may be attended."""
        e, groups = self.e, self.size // LANES
        tops = {name: e.registers(groups, "int32x16") for name in "kv"}
        for top in tops.values():
            for group in range(groups):
                e.set(top, group, splat(tirx.const(0, "int32")))
        with e.loop(0, self.t, "key") as key:
            if not self.shape.keys:
                self._widen(tops, key)
            else:
                with e.when(tirx.Cast("int64", self.flag_of(key)) > 0):
                    self._widen(tops, key)
        for name, top in tops.items():
            for group in range(groups):
                scale = scale_of(e, e.let(e.get(top, group)))
                for inverse, value in enumerate((scale, e.let(splat(f32(1.0)) / scale))):
                    e.store(self.memory, i64(self.scale_at(name, bool(inverse), group * LANES)), value)

    def _widen(self, tops: Mapping[str, Buffer], key: Expr) -> None:
        e = self.e
        for name, top in tops.items():
            width = getattr(self.shape.layouts, name).width
            start = e.let(self.start[name] + key * width)
            soon = e.let(self.start[name] + tirx.min(key + _AHEAD, self.t - 1) * width)
            for group in range(self.size // LANES):
                e.prefetch(self.at[name], soon + group * LANES)
                found = magnitude(e, e.load(self.at[name], start + group * LANES, LANES))
                e.set(top, group, tirx.max(e.get(top, group), found))

    def inverses(self, operand: str) -> list[Expr]:
        """1 / scale of the features of keys or values, by sixteens."""
        at = (self.scale_at(operand, True, f) for f in range(0, self.size, LANES))
        return [self.e.load(self.memory, i64(index), LANES) for index in at]

    # Queries.

    def take(self, vector: Expr) -> None:
        """16 queries times the keys' scales, transposed, then rounded to levels of their own."""
        e, layout, held = self.e, self.shape.layouts.q, self.scores
        rows, top = e.let(self.first + vector * LANES), e.registers(1, "int32x16")
        e.set(top, 0, splat(tirx.const(0, "int32")))
        at = [e.let(self.start["q"] + tirx.min(rows + i, self.s - 1) * layout.width) for i in range(LANES)]
        with e.loop(0, self.size // LANES, "group") as group:
            here = [e.let(index + group * LANES) for index in at]
            for i, value in enumerate(load_transposed(e, self.at["q"], here, LANES)):
                feature = e.let(group * LANES + i)
                scale = e.load(self.memory, self.scale_at("k", False, 0) + feature)
                value = e.let(value * splat(scale))
                e.store(self.memory, held + feature * LANES, value)
                e.set(top, 0, tirx.max(e.get(top), magnitude(e, value)))
        scale = scale_of(e, e.let(e.get(top)))
        e.set(self.query_scale, vector, scale)
        e.set(self.factor, vector, scale * splat(f32(self.shape.scale * LOG2_E)))
        self.keep(vector, held, e.let(splat(f32(1.0)) / scale))

    def keep(self, vector: Expr, held: int, inverse: Expr) -> None:
        """The levels of 16 queries, whose features are at `held`."""
        e = self.e
        with e.loop(0, self.size, "feature") as feature:
            x = e.load(self.memory, held + feature * LANES, LANES)
            value = whole(e, level(e, x, inverse))
            e.store(self.memory, feature * QUERIES + vector * LANES, value)

    # A block of keys.

    def gather(self, keys: Expr) -> None:
        """The levels of the keys and of their values."""
        e = self.e
        inverses = {name: self.inverses(name) for name in "kv"}
        with e.loop(0, keys, "j") as j:
            key = e.let(e.get(self.kept, j))
            for name, first, pitch in (("k", self.levels, self.size), ("v", self.values, self.pitch)):
                start = e.let(self.start[name] + key * getattr(self.shape.layouts, name).width)
                target = e.let(first + j * pitch)
                for group, inverse in enumerate(inverses[name]):
                    x = e.load(self.at[name], start + group * LANES, LANES)
                    e.store(self.memory, target + group * LANES, whole(e, level(e, x, inverse)))

    def key_at(self, number: Expr) -> tuple[Buffer, Expr]:
        return self.memory, self.levels + number * self.size

    def rise(self, vector: Expr, top: Expr) -> tuple[Expr, Expr]:
        """With `top` the largest score of 16 queries in the block: c, and - c times the largest of all."""
        e = self.e
        before = e.let(e.get(self.highest, vector))
        new = e.let(tirx.max(before, top))
        factor = e.let(e.get(self.factor, vector))
        e.set(self.highest, vector, new)
        e.set(self.fade, vector, power(e, e.let((before - new) * factor)))
        return factor, e.let(new * (splat(f32(-1.0)) * factor))

    def add(self, vector: Expr, weights: Expr) -> None:
        """A block's weights to the sums of 16 queries."""
        e = self.e
        e.set(self.total, vector, fma(e.get(self.total, vector), e.get(self.fade, vector), weights))

    def soften(self, keys: Expr) -> None:
        """scores -> weights; the running maximum and sum move on"""
        e = self.e

        def of(vector: Expr, vectors: int) -> None:
            line = e.let(self.scores + vector * LANES)
            top, total = e.registers(vectors), e.registers(vectors)
            for v in range(vectors):
                e.set(top, v, splat(f32(self.lowest)))
                e.set(total, v, splat(f32(0.0)))
            with e.loop(0, keys, "j") as j:
                at = e.let(line + j * QUERIES)
                for v in range(vectors):
                    e.set(top, v, tirx.max(e.get(top, v), e.load(self.memory, at + v * LANES, LANES)))
            lifts = [self.rise(vector + v, e.let(e.get(top, v))) for v in range(vectors)]
            with e.loop(0, keys, "j") as j:
                at = e.let(line + j * QUERIES)
                for v, (factor, lift) in enumerate(lifts):
                    score = e.load(self.memory, at + v * LANES, LANES)
                    weight = whole(e, weigh(e, e.let(fma(score, factor, lift))))
                    e.store(self.memory, at + v * LANES, weight)
                    e.set(total, v, e.get(total, v) + weight)
            for v in range(vectors):
                self.add(vector + v, e.get(total, v))

        self.by_vectors(of)

    def fresh(self, at: Expr, vector: Expr) -> Expr:
        return splat(f32(0.0))

    def mixed(self, at: Expr, vector: Expr, total: Expr) -> Expr:
        return fma(self.e.load(self.memory, at, LANES), self.e.get(self.fade, vector), total)

    # The end.

    def divisor(self, vector: Expr) -> Expr:
        """NaN if a query or a key of its sequence is not finite."""
        e = self.e
        finite = e.let(e.get(self.query_scale, vector)) < splat(f32(float("inf")))
        return e.let(tirx.Select(finite, super().divisor(vector), splat(f32(float("nan")))))

    def result(self, feature: Expr, vector: Expr, factor: Expr) -> Expr:
        scale = self.e.load(self.memory, self.scale_at("v", False, 0) + feature)
        return self.e.let(super().result(feature, vector, factor)) * splat(scale)
