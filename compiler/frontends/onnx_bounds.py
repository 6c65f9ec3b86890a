"""Inputs that are indices: what lies beyond the axis they count is refused when a call is made, not clamped."""

from __future__ import annotations

from collections.abc import Iterator

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make

_VIEWS = ("reshape", "transpose", "expand")
_INTEGERS = ("i32", "i64")


def bounded(graph: Graph) -> Graph:
    """The graph with bounds of those inputs that, whole, are indices of axes of known sizes."""
    bounds: dict[Node, tuple[int, int]] = {}
    for index, size in _indices(graph):
        node, low = _origin(index, size)
        if node.op == "input" and node.dtype in _INTEGERS and size:
            least, most = bounds.get(node, (low, size - 1))
            bounds[node] = max(least, low), min(most, size - 1)
    return graph.replace(lambda node: _within(node, *bounds[node]) if node in bounds else node)


def _indices(graph: Graph) -> Iterator[tuple[Node, int]]:
    """Indices that are always looked up, and how many places there are."""
    for node in graph.nodes:
        axis = {"embedding": 0, "gather": None, "scatter": None}.get(node.op, -1)
        if axis == -1:
            continue
        size = node.inputs[0].shape[node.attributes["axis"] if axis is None else axis]
        if isinstance(size, int):
            yield node.inputs[1], size


def _origin(index: Node, size: int) -> tuple[Node, int]:
    """What holds the same numbers, and the least that is legal: below zero they count from the end."""
    low = 0
    while True:
        match index:
            case Node("where", (Node("lt", (x, _)), Node("add", (y, _)), z)) if x is y is z:
                index, low = x, -size
            case Node("cast", (x,)) if x.dtype in _INTEGERS:
                index = x
            case Node(op, (x, *_)) if op in _VIEWS:
                index = x
            case _:
                return index, low


def _within(node: Node, low: int, high: int) -> Node:
    """An input, at least and at most so much; bounds that it has stay."""
    a = node.attributes
    low = low if a["low"] is None else max(low, a["low"])
    high = high if a["high"] is None else min(high, a["high"])
    return make("input", (), node.source, **{**a, "low": low, "high": high}) if low <= high else node
