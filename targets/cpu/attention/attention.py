"""Scaled-dot-product attention without a score matrix: online softmax over blocks of keys.

Sixteen queries share a vector, one a lane, so that softmax needs no sums across lanes and a masked key is
skipped, not computed: a row of a padded batch costs, and equals bit for bit, what it does alone. For 64
queries of one head at a time (Milakov and Gimelshein 2018; Dao et al. 2022), with m, l, o the running
maximum, sum and output:

    s = K q          m' = max(m, scale * max s)      p = exp(scale * s - m')
    a = exp(m - m')  l' = a l + sum p                o' = a o + V^T p          out = o / l

Blocks of keys are counted from key 0, and within one the sums run in key order, so the bits depend on
neither threads nor vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import sympy

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import Node
from llmc.targets.cpu.attention import few
from llmc.targets.cpu.attention.byte_steps import ByteSteps
from llmc.targets.cpu.attention.float_steps import FloatSteps
from llmc.targets.cpu.attention.int8_steps import WholeSteps
from llmc.targets.cpu.attention.item import Item, blocks_of, locate
from llmc.targets.cpu.attention.scratch import QUERIES, reserved
from llmc.targets.cpu.attention.sequences import PaddedBatch
from llmc.targets.cpu.attention.stages import Work
from llmc.targets.target import Cpu
from llmc.targets.tir.attention_shape import Problem, Shape, problem
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, mod
from llmc.targets.tir.later import tirx

_BYTES = {"f16": 2, "u8": 1}  # of an element of stored keys and values


# Of a work item on int8: whoever takes a block finds the levels of the head's keys and values first, which takes
# nearly as long as the block itself does.
_TOGETHER = 2


def blocks_together(int8: bool) -> int:
    """How many blocks of 64 queries make a work item."""
    return _TOGETHER if int8 else 1


def lower_attention(node: Node) -> Call:
    """`mha` and `attention`: items are blocks of queries of one head."""
    return attention_call(node, problem(node))


def attention_call(node: Node, wanted: Problem) -> Call:
    """The call that computes `node`; cost and FLOP count every key of every query."""
    shape, batch, s, t = wanted
    pointers = [i.dtype for i in node.inputs] + ["f32"]
    d, e, int8 = shape.layouts.q.size, shape.layouts.v.size, is_int8(node)
    queries = QUERIES * blocks_together(int8)
    if node.op != "ragged_mha":
        shape = replace(shape, few=few.suits(shape, s, int8))
    family, emit = "int8_attention" if int8 else "attention", partial(emit_attention, shape=shape, int8=int8)
    kernel = Kernel(family, shape, tuple(pointers), 2, emit, reserved(shape.layouts, int8))
    return Call(
        kernel,
        (*node.inputs, node),
        (s, t),
        batch * shape.heads * ceil_div(s, queries),
        sympy.Min(s, queries) * t * (d + e + 20) // LANES
        if isinstance(s * t, int)
        else t * (queries // LANES) * (d + e + 20),
        2 * batch * shape.heads * s * t * (d + e),
        4 * product(node.shape) + sum(_BYTES.get(i.dtype, 4) * product(i.shape) for i in node.inputs),
        node.source,
    )


def is_int8(node: Node) -> bool:
    """Whether a node asks for attention on int8."""
    return bool(node.attributes.get("int8"))


def emit_attention(symbol: str, cpu: Cpu, *, shape: Shape, int8: bool = False) -> Any:
    """Items are one block of 64 queries, or some; those of one head are neighbours and share its keys in cache."""
    e = Emitter(symbol)
    kinds = {"q": "f32", "k": shape.layouts.k.stored, "v": shape.layouts.v.stored}
    at = {name: e.pointer(name, kind) for name, kind in kinds.items()}
    if shape.keys:
        at["keys"] = e.pointer("keys", "bool")
    if shape.mask is not None:
        at["mask"] = e.pointer("mask", shape.mask[0])
    at["out"] = e.pointer("out", "f32")
    s, t = e.scalar("s"), e.scalar("t")
    arithmetic = steps(e, cpu, shape, at, int8)
    batch = PaddedBatch(e, shape, at, arithmetic.work.listed, s, t)
    with (
        e.loop(e.begin, e.end, "item") as work,
        blocks_of(e, batch, work, blocks_together(int8)) as number,
    ):
        item = locate(e, shape, at, batch, number)
        if shape.few:
            with e.when(item.queries <= few.FEW):
                _few(arithmetic.work, shape, at, batch, (number, item))
            with e.when(item.queries > few.FEW):
                arithmetic.attend(item)
        else:
            arithmetic.attend(item)
    return e.function()


def _few(
    work: Work, shape: Shape, at: Mapping[str, Buffer], batch: PaddedBatch, found: tuple[Expr, Item]
) -> None:
    """An item of few queries: with the next heads, if they share its keys and are all there, else by itself."""
    e, (number, item) = work.e, found
    steps, count, group = few.FewSteps(work), few.together(shape), shape.heads // shape.kv_heads
    if count == 1:
        steps.attend([item])
        return
    within = e.let(mod(item.head, group))
    part = e.let(mod(within, count))  # which of those that go together
    first = e.let(number - part)
    one_each = batch.longest <= QUERIES  # items of consecutive heads follow one another
    whole = e.let(
        tirx.all(one_each, within - part + count <= group, first >= e.begin, first + count <= e.end)
    )
    with e.when(tirx.all(whole, part < 1)):
        steps.attend([item, *(locate(e, shape, at, batch, e.let(number + i)) for i in range(1, count))])
    with e.when(tirx.Not(whole)):
        steps.attend([item])


class Steps(Protocol):
    """The arithmetic of one kernel, in float or on int8."""

    @property
    def work(self) -> Work:
        """What items share."""

    def attend(self, item: Item) -> None:
        """The code of one item."""


def steps(e: Emitter, cpu: Cpu, shape: Shape, at: Mapping[str, Buffer], int8: bool) -> Steps:
    """The arithmetic that suits a CPU; what items share is allocated here, `at` are the operands."""
    if not int8:
        return FloatSteps.of(e, cpu, shape, at)
    kind = ByteSteps if cpu.machine == "x86_64" and cpu.dots else WholeSteps
    return kind.of(e, cpu, shape, at)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = dict.fromkeys(("mha", "attention"), lower_attention)
