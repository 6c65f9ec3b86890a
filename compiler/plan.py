"""Where every value lives: outputs, one arena for the rest, the weights file.

Sizes are expressions over the named dims, so a plan holds for every batch and sequence. The arena is a row of
slots; a value takes a slot that is free for as long as the value lives, and a slot is as large as the largest
value it ever holds. The program works the offsets out from the actual dims, once for each run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Operand, Packed, Region
from llmc.compiler.dims import Dim
from llmc.compiler.graph import Graph, Node
from llmc.compiler.plan_bodies import Body, Move, Step, Walk, leaves
from llmc.compiler.slots import Place, nbytes, root

__all__ = ["ALIGNMENT", "Copy", "Place", "Plan", "Stored", "make_plan", "nbytes", "root"]

ALIGNMENT = 64


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
        steps: calls, loops and branches, then copies, in order.
        places: root node -> where its value is.
        slots: bytes of each slot of the arena.
        weights: what the weights file holds; `weights_bytes` in all.
        results: node -> the nodes that its results are placed for, of a node with several.
    """

    steps: tuple[Step | Copy, ...]
    places: Mapping[Node, Place]
    slots: tuple[Dim, ...]
    weights: tuple[Stored, ...]
    weights_bytes: int
    _weight_index: Mapping[object, int]
    results: Mapping[Node, tuple[Node, ...]] = field(default_factory=dict)

    @property
    def leaves(self) -> tuple[Call | Copy | Move, ...]:
        """The steps that compute or move something, those of bodies too."""
        return tuple(leaves(self.steps))

    def within(self, body: Body) -> Plan:
        """This plan, with the places of a body's values."""
        return replace(self, places=body.places)

    def place(self, operand: Operand) -> Place:
        """Where an operand is read from, or a result written to."""
        if isinstance(operand, Packed) or operand.op == "constant":
            return Place("weight", self._weight_index[_weight_key(operand)])
        return self.places[root(operand)]

    def written(self, node: Node) -> list[Place]:
        """Where the results of a call of `node` go."""
        return [self.places[result] for result in self.results.get(node, (root(node),))]


def make_plan(graph: Graph, calls: Sequence[Call | Region]) -> Plan:
    """Place the values of `calls`, which compute `graph` in this order."""
    places = {node: Place("input", i) for i, node in enumerate(graph.inputs)}
    copies = []
    for i, node in enumerate(graph.outputs.values()):
        held = root(node)
        if held.op in ("input", "constant") or held in places:
            copies.append(Copy(held, i))
        else:
            places[held] = Place("output", i)
    weights, index, size = _store([*_operands(calls), *(copy.node for copy in copies)])
    walk = Walk(lambda operand: Place("weight", index[_weight_key(operand)]))
    steps = walk.steps(graph, calls, places)
    return Plan((*steps, *copies), places, tuple(walk.slots.sizes), weights, size, index, walk.results)


def _weight_key(operand: Operand) -> object:
    if isinstance(operand, Packed):
        return operand.weight.digest, operand.layout
    return operand.attributes["value"].digest, ""


def _operands(calls: Iterable[Call | Region]) -> Iterator[Operand]:
    """All that is read, in order; of a body also its outputs, which may be constants."""
    for call in calls:
        if isinstance(call, Call):
            yield from call.operands
            continue
        yield from call.node.inputs
        for body, inner in zip(call.node.bodies, call.bodies, strict=True):
            yield from _operands(inner)
            yield from body.outputs.values()


def _store(operands: Iterable[Operand]) -> tuple[tuple[Stored, ...], dict[object, int], int]:
    """Every constant operand once for each layout, in order of first use, 64-byte aligned."""
    index: dict[object, int] = {}
    stored: list[Stored] = []
    offset = 0
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
