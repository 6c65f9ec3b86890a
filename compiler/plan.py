"""Where every value lives: outputs, states, one arena for the rest, the weights file.

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
from llmc.compiler.module import FORWARD, Module
from llmc.compiler.plan_bodies import Body, Move, Step, Walk, leaves
from llmc.compiler.plan_states import LEAVES, held, place_updates, with_moves
from llmc.compiler.slots import Place, nbytes, root
from llmc.compiler.together import Together

__all__ = ["ALIGNMENT", "Copy", "Place", "Plan", "Stored", "make_plan", "make_plans", "nbytes", "root"]

ALIGNMENT = 64
Calls = Sequence[Call | Region]


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
    """An output that no call writes: an input, a state, a constant, or a value that is elsewhere already."""

    node: Node
    output: int


@dataclass(frozen=True)
class Plan:
    """The placed program.

    Args:
        steps: calls, loops and branches, then copies, in order; what states grow by may be moved to them in between.
        places: root node -> where its value is.
        slots: bytes of each slot of the arena; `own_slots` of those that each session of a run has for itself.
        weights: what the weights file holds; `weights_bytes` in all.
        results: node -> the nodes that its results are placed for, of a node with several.
        together: which steps serve all sessions of a run; None: there is one session.
    """

    steps: tuple[Step | Copy, ...]
    places: Mapping[Node, Place]
    slots: tuple[Dim, ...]
    weights: tuple[Stored, ...]
    weights_bytes: int
    _weight_index: Mapping[object, int]
    results: Mapping[Node, tuple[Node, ...]] = field(default_factory=dict)
    own_slots: tuple[Dim, ...] = ()
    together: Together | None = None

    @property
    def leaves(self) -> tuple[Call | Copy | Move, ...]:
        """The steps that compute or move something, those of bodies too."""
        return tuple(leaves(self.steps))

    def within(self, body: Body) -> Plan:
        """This plan, with the places of a body's values."""
        return replace(self, places=body.places)

    def place(self, operand: Operand) -> Place:
        """Where an operand is read from, or a result written to."""
        holder = operand if isinstance(operand, Packed) else root(operand)
        if isinstance(holder, Packed) or holder.op == "constant":
            return Place("weight", self._weight_index[_weight_key(holder)])
        return self.places[holder]

    def written(self, node: Node) -> list[Place]:
        """Where the results of a call of `node` go."""
        return [self.places[result] for result in self.results.get(node, (root(node),))]


_Weights = tuple[tuple[Stored, ...], Mapping[object, int], int]


def make_plan(graph: Graph, calls: Calls) -> Plan:
    """Place the values of `calls`, which compute `graph` in this order."""
    return make_plans(Module.of(graph), {FORWARD: calls})[FORWARD]


def make_plans(module: Module, calls: Mapping[str, Calls]) -> dict[str, Plan]:
    """The plan of each function of `module` for its `calls`. All have the same weights, stored once."""
    claims = {
        name: _claim(graph, list(module.states), calls[name]) for name, graph in module.functions.items()
    }
    read = (operand for name, claim in claims.items() for operand in claim.operands(calls[name]))
    stored = _store(read)
    return {
        name: _placed(graph, calls[name], claims[name], stored) for name, graph in module.functions.items()
    }


@dataclass(frozen=True)
class _Claim:
    """Where values of a function belong before its calls are walked, and what is copied there."""

    places: dict[Node, Place]
    moves: list[tuple[Node, Move]]
    copies: list[Copy]
    together: Together | None

    def operands(self, calls: Calls) -> Iterator[Operand]:
        """All that the function reads."""
        yield from _operands(calls)
        yield from (copy.node for copy in self.copies)
        yield from (move.node for _, move in self.moves)


def _claim(graph: Graph, states: Sequence[str], calls: Calls) -> _Claim:
    together = Together(graph)
    serving = [c for c in calls if isinstance(c, Call) and not together.refusal and together.serves_all(c)]
    joint = {root(node) for call in serving for node in call.operands if isinstance(node, Node)}
    places = {node: Place("input", i) for i, node in enumerate(graph.inputs)}
    places |= {node: Place("state", states.index(node.attributes["name"])) for node in graph.states}
    moves, copies = place_updates(graph, states, places, joint), []
    for i, node in enumerate(graph.outputs.values()):
        source = held(node)
        if source.op in LEAVES or source in places:
            copies.append(Copy(source, i))
        else:
            places[source] = Place("output", i)
    return _Claim(places, moves, copies, None if together.refusal else together)


def _placed(graph: Graph, calls: Calls, claim: _Claim, stored: _Weights) -> Plan:
    weights, index, size = stored
    zero = frozenset(name for name, (low, _) in graph.dims.items() if not low)
    together = claim.together
    own = together.own if together is not None else lambda node: False
    walk = Walk(lambda operand: Place("weight", index[_weight_key(operand)]), zero, own)
    steps = with_moves(walk.steps(graph, calls, claim.places), calls, claim.moves)
    _settle_alone(claim)
    slots, own_slots = tuple(walk.slots.sizes), tuple(walk.own_slots.sizes)
    placed = (*steps, *claim.copies), claim.places, slots, weights, size, index, walk.results
    return Plan(*placed, own_slots, together)


def _settle_alone(claim: _Claim) -> None:
    """Of a run of one session, what a state becomes is computed there, and not moved."""
    for _, move in claim.moves:
        place = claim.places.get(move.node)
        if place is not None and place.kind == "slot" and place.alone is None:
            claim.places[move.node] = replace(place, alone=move.to)


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


def _store(operands: Iterable[Operand]) -> _Weights:
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
