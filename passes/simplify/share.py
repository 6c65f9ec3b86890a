"""`cse` and `tie`: what is equal is kept once. Dead code needs no pass: unread nodes are not in a graph."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS
from llmc.compiler.pipeline import Pass


@dataclass(frozen=True)
class Cse(Pass):
    """Nodes of the same op, inputs and attributes become one: the first."""

    name = "cse"

    def run(self, graph: Graph) -> Graph:
        """Hash-consing, inputs first."""
        known: dict[Hashable, Node] = {}
        return graph.replace(lambda node: known.setdefault(_key(node), node))


def _key(node: Node) -> Hashable:
    if node.op in ("input", "state", "constant"):
        return id(node)  # equal weights are the business of `tie`
    reads = [id(i) for i in node.inputs]
    if OPS[node.op].commutative:
        reads[:2] = sorted(reads[:2])
    return node.op, tuple(reads), tuple((k, _exact(v)) for k, v in node.attributes.items())


def _exact(value: Hashable) -> Hashable:
    """A key that keeps apart what compares equal: 0.0 and -0.0, 1 and True."""
    return type(value).__name__, value.hex() if isinstance(value, float) else value


@dataclass(frozen=True)
class Tie(Pass):
    """Constants of equal content (sha256 over dtype, shape, bytes) become one, stored once."""

    name = "tie"

    def run(self, graph: Graph) -> Graph:
        """The first constant of each content replaces the others."""
        known: dict[str, Node] = {}

        def change(node: Node) -> Node:
            if node.op != "constant":
                return node
            return known.setdefault(node.attributes["value"].digest, node)

        return graph.replace(change)
