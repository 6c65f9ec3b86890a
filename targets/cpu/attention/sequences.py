"""Where a sequence lies and which of its keys a block holds.

Here are those of a padded batch; `ragged_attention.py` has those without padding. A block is 64 places, counted from
key 0 of the padded sequence. `select` lists those of its keys that may be attended; the arithmetic reads that list,
and of a sequence nothing but its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from llmc.compiler.ops.int8_attention import KEYS
from llmc.targets.tir.attention_shape import Layout, Shape
from llmc.targets.tir.emit import Buffer, Emitter, Expr, i64
from llmc.targets.tir.later import tirx


@dataclass(frozen=True)
class Listed:
    """The keys of a block that may be attended."""

    e: Emitter
    numbers: Buffer
    count: Buffer

    @classmethod
    def empty(cls, e: Emitter) -> Listed:
        return cls(e, e.registers(KEYS, "int64"), e.registers(1, "int64"))

    def clear(self) -> None:
        self.e.set(self.count, 0, i64(0))

    def offer(self, key: Expr) -> None:
        """The next of the list, if `keep` says so."""
        self.e.set(self.numbers, self.e.get(self.count), key)

    def keep(self, whether: Expr) -> None:
        """Whether the key last offered stays, 1 or 0."""
        self.e.set(self.count, 0, self.e.get(self.count) + whether)

    def key(self, index: Expr) -> Expr:
        """The number of a listed key in its sequence."""
        return self.e.get(self.numbers, index)

    def length(self) -> Expr:
        return self.e.let(self.e.get(self.count))


def is_bare(e: Emitter, keys: Expr, flag: Callable[[Expr], Expr]) -> Expr:
    """1 for a sequence none of whose keys may be attended, else 0."""
    count = e.registers(1, "int64")
    e.set(count, 0, i64(0))
    with e.loop(0, keys, "key") as key:
        e.set(count, 0, e.get(count) + tirx.Cast("int64", flag(key)))
    return e.let(tirx.Cast("int64", tirx.EQ(e.let(e.get(count)), i64(0))))


class Sequence(Protocol):
    """One sequence of the batch."""

    @property
    def bare(self) -> Expr | None:
        """1 if it has no keys and all are to be attended evenly, else 0; None: that is not asked for."""

    @property
    def batch(self) -> Expr:
        """Its number."""

    @property
    def queries(self) -> Expr:
        """How many there are."""

    @property
    def keys(self) -> Expr:
        """How many there are."""

    @property
    def past(self) -> Expr:
        """How many keys are before the first query's own, where attention is causal."""

    @property
    def places(self) -> tuple[Expr, Expr]:
        """Of queries and keys in a mask: its last two axes."""

    def query_start(self, layout: Layout, head: Expr, heads: int) -> Expr:
        """Element of an operand with a row a query, or of the result, where the first is."""

    def key_start(self, layout: Layout, head: Expr, heads: int) -> Expr:
        """Element of an operand with a row a key where the first is."""

    def place(self, token: Expr) -> Expr:
        """Where a token is in a mask."""

    def span(self) -> Expr:
        """How many places the keys lie within."""

    def flag(self, key: Expr) -> Expr:
        """Whether a key may be attended, where the kernel is given such flags."""

    def select(self, block: Expr, end: Expr) -> Expr:
        """List the keys of the block at this place that may be attended by queries before `end`; their number.

        Blocks are asked for in order, from the first or from where `recall` goes.
        """

    def mark(self) -> None:
        """Remember how far `select` has come."""

    def recall(self) -> None:
        """Let `select` go on from there."""


class Batch(Protocol):
    """The sequences of a call."""

    @property
    def longest(self) -> Expr:
        """Queries of the longest sequence: by these, items are cut."""

    def sequence(self, number: Expr) -> Sequence:
        """Look one up."""


def with_bare(flag: Expr, bare: Expr | None) -> Expr:
    """Whether a key may be attended, given what is said of it."""
    return flag if bare is None else tirx.max(tirx.Cast("int64", flag), bare)


@dataclass(frozen=True)
class PaddedSequence:
    """One of a batch whose sequences all have as many queries and keys."""

    e: Emitter
    shape: Shape
    at: Mapping[str, Buffer]
    listed: Listed
    batch: Expr
    queries: Expr
    keys: Expr
    bare: Expr | None = None

    @property
    def past(self) -> Expr:
        return self.keys - self.queries

    @property
    def places(self) -> tuple[Expr, Expr]:
        return self.queries, self.keys

    def query_start(self, layout: Layout, head: Expr, heads: int) -> Expr:
        return layout.start(self.batch, head, heads, self.queries)

    def key_start(self, layout: Layout, head: Expr, heads: int) -> Expr:
        return layout.start(self.batch, head, heads, self.keys)

    def place(self, token: Expr) -> Expr:
        return token

    def span(self) -> Expr:
        return self.keys

    def flag(self, key: Expr) -> Expr:
        return with_bare(self.e.load(self.at["keys"], self.batch * self.keys + key), self.bare)

    def select(self, block: Expr, end: Expr) -> Expr:
        e, listed = self.e, self.listed
        size = e.let(tirx.min(i64(KEYS), self.keys - block))
        if self.shape.causal:  # keys after the last query are seen by none
            size = e.let(tirx.max(tirx.min(size, self.past + end - block), i64(0)))
        listed.clear()
        with e.loop(0, size, "j") as j:
            listed.offer(block + j)
            listed.keep(tirx.Cast("int64", self.flag(block + j)) if self.shape.keys else 1)
        return listed.length()

    def mark(self) -> None:
        """Nothing: a block's place says where its keys are."""

    def recall(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences of `longest` queries and `keys` keys."""

    e: Emitter
    shape: Shape
    at: Mapping[str, Buffer]
    listed: Listed
    longest: Expr
    keys: Expr

    def sequence(self, number: Expr) -> PaddedSequence:
        made = PaddedSequence(self.e, self.shape, self.at, self.listed, number, self.longest, self.keys)
        return replace(made, bare=is_bare(self.e, made.keys, made.flag)) if self.shape.evenly else made
