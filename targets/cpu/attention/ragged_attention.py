"""Attention on sequences that lie one after the other without padding: `attention.py`, with other addresses.

Blocks of keys are counted from the first place of the padded sequence, as there, so that the bits are those of
the padded run wherever its padding was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import sympy
from tvm import tirx

from llmc.compiler.calls import Call
from llmc.compiler.dims import dim
from llmc.compiler.graph import Node
from llmc.compiler.ops.int8_attention import KEYS
from llmc.targets import Cpu
from llmc.targets.cpu.attention.attention import attention_call, is_int8, steps
from llmc.targets.cpu.attention.attention_head import VECTORS, Head
from llmc.targets.tir.attention_shape import Layout, Problem, Shape, mask_of, token_shape
from llmc.targets.tir.emit import Buffer, Emitter, Expr, i64


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
    cost, flops = mean * VECTORS * (2 * size + 20), 4 * tokens * mean * heads * size
    return replace(call, kernel=kernel, cost=cost, flops=dim(flops))


class Ragged(Head):
    """A work item whose sequence begins and ends where `starts` says; `index` has the place of each row."""

    def __init__(
        self, e: Emitter, cpu: Cpu, shape: Shape, pointers: Mapping[str, Buffer], s: Expr, t: Expr
    ) -> None:
        super().__init__(e, cpu, shape, pointers, s, t)
        self.next, self.after = (
            e.registers(1, "int64") for _ in range(2)
        )  # the first key not yet in a block

    def enter(self) -> None:
        e, starts = self.e, self.at["starts"]
        e.set(self.next, 0, i64(0))
        self.place = e.let(self.batch * self.s)  # of the first token, with padding
        self.first_row = e.let(e.load(starts, self.batch))
        self.s = self.t = e.let(e.load(starts, self.batch + 1) - self.first_row)

    def mark(self) -> None:
        self.e.set(self.after, 0, self.e.get(self.next))

    def recall(self) -> None:
        self.e.set(self.next, 0, self.e.get(self.after))

    def start_of(self, layout: Layout, head: Expr, heads: int, length: Expr) -> Expr:
        return layout.start(self.first_row, head, heads, i64(1))

    def place_of(self, token: Expr) -> Expr:
        return self.e.let(self.e.load(self.at["index"], self.first_row + token) - self.place)

    def span(self) -> Expr:
        return self.e.let(self.place_of(self.t - 1) + 1)

    def flag_of(self, key: Expr) -> Expr:
        return self.e.load(self.at["keys"], self.first_row + key)

    def select(self, block: Expr) -> Expr:
        """The keys whose places are in the block follow one another."""
        e = self.e
        start = e.let(e.get(self.next))
        end = e.let(self.place + block + KEYS)
        e.set(self.count, 0, i64(0))
        with e.loop(0, e.let(tirx.min(i64(KEYS), self.t - start)), "j") as j:
            row = e.let(self.first_row + start + j)
            inside = e.let(tirx.Cast("int64", e.load(self.at["index"], row) < end))
            attends = tirx.Cast("int64", e.load(self.at["keys"], row))
            e.set(self.kept, e.get(self.count), start + j)
            e.set(self.count, 0, e.get(self.count) + inside * attends)
            e.set(self.next, 0, e.get(self.next) + inside)
        return e.let(e.get(self.count))


def emit_ragged_attention(symbol: str, cpu: Cpu, *, shape: Shape, int8: bool = False) -> Any:
    """Items as of `emit_attention`; those of one head lie next to each other."""
    e = Emitter(symbol)
    names = (("q", "f32"), ("k", "f32"), ("v", "f32"), ("keys", "bool"), ("index", "i64"), ("starts", "i64"))
    bias = () if shape.mask is None else (("mask", "f32"),)
    pointers = {name: e.pointer(name, dtype) for name, dtype in (*names, *bias, ("out", "f32"))}
    kind = type("RaggedHead", (Ragged, steps(cpu) if int8 else Head), {})
    head = kind(e, cpu, shape, pointers, e.scalar("s"), e.scalar("t"))
    with e.loop(e.begin, e.end, "item") as item:
        head.locate(item)
        with e.when(head.queries > 0):
            head.attend()
    return e.function()


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"ragged_mha": lower_ragged_mha}
