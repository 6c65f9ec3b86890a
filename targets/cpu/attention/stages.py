"""The stages of attention that arithmetic in float and on int8 share: see attention.py for the algorithm.

What differs is handed in as functions: where a key is, what sums start from, what the result is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from llmc.targets.cpu.attention.item import Item
from llmc.targets.cpu.attention.scratch import QUERIES, VECTORS, Scratch, common
from llmc.targets.cpu.attention.sequences import Listed
from llmc.targets.target import Cpu
from llmc.targets.tir.attention_shape import Shape
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, f32, fma, i64, splat
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles
from llmc.targets.tir.transpose import store_transposed


@dataclass(frozen=True)
class Running:
    """Of each query so far, 16 to a register: its largest score and its sum, and what the last block scaled both by."""

    highest: Buffer
    total: Buffer
    fade: Buffer


@dataclass(frozen=True)
class Work:
    """What the items of a kernel share.

    Args:
        wide: as of `Cpu`.
        memory: scratch memory as float32.
        at: where in it.
        listed: the keys of the block.
    """

    e: Emitter
    shape: Shape
    wide: bool
    memory: Buffer
    at: Scratch
    running: Running
    listed: Listed

    @classmethod
    def of(cls, e: Emitter, cpu: Cpu, shape: Shape) -> Work:
        memory = e.scratch()
        running = Running(*(e.registers(VECTORS) for _ in range(3)))
        return cls(e, shape, cpu.wide, memory, common(shape.layouts), running, Listed.empty(e))

    def by_vectors(self, item: Item, body: Callable[[Expr, int], None]) -> None:
        """body(first vector, how many): all four at once where registers allow and most are used."""
        e = self.e
        if not self.wide:
            with e.loop(0, item.vectors, "v") as v:
                body(v, 1)
            return
        with e.when(item.vectors > VECTORS // 2):
            body(i64(0), VECTORS)
        with e.when(item.vectors <= VECTORS // 2), e.loop(0, item.vectors, "v") as v:
            body(v, 1)

    def tile_rows(self, vectors: int) -> int:
        """Rows of a register tile of so many vectors of queries."""
        return 24 // max(vectors, 2) if self.wide else 6


def begin(work: Work, item: Item, take: Callable[[Expr], None], lowest: float) -> None:
    """`take(v)` brings 16 queries into scratch, [feature][query]; nothing seen yet."""
    e, running = work.e, work.running
    with e.loop(0, item.queries, "i") as i:  # rows lie far apart: no hardware foresees them
        for far in (item.q, item.out):
            row = e.let(far.row(item.first + i))
            for feature in range(0, far.size, LANES):
                e.prefetch(far.buffer, row + feature)
    with e.loop(0, item.vectors, "v") as v:
        take(v)
    for v in range(VECTORS):
        e.set(running.highest, v, splat(f32(lowest)))
        e.set(running.total, v, splat(f32(0.0)))
    with e.loop(0, item.v.size * VECTORS, "z") as z:
        e.store(work.memory, work.at.output + z * LANES, splat(f32(0.0)))


def score(work: Work, item: Item, keys: Expr, buffer: Buffer, key_at: Callable[[Expr], Expr]) -> None:
    """scores[key][query] = K q, by tiles of keys; `key_at(i)` is where in `buffer` the features of key i are."""
    e, memory = work.e, work.memory

    def of(vector: Expr, vectors: int) -> None:
        def tile(row: Expr, height: int) -> None:
            at = [e.let(key_at(row + i)) for i in range(height)]
            acc = e.registers(height * vectors)
            for i in range(height * vectors):
                e.set(acc, i, splat(f32(0.0)))
            with e.loop(0, item.k.size, "d") as d:
                column = e.let(d * QUERIES + vector * LANES)
                q = [e.load(memory, column + v * LANES, LANES) for v in range(vectors)]
                for i in range(height):
                    k = e.let(splat(e.load(buffer, at[i] + d)))
                    for v in range(vectors):
                        e.set(acc, i * vectors + v, fma(k, q[v], e.get(acc, i * vectors + v)))
            for i in range(height):
                line = e.let(work.at.scores + (row + i) * QUERIES + vector * LANES)
                for v in range(vectors):
                    e.store(memory, line + v * LANES, e.get(acc, i * vectors + v))

        tiles(e, i64(0), keys, work.tile_rows(vectors), tile)

    work.by_vectors(item, of)


@dataclass(frozen=True)
class Mixing:
    """How a block's products join the output so far.

    Args:
        values: where in scratch the values of the block's keys are, and elements from one to the next.
        pitch: see `values`.
        fresh: (place of the output of 16 queries, their vector) -> what their sums start from.
        mixed: (place, vector, sums) -> their output.
    """

    values: Expr
    pitch: int
    fresh: Callable[[Expr, Expr], Expr]
    mixed: Callable[[Expr, Expr, Expr], Expr]


def mix(work: Work, item: Item, keys: Expr, how: Mixing) -> None:
    """output[feature][query] = fade * output + V^T p, by tiles of features"""

    def of(vector: Expr, vectors: int) -> None:
        size, height = item.v.size, work.tile_rows(vectors)
        groups = -(-size // height)
        cuts = [g * size // groups for g in range(groups + 1)]
        for low, high in itertools.pairwise(cuts):
            _mix_tile(work, keys, how, (low, high), vector, vectors)

    work.by_vectors(item, of)


def _mix_tile(
    work: Work, keys: Expr, how: Mixing, features: tuple[int, int], vector: Expr, vectors: int
) -> None:
    e, memory, (low, high) = work.e, work.memory, features
    places = [(i, v) for i in range(high - low) for v in range(vectors)]
    acc = e.registers(len(places))
    line = e.let(work.at.output + vector * LANES + low * QUERIES)
    for i, v in places:
        e.set(acc, i * vectors + v, how.fresh(line + (i * QUERIES + v * LANES), vector + v))
    with e.loop(0, keys, "j") as j:
        at = e.let(how.values + j * how.pitch + low)
        column = e.let(work.at.scores + j * QUERIES + vector * LANES)
        p = [e.load(memory, column + v * LANES, LANES) for v in range(vectors)]
        for i in range(high - low):
            value = e.let(splat(e.load(memory, at + i)))
            for v in range(vectors):
                e.set(acc, i * vectors + v, fma(value, p[v], e.get(acc, i * vectors + v)))
    for i, v in places:
        at = e.let(line + (i * QUERIES + v * LANES))
        e.store(memory, at, how.mixed(at, vector + v, e.get(acc, i * vectors + v)))


def divisor(work: Work, vector: Expr) -> Expr:
    """1 / sum of 16 queries, 0 of one with no key."""
    e = work.e
    total, zero = e.let(e.get(work.running.total, vector)), splat(f32(0.0))
    return e.let(tirx.Select(total > zero, splat(f32(1.0)) / total, zero))


def output_of(work: Work, feature: Expr, vector: Expr) -> Expr:
    """A feature of the output of 16 queries, not yet divided."""
    return work.e.load(work.memory, work.at.output + feature * QUERIES + vector * LANES, LANES)


def finish(
    work: Work, item: Item, factor_of: Callable[[Expr], Expr], result: Callable[[Expr, Expr, Expr], Expr]
) -> None:
    """out = result(feature, vector, factor_of(vector)), transposed back."""
    e, out = work.e, item.out
    with e.loop(0, item.vectors, "v") as v:
        factor = factor_of(v)
        rows = e.let(item.first + v * LANES)
        for feature in range(0, out.size, LANES):
            here = min(LANES, out.size - feature)
            values = [e.let(result(i64(feature + i), v, factor)) for i in range(here)]
            at = [e.let(out.row(rows + i) + feature) for i in range(LANES)]
            store_transposed(e, out.buffer, at, values, item.sequence.queries - rows)
