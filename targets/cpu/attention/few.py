"""Attention of one or two queries to many keys: what a next token asks for.

With sixteen queries to a vector most lanes would be idle. Here a vector holds the scores of sixteen keys, and then
sixteen features of the output. Every number is made by the same operations in the same order as in `float_steps.py`,
so a text has the same bits token by token and in one call:

- a score sums its products in the order of features, from 0;
- blocks are those 64 keys, and within one the sums run in key order; what is masked there adds zeros, and is left out;
- a block is scaled to the largest score so far, as all before it are.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from llmc.compiler.ops.int8_attention import KEYS, LOG2_E
from llmc.targets.cpu.attention.float_steps import LOWEST
from llmc.targets.cpu.attention.item import Item
from llmc.targets.cpu.attention.stages import Work
from llmc.targets.cpu.attention.transpose import load_transposed
from llmc.targets.tir.attention_shape import Shape
from llmc.targets.tir.emit import LANES, Buffer, Expr, div, f32, fma, i64, splat
from llmc.targets.tir.math import exp2_down

FEW = 2  # queries; of three, sixteen at once are faster


def suits(shape: Shape) -> bool:
    """Whether kernels of this shape have code for few queries: a decoder's, whose masks are the past alone."""
    return shape.causal and not shape.keys and shape.mask is None


@dataclass(frozen=True)
class One:
    """One query: where it is, and what has been summed of the blocks before."""

    row: Expr
    out: Expr
    position: Expr
    highest: Buffer
    total: Buffer
    sums: Buffer


