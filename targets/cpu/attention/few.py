"""Attention of one or two queries to many keys: what a next token asks for.

With sixteen queries to a vector most lanes would be idle. Here a vector holds the scores of sixteen keys, and then
sixteen features of the output. Every number is made by the same operations in the same order as in `float_steps.py`,
so a text has the same bits token by token and in one call:

- a score sums its products in the order of features, from 0;
- blocks are those 64 keys, and within one the sums run in key order; what is masked there adds zeros, and is left out;
- a block is scaled to the largest score so far, as all before it are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.compiler.dims import Dim
from llmc.compiler.ops.int8_attention import KEYS, LOG2_E
from llmc.targets.cpu.attention.float_steps import LOWEST
from llmc.targets.cpu.attention.item import Item, Rows
from llmc.targets.cpu.attention.stages import Work
from llmc.targets.tir.attention_shape import Shape
from llmc.targets.tir.emit import LANES, Buffer, Expr, div, f32, fma, i64, splat
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import exp2_down
from llmc.targets.tir.transpose import transpose

FEW = 2  # queries; of three, sixteen at once are faster
AHEAD = 32  # keys that are asked for before they are needed
_TOGETHER = 4  # heads whose sums the registers hold


def suits(shape: Shape, queries: Dim, int8: bool) -> bool:
    """Whether kernels of this shape have code for few queries: a decoder's, to its own past or to all of a source."""
    never = isinstance(queries, int) and queries > FEW
    return not (int8 or never or shape.keys) and shape.mask is None


