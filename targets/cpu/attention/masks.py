"""Masks and biases on the scores of attention."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.targets.cpu.attention.item import Item
from llmc.targets.cpu.attention.scratch import QUERIES
from llmc.targets.cpu.attention.stages import Work
from llmc.targets.tir.emit import LANES, Buffer, Expr, f32, fma, i64, splat
from llmc.targets.tir.later import tirx


@dataclass(frozen=True)
class Mask:
    """What a kernel does to scores before softmax; `buffer` is its operand, None without one."""

    work: Work
    buffer: Buffer | None

    @property
    def scales(self) -> bool:
        """Whether the scores are scaled already when a bias has been added."""
        mask = self.work.shape.mask
        return mask is not None and mask[0] == "f32"

    def apply(self, item: Item, keys: Expr) -> None:
        """To the scores of all queries and the keys of the block, if there is anything to do."""
        work, e = self.work, self.work.e
        if work.shape.mask is None and not work.shape.causal:
            return
        with e.loop(0, keys, "j") as j, e.loop(0, item.vectors, "v") as v:
            at = e.let(work.at.scores + j * QUERIES + v * LANES)
            key = e.let(work.listed.key(j))
            e.store(work.memory, at, self._masked(item, e.load(work.memory, at, LANES), key, v))

    def _masked(self, item: Item, score: Expr, key: Expr, vector: Expr) -> Expr:
        """The score of 16 queries and a key after mask or bias; scaled already if there is a bias."""
        e, shape = self.work.e, self.work.shape
        lowest = splat(f32(float("-inf")))
        if self.scales:
            bias = item.query(e, self._lanes(item, key, vector))
            score = e.let(fma(score, splat(f32(shape.scale)), bias))
        elif shape.mask is not None:
            attend = self._lanes(item, key, vector)
            score = e.let(tirx.Select(attend != splat(f32(0.0)), score, lowest))
        if shape.causal:
            score = self._causal(item, score, key, vector)
        return score

    def _causal(self, item: Item, score: Expr, key: Expr, vector: Expr) -> Expr:
        """-inf where the key comes after the query, or has left its window."""
        e, window = self.work.e, self.work.shape.window
        lowest, key = splat(f32(float("-inf"))), splat(tirx.Cast("int32", key))
        first = tirx.Cast("int32", item.sequence.past + item.first + vector * LANES)
        lane = tirx.Ramp(first, tirx.const(1, "int32"), LANES)
        score = e.let(tirx.Select(lane >= key, score, lowest))
        return (
            e.let(tirx.Select(lane - key < splat(tirx.const(window, "int32")), score, lowest))
            if window
            else score
        )

    def _lanes(self, item: Item, key: Expr, vector: Expr) -> Expr:
        """mask[batch, head, 16 queries, key] as f32, of a mask that may lack any of these axes."""
        shape, sequence = self.work.shape, item.sequence
        assert shape.mask is not None
        e = self.work.e
        _, by_batch, by_head, by_query, by_key = shape.mask

        def read(index: Expr) -> Expr:
            return tirx.Cast("float32", e.load(self.buffer, index))

        row = sequence.batch * (shape.heads if by_head else 1) if by_batch else i64(0)
        row = e.let(row + item.head if by_head else row)
        rows, columns = sequence.places if by_key else (sequence.places[0], i64(1))
        key = sequence.place(key) if by_key else i64(0)
        if not by_query:
            return e.let(splat(read(row * columns + key)))
        lanes = e.registers(LANES, "float32")
        with e.loop(0, LANES, "lane") as lane:
            query = tirx.min(item.first + vector * LANES + lane, sequence.queries - 1)
            e.set(lanes, lane, read((row * rows + sequence.place(query)) * columns + key))
        return e.load(lanes, i64(0), LANES)
