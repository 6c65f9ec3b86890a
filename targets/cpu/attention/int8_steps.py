"""Attention on int8 whose integers are multiplied as floats, which is exact: no sum reaches 2^24.

It serves CPUs without an instruction for bytes; `byte_steps.py` is for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmc.compiler.ops.int8_attention import KEYS, LOWEST
from llmc.targets.cpu.attention import int8, stages
from llmc.targets.cpu.attention.int8 import Int8, Levels, level, weigh, whole
from llmc.targets.cpu.attention.item import Item
from llmc.targets.cpu.attention.scratch import KEPT, QUERIES, Int8Scratch, int8_scratch
from llmc.targets.cpu.attention.stages import Mixing, Work
from llmc.targets.target import Cpu
from llmc.targets.tir.attention_shape import Shape
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, f32, fma, splat
from llmc.targets.tir.later import tirx


@dataclass(frozen=True)
class WholeSteps:
    """The arithmetic of a kernel whose integers are floats."""

    int8: Int8
    own: Int8Scratch

    @classmethod
    def of(cls, e: Emitter, cpu: Cpu, shape: Shape, at: Mapping[str, Buffer]) -> WholeSteps:
        own = int8_scratch(shape.layouts)
        return cls(Int8.of(e, cpu, shape, own.scales, KEPT), own)

    @property
    def work(self) -> Work:
        return self.int8.work

    def attend(self, item: Item) -> None:
        """The whole of one item."""
        int8.attend(self, item)

    def levels(self, slot: Expr) -> Levels:
        e, size = self.work.e, self.int8.scales.size
        keys = e.let(self.own.levels + slot * (2 * KEYS * size))
        return Levels(keys, e.let(keys + KEYS * size))

    def keep(self, vector: Expr, features: int, inverse: Expr) -> None:
        e, memory = self.work.e, self.work.memory
        with e.loop(0, self.int8.scales.size, "feature") as feature:
            x = e.load(memory, features + feature * LANES, LANES)
            value = whole(e, level(e, x, inverse))
            e.store(memory, feature * QUERIES + vector * LANES, value)

    def gather(self, item: Item, keys: Expr, levels: Levels) -> None:
        e, size = self.work.e, self.int8.scales.size
        parts = [
            (rows, first, self.int8.scales.inverses(name))
            for name, rows, first in (("k", item.k, levels.keys), ("v", item.v, levels.values))
        ]
        with e.loop(0, keys, "j") as j:
            key = e.let(self.work.listed.key(j))
            for rows, first, inverses in parts:
                start = e.let(rows.row(key))
                target = e.let(first + j * size)
                for group, inverse in enumerate(inverses):
                    x = e.load(rows.buffer, start + group * LANES, LANES)
                    e.store(self.work.memory, target + group * LANES, whole(e, level(e, x, inverse)))

    def block(self, item: Item, keys: Expr, levels: Levels) -> None:
        work, size = self.work, self.int8.scales.size
        stages.score(work, item, keys, work.memory, lambda i: levels.keys + i * size)
        self._soften(item, keys)
        how = Mixing(levels.values, size, lambda at, vector: splat(f32(0.0)), self._joined)
        stages.mix(work, item, keys, how)

    def _joined(self, at: Expr, vector: Expr, total: Expr) -> Expr:
        """fade * output + the sums, of whole numbers, rounded once."""
        e = self.work.e
        return fma(e.load(self.work.memory, at, LANES), e.get(self.work.running.fade, vector), total)

    def _soften(self, item: Item, keys: Expr) -> None:
        """scores -> weights; the running maximum and sum move on"""
        e, memory = self.work.e, self.work.memory

        def of(vector: Expr, vectors: int) -> None:
            line = e.let(self.work.at.scores + vector * LANES)
            top, total = e.registers(vectors), e.registers(vectors)
            for v in range(vectors):
                e.set(top, v, splat(f32(float(LOWEST))))
                e.set(total, v, splat(f32(0.0)))
            with e.loop(0, keys, "j") as j:
                at = e.let(line + j * QUERIES)
                for v in range(vectors):
                    e.set(top, v, tirx.max(e.get(top, v), e.load(memory, at + v * LANES, LANES)))
            lifts = [self.int8.rise(vector + v, e.let(e.get(top, v))) for v in range(vectors)]
            with e.loop(0, keys, "j") as j:
                at = e.let(line + j * QUERIES)
                for v, (factor, lift) in enumerate(lifts):
                    score = e.load(memory, at + v * LANES, LANES)
                    weight = whole(e, weigh(e, e.let(fma(score, factor, lift))))
                    e.store(memory, at + v * LANES, weight)
                    e.set(total, v, e.get(total, v) + weight)
            for v in range(vectors):
                self.int8.add(vector + v, e.get(total, v))

        self.work.by_vectors(item, of)
