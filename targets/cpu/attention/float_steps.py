"""Attention in float32, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmc.compiler.ops.int8_attention import KEYS, LOG2_E
from llmc.targets.cpu.attention import stages
from llmc.targets.cpu.attention.item import Item, Rows
from llmc.targets.cpu.attention.masks import Mask
from llmc.targets.cpu.attention.scratch import QUERIES, FloatScratch, float_scratch, pitch
from llmc.targets.cpu.attention.stages import Mixing, Work
from llmc.targets.target import Cpu
from llmc.targets.tir.attention_shape import Shape
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, fma, i64, splat
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import exp2_down, exp_down
from llmc.targets.tir.transpose import load_transposed

# No score but -inf is below it: models mask by adding float32's minimum, and a query with only such keys weighs
# them equally. Finite, so that exp(LOWEST - LOWEST) is 1 and not NaN.
LOWEST = -3.4028234663852886e38


@dataclass(frozen=True)
class FloatSteps:
    """The arithmetic of a kernel in float32."""

    work: Work
    own: FloatScratch
    mask: Mask

    @classmethod
    def of(cls, e: Emitter, cpu: Cpu, shape: Shape, at: Mapping[str, Buffer]) -> FloatSteps:
        work = Work.of(e, cpu, shape)
        return cls(work, float_scratch(shape.layouts), Mask(work, at.get("mask")))

    def attend(self, item: Item) -> None:
        """The whole of one item."""
        e, sequence = self.work.e, item.sequence
        stages.begin(self.work, item, lambda v: self._take(item, v), LOWEST)
        with e.loop(self._first(item), div(sequence.span() + (KEYS - 1), KEYS), "block") as block:
            keys = sequence.select(e.let(block * KEYS), item.first + item.queries)
            with e.when(keys > 0):
                self._block(item, keys)
        stages.finish(self.work, item, lambda v: stages.divisor(self.work, v), self._result)

    def _first(self, item: Item) -> Expr | int:
        """The block with the oldest key that the first query attends to."""
        window = self.work.shape.window
        oldest = item.sequence.past + item.first - (window - 1)
        return self.work.e.let(div(tirx.max(oldest, i64(0)), KEYS)) if window else 0

    def _block(self, item: Item, keys: Expr) -> None:
        """The keys listed, on top of those before."""
        self._gather(item, keys)
        if item.k.stored == "f32":
            stages.score(self.work, item, keys, item.k.buffer, lambda i: item.k.row(self.work.listed.key(i)))
        else:
            decoded = pitch(item.k.size)
            stages.score(self.work, item, keys, self.work.memory, lambda i: self.own.keys + i * decoded)
        self.mask.apply(item, keys)
        self._soften(item, keys)
        how = Mixing(self.own.values, pitch(item.v.size), self._faded, lambda at, vector, total: total)
        stages.mix(self.work, item, keys, how)

    def _take(self, item: Item, vector: Expr) -> None:
        """16 queries into scratch, transposed."""
        e, q = self.work.e, item.q
        rows = e.let(item.first + vector * LANES)
        for feature in range(0, q.size, LANES):
            here = min(LANES, q.size - feature)
            last = item.sequence.queries - 1
            at = [e.let(q.row(tirx.min(rows + i, last)) + feature) for i in range(LANES)]
            for i, value in enumerate(load_transposed(e, q.buffer, at, here)):
                value = item.query(e, value)
                e.store(self.work.memory, (feature + i) * QUERIES + vector * LANES, value)

    def _gather(self, item: Item, keys: Expr) -> None:
        """Copy the values of the keys, which `mix` reads many times, next to each other.

        The keys are asked for, or decoded.
        """
        e, k, v = self.work.e, item.k, item.v
        with e.loop(0, keys, "j") as j:
            key = e.let(self.work.listed.key(j))
            start = e.let(k.row(key))
            if k.stored != "f32":
                self._decode(k, start, e.let(self.own.keys + j * pitch(k.size)))
            else:
                for feature in range(0, k.size, LANES):
                    e.prefetch(k.buffer, start + feature)
            self._decode(v, e.let(v.row(key)), e.let(self.own.values + j * pitch(v.size)))

    def _decode(self, rows: Rows, start: Expr, target: Expr) -> None:
        """The features of a token into scratch, as float32."""
        e = self.work.e
        for feature in range(0, rows.size, LANES):
            mask = e.first(i64(rows.size - feature)) if feature + LANES > rows.size else None
            e.store(self.work.memory, target + feature, rows.load(e, start, feature, mask))

    def _soften(self, item: Item, keys: Expr) -> None:
        """scores -> exp(score - maximum); the running maximum and sum move on."""
        e, memory, running = self.work.e, self.work.memory, self.work.running
        # As powers of 2, the maximum too. Not where a mask may have added float32's minimum: it would overflow.
        scale = splat(f32(1.0 if self.mask.scales else self.work.shape.scale * LOG2_E))
        power = exp_down if self.mask.scales else exp2_down

        def of(vector: Expr, vectors: int) -> None:
            line = e.let(self.work.at.scores + vector * LANES)
            top, total = e.registers(vectors), e.registers(vectors)
            for v in range(vectors):
                e.set(top, v, splat(f32(float("-inf"))))
                e.set(total, v, splat(f32(0.0)))
            with e.loop(0, keys, "j") as j:
                at = e.let(line + j * QUERIES)
                for v in range(vectors):
                    e.set(top, v, tirx.max(e.get(top, v), e.load(memory, at + v * LANES, LANES)))
            for v in range(vectors):
                old = e.let(e.get(running.highest, vector + v))
                new = e.let(tirx.max(old, e.get(top, v) * scale))
                e.set(running.highest, vector + v, new)
                e.set(running.fade, vector + v, power(e, e.let(old - new)))
                e.set(top, v, splat(f32(0.0)) - new)
            with e.loop(0, keys, "j") as j:
                at = e.let(line + j * QUERIES)
                for v in range(vectors):
                    p = power(e, e.let(fma(e.load(memory, at + v * LANES, LANES), scale, e.get(top, v))))
                    e.store(memory, at + v * LANES, p)
                    e.set(total, v, e.get(total, v) + p)
            for v in range(vectors):
                fade = e.get(running.fade, vector + v)
                held = e.get(running.total, vector + v)
                e.set(running.total, vector + v, fma(held, fade, e.get(total, v)))

        self.work.by_vectors(item, of)

    def _faded(self, at: Expr, vector: Expr) -> Expr:
        """The output so far of 16 queries, scaled to the new maximum."""
        return self.work.e.load(self.work.memory, at, LANES) * self.work.e.get(self.work.running.fade, vector)

    def _result(self, feature: Expr, vector: Expr, factor: Expr) -> Expr:
        """output / sum; a query with no key gives 0."""
        return stages.output_of(self.work, feature, vector) * factor
