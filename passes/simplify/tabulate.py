"""`tabulate`: what depends on the position alone is computed for every position at compile time.

Rotary embeddings and sinusoidal positions are functions of `iota`: the first `seq` rows of a table that is as
long as the dim may be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import sympy

from llmc.compiler import interpret
from llmc.compiler.dims import dim, symbol
from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.ops import OPS, constant, make
from llmc.compiler.pipeline import Keeps, Pass, close
from llmc.errors import LlmcError

_COSTLY = frozenset({"sin", "cos", "exp", "log", "pow", "tanh", "sigmoid", "erf"})


@dataclass(frozen=True)
class Tabulate(Pass):
    """Replace functions of the position by tables, where they hold an op that is worth it (sin, cos, exp ...).

    Args:
        limit: bytes of one table; what would take more stays computed at run time.
    """

    name = "tabulate"
    keeps: ClassVar[Keeps] = close(1e-6)
    limit: int = 64 << 20

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise LlmcError("tabulate: limit must not be negative", found=str(self.limit))

    def run(self, graph: Graph) -> Graph:
        """Find the largest such values, then compute each once."""
        known: dict[Node, str] = {}
        worth: set[Node] = set()
        for node in graph.nodes:
            name = _position(node, known)
            if name is not None:
                known[node] = name
                if node.op in _COSTLY or any(i in worth for i in node.inputs):
                    worth.add(node)
        roots = {n for n in worth if n not in _inner(graph, known) and self._fits(n, known[n], graph)}
        if not roots:
            return graph
        return _replaced(graph, {n: _table(n, known[n], graph) for n in roots})

    def _fits(self, node: Node, name: str, graph: Graph) -> bool:
        rows = graph.dims[name].high
        width = math.prod(int(d) for d in node.shape if isinstance(d, int))
        return rows * width * DTYPES[node.dtype].itemsize <= self.limit


def _position(node: Node, known: Mapping[Node, str]) -> str | None:
    """The dim along one axis of `node`, if element i there depends on i alone; other axes are fixed."""
    if node.op == "iota":
        length = node.attributes["length"]
        return str(length) if isinstance(length, sympy.Symbol) and node.attributes["start"] == 0 else None
    names = {known.get(i) for i in node.inputs if i.op != "constant"}
    if len(names) != 1 or None in names:
        return None
    (name,) = names
    symbols = [d for d in node.shape if not isinstance(d, int)]
    return name if symbols == [symbol(str(name))] and _keeps_place(node, known) else None


def _keeps_place(node: Node, known: Mapping[Node, str]) -> bool:
    """Whether position i of the result is made of position i of the inputs."""
    if OPS[node.op].elementwise:
        return True
    if node.op in ("reshape", "expand", "transpose"):  # rows stay whole: one axis is as long as the dim
        return node.op == "transpose" or _fixed(node) == _fixed(node.inputs[0])
    return node.op in ("concat", "slice") and isinstance(node.shape[node.attributes["axis"]], int)


def _fixed(node: Node) -> list[object]:
    return [d for d in node.shape if d != 1]


def _inner(graph: Graph, known: Mapping[Node, str]) -> set[Node]:
    """Values read only on the way to other values of the position."""
    outputs = set(graph.roots)
    return {n for n in known if n not in outputs and all(u in known for u in graph.users[n])}


def _table(node: Node, name: str, graph: Graph) -> Node:
    """The first rows of the value for all positions."""
    axis = next(a for a, d in enumerate(node.shape) if not isinstance(d, int))
    values = interpret.run_at(node, {name: graph.dims[name].high})
    path = f"{node.source.path}.{node.op}".lstrip(".")
    whole = constant(values, path, node.source)
    return make("slice", (whole,), node.source, axis=axis, start=0, stop=dim(symbol(name)))


def _replaced(graph: Graph, tables: Mapping[Node, Node]) -> Graph:
    order = iter(graph.nodes)
    return graph.replace(lambda node: tables.get(next(order), node))