def together(shape: Shape) -> int:
    """Heads that are gone through at once: they share their keys and values, which are read and transposed once."""
    return min(shape.heads // shape.kv_heads, _TOGETHER)


@dataclass(frozen=True)
class One:
    """A query of one head: where it is, and what has been summed of the blocks before.

    Args:
        position: the last key that it attends to.
        scores: where in scratch those of a block are.
    """

    row: Expr
    out: Expr
    position: Expr
    scores: Expr
    highest: Buffer
    total: Buffer
    sums: Buffer


@dataclass(frozen=True)
class FewSteps:
    """The arithmetic of items with few queries; its scores lie where those of many do."""

    work: Work

    def attend(self, items: Sequence[Item]) -> None:
        """The queries of items, one after the other: of one head, or of several that share keys and values."""
        e, item = self.work.e, items[0]
        vectors = self._vectors(item)
        memory = [(e.registers(1), e.registers(1, "float32"), e.registers(vectors)) for _ in items]
        with e.loop(0, item.queries, "i") as i:
            query = e.let(item.first + i)
            position = e.let(item.sequence.past + query if self.work.shape.causal else item.sequence.keys - 1)
            ones = [
                One(
                    e.let(one.q.row(query)),
                    e.let(one.out.row(query)),
                    position,
                    e.let(self.work.at.scores + number * KEYS),
                    *memory[number],
                )
                for number, one in enumerate(items)
            ]
            for one in ones:
                self._begin(one, vectors)
            first, after = self._oldest(position), div(position + KEYS, KEYS)
            with e.loop(div(first, KEYS), after, "block") as block:
                self._block(item, ones, e.let(block * KEYS), first)
            for one in ones:
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

    def _block(self, item: Item, ones: Sequence[One], start: Expr, oldest: Expr) -> None:
        """64 keys at most, on top of those before."""
        e = self.work.e
        keys = e.let(tirx.min(i64(KEYS), ones[0].position + 1 - start))
        skipped = e.let(tirx.max(oldest - start, i64(0)))
        tops = e.registers(len(ones))
        for i in range(len(ones)):
            e.set(tops, i, splat(f32(float("-inf"))))
        with e.loop(div(skipped, LANES), div(keys + (LANES - 1), LANES), "v") as v:
            first = e.let(v * LANES)
            for i, score in enumerate(self._scores(item, ones, start, first, (skipped, keys))):
                e.store(self.work.memory, ones[i].scores + first, score)
                e.set(tops, i, tirx.max(e.get(tops, i), score))
        fades = [self._soften(one, e.get(tops, i), (skipped, keys)) for i, one in enumerate(ones)]
        self._mix(item, ones, start, (skipped, keys), fades)

    def _scores(
        self, item: Item, ones: Sequence[One], start: Expr, first: Expr, within: tuple[Expr, Expr]
    ) -> list[Expr]:
        """K q of sixteen keys, -inf of those that are not `within`, for each query."""
        e, k, q = self.work.e, item.k, item.q
        last = e.let(within[1] - 1)
        at = [e.let(k.row(start + tirx.min(first + i, last))) for i in range(LANES)]
        steps = k.size // LANES
        coming, some = e.let(start + first + AHEAD), -(-LANES // max(1, steps))  # asked for at each step
        totals = e.registers(len(ones))
        for i in range(len(ones)):
            e.set(totals, i, splat(f32(0.0)))

        def add(feature: Expr, columns: int) -> None:
            mask = e.first(i64(columns)) if columns < LANES else None
            rows = transpose(e, [k.load(e, a, feature, mask) for a in at])[:columns]
            for column, keys in enumerate(rows):
                for i, one in enumerate(ones):
                    query = splat(e.load(q.buffer, one.row + feature + column))
                    e.set(totals, i, fma(keys, query, e.get(totals, i)))

        with e.loop(0, steps, "d") as d:
            self._fetch(k, e.let(coming + d * some), some)
            add(e.let(d * LANES), LANES)
        if k.size % LANES:
            add(i64(k.size // LANES * LANES), k.size % LANES)
        return [self._shown(e.get(totals, i), first, within) for i in range(len(ones))]

    def _shown(self, scores: Expr, first: Expr, within: tuple[Expr, Expr]) -> Expr:
        """The scores of keys `within`, -inf for the others."""
        e = self.work.e
        lane = tirx.Ramp(tirx.Cast("int32", first), tirx.const(1, "int32"), LANES)
        low, high = (splat(tirx.Cast("int32", bound)) for bound in within)
        lowest = splat(f32(float("-inf")))
        score = e.let(tirx.Select(lane < high, scores, lowest))
        return e.let(tirx.Select(lane >= low, score, lowest)) if self.work.shape.window else score

    def _fetch(self, rows: Rows, token: Expr, count: int) -> None:
        """Ask for the rows of tokens: they lie apart, so the hardware does not foresee them."""
        e = self.work.e
        for i in range(count):
            row = e.let(rows.row(token + i))
            for feature in range(0, rows.size, rows.line):
                e.prefetch(rows.buffer, row + feature)

    def _soften(self, one: One, top: Expr, within: tuple[Expr, Expr]) -> Expr:
        """scores -> exp(score - maximum); the maximum so far moves on. By how much what was before fades."""
        e, memory = self.work.e, self.work.memory
        scale = splat(f32(self.work.shape.scale * LOG2_E))
        old = e.let(e.get(one.highest))
        highest = e.fold(e.let(top), tirx.max)
        new = e.let(tirx.max(old, splat(highest) * scale))
        e.set(one.highest, 0, new)
        below = e.let(splat(f32(0.0)) - new)
        with e.loop(div(within[0], LANES), div(within[1] + (LANES - 1), LANES), "v") as v:
            at = e.let(one.scores + v * LANES)
            e.store(memory, at, exp2_down(e, e.let(fma(e.load(memory, at, LANES), scale, below))))
        return exp2_down(e, e.let(old - new))

    def _mix(
        self, item: Item, ones: Sequence[One], start: Expr, within: tuple[Expr, Expr], fades: Sequence[Expr]
    ) -> None:
        """sums = fade * sums + V^T p, and the total likewise."""
        e, v, memory = self.work.e, item.v, self.work.memory
        vectors = self._vectors(item)
        for one, fade in zip(ones, fades, strict=True):
            for i in range(vectors):
                e.set(one.sums, i, e.let(e.get(one.sums, i) * fade))
        blocks = e.registers(len(ones), "float32")
        for number in range(len(ones)):
            e.set(blocks, number, f32(0.0))
        with e.loop(within[0], within[1], "j") as j:
            self._fetch(v, e.let(start + j + AHEAD), 1)
            row = e.let(v.row(start + j))
            values = [v.load(e, row, i * LANES, self._mask(v.size, i)) for i in range(vectors)]
            for number, one in enumerate(ones):
                p = e.load(memory, e.let(one.scores + j))
                e.set(blocks, number, e.get(blocks, number) + p)
                for i, value in enumerate(values):
                    e.set(one.sums, i, fma(value, splat(p), e.get(one.sums, i)))
        for number, (one, fade) in enumerate(zip(ones, fades, strict=True)):
            faded = e.let(tirx.Shuffle([fade], [tirx.const(0, "int32")]))
            e.set(one.total, 0, fma(e.get(one.total), faded, e.get(blocks, number)))

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
