"""Attention on int8 as `compiler/ops/int8_attention.py` has it: what is alike however the integers are multiplied.

Scales are found here, queries scaled, and the running maximum, sum and output held, as floats. `int8_steps.py`
multiplies integers as floats, `byte_steps.py` as bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from llmc.compiler.ops.int8_attention import FLOOR, KEYS, LOG2_E, LOWEST, POWER, ROUND, WEIGHT
from llmc.targets.cpu.attention import stages
from llmc.targets.cpu.attention.item import Item, Rows
from llmc.targets.cpu.attention.scratch import VECTORS
from llmc.targets.cpu.attention.stages import Work
from llmc.targets.cpu.rows.quantised import magnitude, scale_of
from llmc.targets.target import Cpu
from llmc.targets.tir.attention_shape import Shape
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, fma, i64, splat
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import exp2_of
from llmc.targets.tir.transpose import load_transposed

_AHEAD = 16  # keys that are asked for before their largest values are


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


@dataclass(frozen=True)
class Scales:
    """The scale of each of the `size` features of keys and of values, and its inverse, in scratch from `at`."""

    work: Work
    at: int
    size: int

    def place(self, operand: str, inverse: bool, feature: int) -> int:
        """Where the scale of a feature of "k" or "v" is, or 1 / it."""
        return self.at + (2 * (operand == "v") + inverse) * self.size + feature

    def of(self, operand: str, feature: Expr) -> Expr:
        """The scale of a feature."""
        return self.work.e.load(self.work.memory, self.place(operand, False, 0) + feature)

    def inverses(self, operand: str) -> list[Expr]:
        """1 / scale of the features of keys or values, by sixteens."""
        at = (self.place(operand, True, f) for f in range(0, self.size, LANES))
        return [self.work.e.load(self.work.memory, i64(index), LANES) for index in at]

    def find(self, item: Item) -> None:
        """The scale of each feature: its largest magnitude in the keys that may be attended."""
        e, groups = self.work.e, self.size // LANES
        tops = {name: e.registers(groups, "int32x16") for name in "kv"}
        for top in tops.values():
            for group in range(groups):
                e.set(top, group, splat(tirx.const(0, "int32")))
        with e.loop(0, item.sequence.keys, "key") as key:
            if not self.work.shape.keys:
                self._widen(item, tops, key)
            else:
                with e.when(tirx.Cast("int64", item.sequence.flag(key)) > 0):
                    self._widen(item, tops, key)
        for name, top in tops.items():
            for group in range(groups):
                scale = scale_of(e, e.let(e.get(top, group)))
                for inverse, value in enumerate((scale, e.let(splat(f32(1.0)) / scale))):
                    e.store(self.work.memory, i64(self.place(name, bool(inverse), group * LANES)), value)

    def _widen(self, item: Item, tops: Mapping[str, Buffer], key: Expr) -> None:
        e = self.work.e
        for name, top in tops.items():
            rows: Rows = getattr(item, name)
            start = e.let(rows.row(key))
            soon = e.let(rows.row(tirx.min(key + _AHEAD, item.sequence.keys - 1)))
            for group in range(self.size // LANES):
                e.prefetch(rows.buffer, soon + group * LANES)
                found = magnitude(e, e.load(rows.buffer, start + group * LANES, LANES))
                e.set(top, group, tirx.max(e.get(top, group), found))


@dataclass(frozen=True)
class Levels:
    """Where in scratch the levels of a block's keys and of its values are."""

    keys: Expr
    values: Expr


@dataclass(frozen=True)
class Memory:
    """What items of attention on int8 leave to the next: the levels of a head's first blocks serve all its items.

    Args:
        blocks: how many blocks are kept.
        counts: keys of each block, and of the one not kept: registers.
        pair: the head whose levels are kept: a register.
    """

    blocks: int
    counts: Buffer
    pair: Buffer


@dataclass(frozen=True)
class Int8:
    """What both kinds of steps hold.

    Args:
        query_scale: of each query, registers.
        factor: what makes a power of 2 of a query's scores, registers.
        held: what is left to the next item.
    """

    work: Work
    scales: Scales
    query_scale: Buffer
    factor: Buffer
    held: Memory

    @classmethod
    def of(cls, e: Emitter, cpu: Cpu, shape: Shape, scales: int, blocks: int) -> Int8:
        """With scales at this place of scratch, and levels of so many blocks kept."""
        work = Work.of(e, cpu, shape)
        query_scale, factor = (e.registers(VECTORS) for _ in range(2))
        held = Memory(blocks, e.registers(blocks + 1, "int64"), e.registers(1, "int64"))
        e.set(held.pair, 0, i64(-1))
        return cls(work, Scales(work, scales, shape.layouts.q.size), query_scale, factor, held)

    def rise(self, vector: Expr, top: Expr) -> tuple[Expr, Expr]:
        """With `top` the largest score of 16 queries in the block: c, and - c times the largest of all."""
        e, running = self.work.e, self.work.running
        before = e.let(e.get(running.highest, vector))
        new = e.let(tirx.max(before, top))
        factor = e.let(e.get(self.factor, vector))
        e.set(running.highest, vector, new)
        e.set(running.fade, vector, power(e, e.let((before - new) * factor)))
        return factor, e.let(new * (splat(f32(-1.0)) * factor))

    def add(self, vector: Expr, weights: Expr) -> None:
        """A block's weights to the sums of 16 queries."""
        e, running = self.work.e, self.work.running
        total, fade = e.get(running.total, vector), e.get(running.fade, vector)
        e.set(running.total, vector, fma(total, fade, weights))


