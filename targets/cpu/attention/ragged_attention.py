"""Attention on sequences that lie one after the other without padding: `attention.py`, with other addresses.

Blocks of keys are counted from the first place of the padded sequence, as there, so that the bits are those of
the padded run wherever its padding was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sympy

from llmc.compiler.calls import Call
from llmc.compiler.dims import dim
from llmc.compiler.graph import Node
from llmc.compiler.ops.int8_attention import KEYS
from llmc.targets.cpu.attention.attention import attention_call, blocks_together, is_int8, steps
from llmc.targets.cpu.attention.item import blocks_of, locate
from llmc.targets.cpu.attention.scratch import VECTORS
from llmc.targets.cpu.attention.sequences import Listed, is_bare, with_bare
from llmc.targets.target import Cpu
from llmc.targets.tir.attention_shape import Layout, Problem, Shape, mask_of, token_shape
from llmc.targets.tir.emit import Buffer, Emitter, Expr, i64
from llmc.targets.tir.later import tirx


def lower_ragged_mha(node: Node) -> Call:
    """An item beyond the end of its sequence has nothing to do: items are cut as for the longest."""
    a = node.attributes
    size, heads = a["head_dim"], a["heads"]
    tokens, seq, batch = node.shape[0], dim(a["seq"]), dim(node.inputs[5].shape[0] - 1)
    bias = mask_of(node.inputs[-1], seq) if a["has_bias"] else None
    shape = token_shape(node, causal=False, keys=True, mask=bias)
    call = attention_call(node, Problem(shape, batch, seq, seq))
    emit = partial(emit_ragged_attention, shape=shape, int8=is_int8(node))
    kernel = replace(call.kernel, family=f"ragged_{call.kernel.family}", emit=emit)
    mean = sympy.floor(tokens / sympy.sympify(batch))  # tokens of a sequence
    cost = mean * VECTORS * blocks_together(is_int8(node)) * (2 * size + 20)
    flops = 4 * tokens * mean * heads * size
    return replace(call, kernel=kernel, cost=cost, flops=dim(flops))


@dataclass(frozen=True)
class Cursor:
    """The first key of a sequence that is in no block yet, and one to come back to: registers."""

    e: Emitter
    next: Buffer
    marked: Buffer

    @classmethod
    def of(cls, e: Emitter) -> Cursor:
        return cls(e, e.registers(1, "int64"), e.registers(1, "int64"))

    def rewind(self) -> None:
        self.e.set(self.next, 0, i64(0))

    def move(self, by: Expr) -> None:
        self.e.set(self.next, 0, self.e.get(self.next) + by)

    def mark(self) -> None:
        self.e.set(self.marked, 0, self.e.get(self.next))

    def recall(self) -> None:
        self.e.set(self.next, 0, self.e.get(self.marked))


@dataclass(frozen=True)
class RaggedSequence:
    """`length` rows of the operands from `row`.

    Args:
        origin: place of the first row in the padded batch; the operand `index` has the place of each.
        places: tokens of the padded sequence.
    """

    e: Emitter
    at: Mapping[str, Buffer]
    listed: Listed
    cursor: Cursor
    batch: Expr
    origin: Expr
    row: Expr
    length: Expr
    places: tuple[Expr, Expr]
    bare: Expr | None = None

    @property
    def queries(self) -> Expr:
        return self.length

    @property
    def keys(self) -> Expr:
        return self.length

    @property
    def past(self) -> Expr:
        return i64(0)

    def query_start(self, layout: Layout, head: Expr, heads: int) -> Expr:
        return layout.start(self.row, head, heads, i64(1))

    key_start = query_start

    def place(self, token: Expr) -> Expr:
        return self.e.let(self.e.load(self.at["index"], self.row + token) - self.origin)

    def span(self) -> Expr:
        return self.e.let(self.place(self.length - 1) + 1)

    def flag(self, key: Expr) -> Expr:
        return with_bare(self.e.load(self.at["keys"], self.row + key), self.bare)

    def select(self, block: Expr, end: Expr) -> Expr:
        """The keys whose places are in the block follow one another."""
        e, listed, cursor = self.e, self.listed, self.cursor
        start = e.let(e.get(cursor.next))
        stop = e.let(self.origin + block + KEYS)
        listed.clear()
        with e.loop(0, e.let(tirx.min(i64(KEYS), self.length - start)), "j") as j:
            row = e.let(self.row + start + j)
            inside = e.let(tirx.Cast("int64", e.load(self.at["index"], row) < stop))
            attends = tirx.Cast("int64", self.flag(start + j))
            listed.offer(start + j)
            listed.keep(inside * attends)
            cursor.move(inside)
        return listed.length()

    def mark(self) -> None:
        self.cursor.mark()

    def recall(self) -> None:
        self.cursor.recall()


@dataclass(frozen=True)
class RaggedBatch:
    """Sequences that begin where the operand `starts` says; padding would make each as long as `places` says."""

    e: Emitter
    at: Mapping[str, Buffer]
    listed: Listed
    cursor: Cursor
    places: tuple[Expr, Expr]
    evenly: bool

    @property
    def longest(self) -> Expr:
        return self.places[0]

    def sequence(self, number: Expr) -> RaggedSequence:
        e, starts = self.e, self.at["starts"]
        self.cursor.rewind()
        origin = e.let(number * self.longest)
        row = e.let(e.load(starts, number))
        length = e.let(e.load(starts, number + 1) - row)
        made = RaggedSequence(e, self.at, self.listed, self.cursor, number, origin, row, length, self.places)
        return replace(made, bare=is_bare(e, length, made.flag)) if self.evenly else made


def emit_ragged_attention(symbol: str, cpu: Cpu, *, shape: Shape, int8: bool = False) -> Any:
    """Items as of `emit_attention`; those of one head lie next to each other."""
    e = Emitter(symbol)
    names = (("q", "f32"), ("k", "f32"), ("v", "f32"), ("keys", "bool"), ("index", "i64"), ("starts", "i64"))
    bias = () if shape.mask is None else (("mask", "f32"),)
    at = {name: e.pointer(name, dtype) for name, dtype in (*names, *bias, ("out", "f32"))}
    places = e.scalar("s"), e.scalar("t")
    arithmetic = steps(e, cpu, shape, at, int8)
    batch = RaggedBatch(e, at, arithmetic.work.listed, Cursor.of(e), places, shape.evenly)
    with (
        e.loop(e.begin, e.end, "item") as work,
        blocks_of(e, batch, work, blocks_together(int8)) as number,
    ):
        item = locate(e, shape, at, batch, number)
        with e.when(item.queries > 0):
            arithmetic.attend(item)
    return e.function()


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"ragged_mha": lower_ragged_mha}