@dataclass(frozen=True)
class FewSteps:
    """The arithmetic of items with few queries; its scores lie where those of many do."""

    work: Work

    def attend(self, item: Item) -> None:
        """The queries of an item, one after the other."""
        e, vectors = self.work.e, self._vectors(item)
        highest, total, sums = e.registers(1), e.registers(1, "float32"), e.registers(vectors)
        with e.loop(0, item.queries, "i") as i:
            query = e.let(item.first + i)
            position = e.let(item.sequence.past + query)
            at = [e.let(rows.row(query)) for rows in (item.q, item.out)]
            one = One(at[0], at[1], position, highest, total, sums)
            self._begin(one, vectors)
            first, after = self._oldest(position), div(position + KEYS, KEYS)
            with e.loop(div(first, KEYS), after, "block") as block:
                self._block(item, one, e.let(block * KEYS), first)
            self._finish(item, one)

    def _vectors(self, item: Item) -> int:
        return -(-item.v.size // LANES)

    def _oldest(self, position: Expr) -> Expr:
        """The first key that is attended to."""
        window = self.work.shape.window
        return self.work.e.let(tirx.max(position - (window - 1), i64(0))) if window else i64(0)

    def _begin(self, one: One, vectors: int) -> None:
        e = self.work.e
        e.set(one.highest, 0, splat(f32(LOWEST)))
        e.set(one.total, 0, f32(0.0))
        for v in range(vectors):
            e.set(one.sums, v, splat(f32(0.0)))

    def _block(self, item: Item, one: One, start: Expr, oldest: Expr) -> None:
        """64 keys at most, on top of those before."""
        e = self.work.e
        keys = e.let(tirx.min(i64(KEYS), one.position + 1 - start))
        skipped = e.let(tirx.max(oldest - start, i64(0)))
        top = e.registers(1)
        e.set(top, 0, splat(f32(float("-inf"))))
        with e.loop(div(skipped, LANES), div(keys + (LANES - 1), LANES), "v") as v:
            score = self._score(item, one, start, e.let(v * LANES), (skipped, keys))
            e.store(self.work.memory, self.work.at.scores + v * LANES, score)
            e.set(top, 0, tirx.max(e.get(top), score))
        fade = self._soften(one, e.get(top), (skipped, keys))
        self._mix(item, one, start, (skipped, keys), fade)

    def _score(self, item: Item, one: One, start: Expr, first: Expr, within: tuple[Expr, Expr]) -> Expr:
        """K q of sixteen keys, -inf of those that are not `within`."""
        e, k, q = self.work.e, item.k, item.q
        last = e.let(within[1] - 1)
        at = [e.let(k.row(start + tirx.min(first + i, last))) for i in range(LANES)]
        total = e.registers(1)
        e.set(total, 0, splat(f32(0.0)))

        def add(feature: Expr, columns: int) -> None:
            rows = load_transposed(e, k.buffer, [e.let(a + feature) for a in at], columns)
            for i, keys in enumerate(rows):
                query = splat(e.load(q.buffer, one.row + feature + i))
                e.set(total, 0, fma(keys, query, e.get(total)))

        with e.loop(0, k.size // LANES, "d") as d:
            add(e.let(d * LANES), LANES)
        if k.size % LANES:
            add(i64(k.size // LANES * LANES), k.size % LANES)
        lane = tirx.Ramp(tirx.Cast("int32", first), tirx.const(1, "int32"), LANES)
        low, high = (splat(tirx.Cast("int32", bound)) for bound in within)
        lowest = splat(f32(float("-inf")))
        score = e.let(tirx.Select(lane < high, e.get(total), lowest))
        return e.let(tirx.Select(lane >= low, score, lowest)) if self.work.shape.window else score

    def _soften(self, one: One, top: Expr, within: tuple[Expr, Expr]) -> Expr:
        """scores -> exp(score - maximum); the maximum so far moves on. By how much what was before fades."""
        e, memory, scores = self.work.e, self.work.memory, self.work.at.scores
        scale = splat(f32(self.work.shape.scale * LOG2_E))
        old = e.let(e.get(one.highest))
        highest = e.fold(e.let(top), tirx.max)
        new = e.let(tirx.max(old, splat(highest) * scale))
        e.set(one.highest, 0, new)
        below = e.let(splat(f32(0.0)) - new)
        with e.loop(div(within[0], LANES), div(within[1] + (LANES - 1), LANES), "v") as v:
            at = e.let(scores + v * LANES)
            e.store(memory, at, exp2_down(e, e.let(fma(e.load(memory, at, LANES), scale, below))))
        return exp2_down(e, e.let(old - new))

    def _mix(self, item: Item, one: One, start: Expr, within: tuple[Expr, Expr], fade: Expr) -> None:
        """sums = fade * sums + V^T p, and the total likewise."""
        e, v, memory = self.work.e, item.v, self.work.memory
        vectors = self._vectors(item)
        for i in range(vectors):
            e.set(one.sums, i, e.let(e.get(one.sums, i) * fade))
        block = e.registers(1, "float32")
        e.set(block, 0, f32(0.0))
        with e.loop(within[0], within[1], "j") as j:
            p = e.load(memory, e.let(self.work.at.scores + j))
            e.set(block, 0, e.get(block) + p)
            row = e.let(v.row(start + j))
            for i in range(vectors):
                value = e.load(v.buffer, row + i * LANES, LANES, self._mask(v.size, i))
                e.set(one.sums, i, fma(value, splat(p), e.get(one.sums, i)))
        faded = e.let(tirx.Shuffle([fade], [tirx.const(0, "int32")]))
        e.set(one.total, 0, fma(e.get(one.total), faded, e.get(block)))

    def _mask(self, size: int, vector: int) -> Expr | None:
        """Lanes of a vector of features that there are; None: all."""
        left = size - vector * LANES
        return self.work.e.first(i64(left)) if left < LANES else None

    def _finish(self, item: Item, one: One) -> None:
        """out = sums / total"""
        e = self.work.e
        total = e.let(splat(e.let(e.get(one.total))))
        zero = splat(f32(0.0))
        factor = e.let(tirx.Select(total > zero, splat(f32(1.0)) / total, zero))
        for i in range(self._vectors(item)):
            value = e.let(e.get(one.sums, i) * factor)
            e.store(item.out.buffer, one.out + i * LANES, value, self._mask(item.v.size, i))