class Int8Steps(Protocol):
    """How integers are kept and multiplied."""

    @property
    def int8(self) -> Int8: ...

    def levels(self, slot: Expr) -> Levels:
        """Where the levels of a block are kept."""

    def keep(self, vector: Expr, features: int, inverse: Expr) -> None:
        """The levels of 16 queries, whose features are at `features`."""

    def gather(self, item: Item, keys: Expr, levels: Levels) -> None:
        """The levels of the listed keys and of their values."""

    def block(self, item: Item, keys: Expr, levels: Levels) -> None:
        """Scores of a block's keys, softmax and output, on top of those before."""


def attend(steps: Int8Steps, item: Item) -> None:
    """The whole of one item; scales and levels are found by the first item of a head only."""
    int8, work = steps.int8, steps.int8.work
    e, held, sequence = work.e, int8.held, item.sequence
    first = e.let(tirx.Cast("int64", tirx.NE(e.let(e.get(held.pair)), item.pair)))
    with e.when(first > 0):
        int8.scales.find(item)
        e.set(held.pair, 0, item.pair)
    with e.when(first < 1):
        sequence.recall()
    stages.begin(work, item, lambda v: _take(steps, item, v), float(LOWEST))
    with e.loop(0, div(sequence.span() + (KEYS - 1), KEYS), "block") as block:
        slot = e.let(tirx.min(block, i64(held.blocks)))
        levels = steps.levels(slot)
        with e.when(tirx.any(first > 0, block >= held.blocks)):
            _fill(steps, item, block, slot, levels)
        keys = e.let(e.get(held.counts, slot))
        with e.when(keys > 0):
            steps.block(item, keys, levels)
    stages.finish(work, item, lambda v: _divisor(int8, v), lambda *at: _result(int8, *at))


def _fill(steps: Int8Steps, item: Item, block: Expr, slot: Expr, levels: Levels) -> None:
    """Find the levels of a block that are not kept."""
    e, held = steps.int8.work.e, steps.int8.held
    keys = item.sequence.select(e.let(block * KEYS), item.first + item.queries)
    e.set(held.counts, slot, keys)
    with e.when(keys > 0):
        steps.gather(item, keys, levels)
    with e.when(block < held.blocks):
        item.sequence.mark()


def _take(steps: Int8Steps, item: Item, vector: Expr) -> None:
    """16 queries times the keys' scales, transposed, then rounded to levels of their own."""
    int8, work, q = steps.int8, steps.int8.work, item.q
    e, held = work.e, work.at.scores
    rows, top = e.let(item.first + vector * LANES), e.registers(1, "int32x16")
    e.set(top, 0, splat(tirx.const(0, "int32")))
    at = [e.let(q.row(tirx.min(rows + i, item.sequence.queries - 1))) for i in range(LANES)]
    with e.loop(0, q.size // LANES, "group") as group:
        here = [e.let(index + group * LANES) for index in at]
        for i, value in enumerate(load_transposed(e, q.buffer, here, LANES)):
            feature = e.let(group * LANES + i)
            scale = int8.scales.of("k", feature)
            value = e.let(item.query(e, value) * splat(scale))
            e.store(work.memory, held + feature * LANES, value)
            e.set(top, 0, tirx.max(e.get(top), magnitude(e, value)))
    scale = scale_of(e, e.let(e.get(top)))
    e.set(int8.query_scale, vector, scale)
    e.set(int8.factor, vector, scale * splat(f32(work.shape.scale * LOG2_E)))
    steps.keep(vector, held, e.let(splat(f32(1.0)) / scale))


def _divisor(int8: Int8, vector: Expr) -> Expr:
    """NaN if a query or a key of its sequence is not finite."""
    e = int8.work.e
    finite = e.let(e.get(int8.query_scale, vector)) < splat(f32(float("inf")))
    return e.let(tirx.Select(finite, stages.divisor(int8.work, vector), splat(f32(float("nan")))))


def _result(int8: Int8, feature: Expr, vector: Expr, factor: Expr) -> Expr:
    """output / sum * the values' scale"""
    scale = int8.scales.of("v", feature)
    found = stages.output_of(int8.work, feature, vector) * factor
    return int8.work.e.let(found) * splat(scale)
