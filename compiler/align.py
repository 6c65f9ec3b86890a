"""Which node of one graph stands for which of another: by structure first, then by source, op, type and position."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from difflib import SequenceMatcher
from typing import Any

import sympy

from llmc.compiler.dims import dim_text
from llmc.compiler.graph import Graph, Node, Weight

Key = Callable[[Node], Hashable]


def align(a: Graph, b: Graph) -> dict[Node, Node]:
    """Node of `a` -> node of `b`. What is in neither has no partner in the other graph."""
    found = _Alignment(a, b)
    found.equal_parts()
    found.by_name()
    for key in (_place_and_type, _place, _kind):
        found.follow()
        found.in_order(key)
    found.constants_of_readers()
    return found.pairs


def _place_and_type(node: Node) -> Hashable:
    return node.op, node.source.path, _constant(node), str(node.type)


def _place(node: Node) -> Hashable:
    return node.op, node.source.path, _constant(node)


def _kind(node: Node) -> Hashable:
    """Of another frontend, which names places in its own way. Constants are told apart by what reads them."""
    return ("constant", node) if node.op == "constant" else (node.op, str(node.type))


def _constant(node: Node) -> str:
    return str(node.attributes["value"].name) if node.op == "constant" else ""


class _Alignment:
    """The pairs so far, and who is left."""

    def __init__(self, a: Graph, b: Graph) -> None:
        self.a, self.b = a, b
        self.pairs: dict[Node, Node] = {}
        self.taken: set[Node] = set()

    def pair(self, a: Node, b: Node) -> None:
        if a not in self.pairs and b not in self.taken:
            self.pairs[a] = b
            self.taken.add(b)

    def left(self) -> tuple[list[Node], list[Node]]:
        return (
            [n for n in self.a.nodes if n not in self.pairs],
            [n for n in self.b.nodes if n not in self.taken],
        )

    def equal_parts(self) -> None:
        """Nodes that compute the same from the same, whatever they are called; of several, those of one source."""
        numbers = Numbers()
        for exact in (True, False):
            places: dict[Hashable, list[Node]] = defaultdict(list)
            rest, others = self.left()
            for node in others:
                places[numbers.of(node), exact and node.source.path].append(node)
            for node in rest:
                if twins := places[numbers.of(node), exact and node.source.path]:
                    self.pair(node, twins.pop(0))

    def by_name(self) -> None:
        """Inputs and states."""
        known = {(n.op, n.attributes["name"]): n for n in (*self.b.inputs, *self.b.states)}
        for node in (*self.a.inputs, *self.a.states):
            if twin := known.get((node.op, node.attributes["name"])):
                self.pair(node, twin)

    def follow(self) -> None:
        """Nodes of the same op on inputs that are paired already."""
        for node in self.a.nodes:
            if node in self.pairs or not node.inputs or not all(i in self.pairs for i in node.inputs):
                continue
            inputs = tuple(self.pairs[i] for i in node.inputs)
            users = self.b.users[inputs[0]]
            twin = next(
                (n for n in users if n not in self.taken and (n.op, n.inputs) == (node.op, inputs)), None
            )
            if twin is not None:
                self.pair(node, twin)

    def in_order(self, key: Key) -> None:
        """Nodes of equal keys, in the longest runs that have them in the same order."""
        rest, others = self.left()
        for a, b in _matches(list(map(key, rest)), list(map(key, others))):
            self.pair(rest[a], others[b])

    def constants_of_readers(self) -> None:
        """Constants that paired nodes read at the same place."""
        for node, twin in list(self.pairs.items()):
            for a, b in zip(node.inputs, twin.inputs, strict=False):
                if a.op == b.op == "constant":
                    self.pair(a, b)


def _matches(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]


class Numbers:
    """Equal numbers for nodes that compute the same from the same."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}
        self._done: dict[Node, int] = {}

    def of(self, node: Node) -> int:
        """Its inputs come first in a graph's list of nodes, so that this need not go deep."""
        if node not in self._done:
            attributes = tuple(sorted((k, self.plain(v)) for k, v in node.attributes.items()))
            inputs = tuple(map(self.of, node.inputs))
            self._done[node] = self._number((node.op, inputs, attributes, str(node.type)))
        return self._done[node]

    def plain(self, value: Any) -> str:
        """A text that is equal for equal values."""
        if isinstance(value, Weight):
            return value.digest
        if isinstance(value, Graph):
            roots = (f"{name}:{self.of(node)}" for name, node in value.outputs.items())
            return f"graph({[*map(self.of, value.nodes)]}, {[*roots]})"
        if isinstance(value, tuple):
            return f"({', '.join(map(self.plain, value))})"
        return dim_text(value) if isinstance(value, sympy.Expr) else repr(value)

    def _number(self, key: Hashable) -> int:
        return self._known.setdefault(key, len(self._known))
