"""A block of up to 64 queries of one head of one sequence, and where their operands lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from llmc.compiler.ops.rows import scale_offset
from llmc.targets.cpu.attention.scratch import QUERIES
from llmc.targets.cpu.attention.sequences import Batch, Sequence
from llmc.targets.cpu.rows.quantised import level_of
from llmc.targets.tir.attention_shape import Layout, Shape
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, fma, i64, mod, splat
from llmc.targets.tir.later import tirx


@dataclass(frozen=True)
class Rows:
    """What one head of a sequence has of an operand: a row of `size` features for each token.

    Args:
        buffer: the operand.
        start: element of token 0, feature 0.
        width: elements from a token to the next.
        stored: dtype of the operand; "u8" are packed rows.
    """

    buffer: Buffer
    start: Expr
    width: Expr
    size: int
    stored: str = "f32"

    def row(self, token: Expr) -> Expr:
        """Element of feature 0 of a token."""
        return self.start + token * self.width

    @property
    def line(self) -> int:
        """Features in a cache line."""
        return {"f32": 16, "f16": 32, "u8": 64}[self.stored]

    def load(self, e: Emitter, row: Expr, feature: Expr | int, mask: Expr | None = None) -> Expr:
        """16 features from `feature` on, as float32, of the token whose row begins at element `row`."""
        if self.stored == "u8":  # what lies behind the features of a packed row may be read
            words = e.alias(self.buffer, "float32")
            scale = e.load(words, e.let(div(row + scale_offset(self.size), 4)))
            level = level_of(e, self.buffer, e.let(row + feature))
            return e.let(
                fma(level, splat(scale), splat(f32(-0.0)))
            )  # a product that no sum may be joined with
        value = e.load(self.buffer, row + feature, LANES, mask)
        return value if self.stored == "f32" else e.let(tirx.Cast("float32x16", value))


@dataclass(frozen=True)
class Item:
    """One block of queries: a work item, or one of those that make one (`blocks_of`).

    Args:
        sequence: which the queries belong to.
        pair: number of the sequence and head, which consecutive items share.
        head: of the queries.
        first: number of the first query in its sequence.
        queries: how many, at most 64; none if the sequence ends before.
        vectors: of 16 queries.
    """

    sequence: Sequence
    pair: Expr
    head: Expr
    first: Expr
    queries: Expr
    vectors: Expr
    q: Rows
    k: Rows
    v: Rows
    out: Rows

    def query(self, e: Emitter, value: Expr) -> Expr:
        """A feature of 16 queries: zeros, and so scores of 0, where all keys are to be attended evenly."""
        if self.sequence.bare is None:
            return value
        return e.let(tirx.Select(splat(self.sequence.bare) > splat(i64(0)), splat(f32(0.0)), value))


@contextmanager
def blocks_of(e: Emitter, batch: Batch, number: Expr, together: int) -> Iterator[Expr]:
    """Run the body for the numbers, by which `locate` goes, of the blocks of work item `number`.

    A work item has `together` blocks of 64 queries of one head, its last item what is left.
    """
    if together == 1:
        yield number
        return
    blocks = e.let(div(batch.longest + (QUERIES - 1), QUERIES))
    items = e.let(div(blocks + (together - 1), together))
    pair = e.let(div(number, items))
    first = e.let((number - pair * items) * together)
    with e.loop(first, e.let(tirx.min(first + together, blocks)), "block") as block:
        yield e.let(pair * blocks + block)


def locate(e: Emitter, shape: Shape, at: Mapping[str, Buffer], batch: Batch, number: Expr) -> Item:
    """The block of a number: the blocks of 64 queries of one head follow one another."""
    heads, kv_heads, layouts = shape.heads, shape.kv_heads, shape.layouts
    blocks = e.let(div(batch.longest + (QUERIES - 1), QUERIES))
    pair = e.let(div(number, blocks))
    first = e.let((number - pair * blocks) * QUERIES)
    sequence_number = e.let(div(pair, heads))
    head = e.let(mod(pair, heads))
    sequence = batch.sequence(sequence_number)
    queries = e.let(tirx.min(i64(QUERIES), sequence.queries - first))
    vectors = e.let(div(queries + (LANES - 1), LANES))
    kv_head = e.let(div(head, heads // kv_heads))

    def rows(name: str, layout: Layout, start: Expr) -> Rows:
        return Rows(at[name], e.let(start), layout.width, layout.size, layout.stored)

    q = rows("q", layouts.q, sequence.query_start(layouts.q, head, heads))
    k = rows("k", layouts.k, sequence.key_start(layouts.k, kv_head, kv_heads))
    v = rows("v", layouts.v, sequence.key_start(layouts.v, kv_head, kv_heads))
    out = rows("out", layouts.out, sequence.query_start(layouts.out, head, heads))
    return Item(sequence, pair, head, first, queries, vectors, q, k, v, out)
