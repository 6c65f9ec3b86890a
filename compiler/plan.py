"""Where every value lives: outputs, one arena for the rest, the weights file.

Sizes are expressions over the named dims, so a plan holds for every batch and sequence. The arena is a row of
slots; a value takes a slot that is free for as long as the value lives, and a slot is as large as the largest
value it ever holds. The program works the offsets out from the actual dims, once for each run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Operand, Packed
from llmc.compiler.dims import Dim, dim, dim_names, evaluate, product
from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.ops import OPS

ALIGNMENT = 64
_TYPICAL = 128  # the size at which two expressions are compared when slots are chosen


@dataclass(frozen=True)
class Place:
    """Where a value is: `kind` is "input", "output", "slot" or "weight", `index` which one."""

    kind: str
    index: int


@dataclass(frozen=True)
class Stored:
    """One tensor of the weights file: byte offset and the values in their stored layout."""

    offset: int
    operand: Operand

    def array(self) -> np.ndarray[Any, Any]:
        """The bytes to write, dense."""
        if isinstance(self.operand, Packed):
            return np.ascontiguousarray(self.operand.pack(self.operand.weight.array))
        return np.ascontiguousarray(self.operand.attributes["value"].array)


@dataclass(frozen=True)
class Copy:
    """An output that no call writes: an input, a constant, or a value another output holds already."""

    node: Node
    output: int


@dataclass(frozen=True)
class Plan:
    """The placed program.

    Args:
        steps: calls, then copies, in order.
        places: root node -> where its value is.
        slots: bytes of each slot of the arena.
        weights: what the weights file holds; `weights_bytes` in all.
    """

    steps: tuple[Call | Copy, ...]
    places: Mapping[Node, Place]
    slots: tuple[Dim, ...]
    weights: tuple[Stored, ...]
    weights_bytes: int
    _weight_index: Mapping[object, int]

    def place(self, operand: Operand) -> Place:
        """Where an operand is read from, or a result written to."""
        if isinstance(operand, Packed) or operand.op == "constant":
            return Place("weight", self._weight_index[_weight_key(operand)])
        return self.places[root(operand)]


def root(node: Node) -> Node:
    """The node whose memory `node` shares: views hold nothing themselves."""
    while OPS[node.op].view:
        node = node.inputs[0]
    return node


def nbytes(node: Node) -> Dim:
    """Size of a node's value."""
    return dim(product(node.shape) * DTYPES[node.dtype].itemsize)


def make_plan(graph: Graph, calls: Sequence[Call]) -> Plan:
    """Place the values of `calls`, which compute `graph` in this order."""
    places = {node: Place("input", i) for i, node in enumerate(graph.inputs)}
    copies = []
    for i, node in enumerate(graph.outputs.values()):
        held = root(node)
        if held.op in ("input", "constant") or held in places:
            copies.append(Copy(held, i))
        else:
            places[held] = Place("output", i)
    slots = _Slots()
    last = _last_uses(calls)
    for position, call in enumerate(calls):
        result = root(call.operands[-1])  # type: ignore[arg-type]  # the last operand is always a node
        if result not in places:
            places[result] = Place("slot", slots.take(nbytes(result)))
        for node in _read(call):
            if last[node] == position and places[node].kind == "slot":
                slots.give(places[node].index)
        if last.get(result, -1) <= position and places[result].kind == "slot":
            slots.give(places[result].index)
    weights, index, size = _store([*calls, *copies])
    return Plan((*calls, *copies), places, tuple(slots.sizes), weights, size, index)


def _read(call: Call) -> Iterator[Node]:
    """The nodes with memory of their own that a call reads, each once."""
    nodes = (root(o) for o in call.operands[:-1] if isinstance(o, Node) and root(o).op != "constant")
    return iter(dict.fromkeys(nodes))


def _last_uses(calls: Sequence[Call]) -> dict[Node, int]:
    return {node: i for i, call in enumerate(calls) for node in _read(call)}


class _Slots:
    """The arena's slots while the program is walked."""

    def __init__(self) -> None:
        self.sizes: list[Dim] = []
        self._free: list[int] = []

    def take(self, size: Dim) -> int:
        """A free slot, the one that fits most closely; a new one if none is free."""
        if not self._free:
            self.sizes.append(size)
            return len(self.sizes) - 1
        wanted = _typical(size)
        # Growing a small slot costs what it lacks, using a large one costs nothing but keeps it from larger values.
        best = min(
            self._free, key=lambda i: (max(0, wanted - _typical(self.sizes[i])), _typical(self.sizes[i]), i)
        )
        self._free.remove(best)
        self.sizes[best] = _larger(self.sizes[best], size)
        return best

    def give(self, index: int) -> None:
        self._free.append(index)


def _typical(size: Dim) -> int:
    return evaluate(size, dict.fromkeys(dim_names(size), _TYPICAL))


@lru_cache(maxsize=1024)  # layers ask the same, and sympy is slow
def _larger(a: Dim, b: Dim) -> Dim:
    """max(a, b), without a Max where one is a multiple of the other."""
    if a == b:
        return a
    ratio = sympy.simplify(sympy.sympify(a) / b)
    if ratio.is_number:
        return a if ratio > 1 else b
    return sympy.Max(a, b)


def _weight_key(operand: Operand) -> object:
    if isinstance(operand, Packed):
        return operand.weight.digest, operand.layout
    return operand.attributes["value"].digest, ""


def _store(steps: Sequence[Call | Copy]) -> tuple[tuple[Stored, ...], dict[object, int], int]:
    """Every constant operand once for each layout, in order of first use, 64-byte aligned."""
    index: dict[object, int] = {}
    stored: list[Stored] = []
    offset = 0
    for step in steps:
        operands = step.operands if isinstance(step, Call) else (step.node,)
        for operand in operands:
            if isinstance(operand, Node):
                operand = root(operand)
            if isinstance(operand, Node) and operand.op != "constant":
                continue
            key = _weight_key(operand)
            if key not in index:
                index[key] = len(stored)
                stored.append(Stored(offset, operand))
                offset += -(-stored[-1].array().nbytes // ALIGNMENT) * ALIGNMENT
    return tuple(stored), index, offset
