"""Inputs that are indices or sizes: what lies beyond the axis they count, or is no size of it, is refused in a call."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from llmc.compiler.dims import Bounds, product
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.verify_dims import joined_dims, unread_dims

_VIEWS = ("reshape", "transpose", "expand")
_INTEGERS = ("i32", "i64")


def bounded(graph: Graph) -> Graph:
    """The graph with bounds of those inputs that, whole, are indices of axes of known sizes."""
    bounds: dict[Node, tuple[int, int]] = {}
    for index, size in _indices(graph):
        node, low = origin(index, size)
        if node.op == "input" and node.dtype in _INTEGERS and size:
            least, most = bounds.get(node, (low, size - 1))
            bounds[node] = max(least, low), min(most, size - 1)
    return graph.replace(lambda node: _within(node, *bounds[node]) if node in bounds else node)


def sized(
    inputs: Sequence[Node], numbers: Sequence[tuple[str, Node | None, int]]
) -> tuple[Mapping[Node, int], set[str]]:
    """Input of one integer -> the only one that it may be, and the places where nothing else decides.

    Args:
        numbers: place, a number that decides a size there, and the size that the file declares; None: it may not count.
    """
    origins = [None if number is None else origin(number, 0)[0] for _, number, _ in numbers]
    found: dict[Node, set[int]] = {}
    for node, (_, _, size) in zip(origins, numbers, strict=True):
        if node is None or node not in inputs or node.dtype not in _INTEGERS:
            continue
        if node.op == "input" and product(node.shape) == 1:
            found.setdefault(node, set()).add(size)
    single = {node: sizes.pop() for node, sizes in found.items() if len(sizes) == 1}
    others = {place for (place, _, _), node in zip(numbers, origins, strict=True) if node not in single}
    return single, {place for place, _, _ in numbers} - others


def with_sizes(graph: Graph, sizes: Mapping[Node, int]) -> Graph:
    """The graph whose inputs may be these numbers only."""
    return graph.replace(lambda node: _within(node, sizes[node], sizes[node]) if node in sizes else node)


def with_empty(graph: Graph, asked: Collection[str], empty: Collection[str]) -> Graph:
    """The graph whose inputs that nothing reads may hold nothing, along dynamic axes without bounds that were asked.

    Args:
        empty: other dims that may be 0, as that of a past is at first.
    """
    free = (unread_dims(graph) - set(asked)) | (joined_dims(graph).intersection(empty))
    dims = {name: Bounds(0 if name in free else low, high) for name, (low, high) in graph.dims.items()}
    return replace(graph, dims=dims) if free else graph


def _indices(graph: Graph) -> Iterator[tuple[Node, int]]:
    """Indices that are always looked up, and how many places there are."""
    for node in graph.nodes:
        axis = {"embedding": 0, "gather": None, "scatter": None}.get(node.op, -1)
        if axis == -1:
            continue
        size = node.inputs[0].shape[node.attributes["axis"] if axis is None else axis]
        if isinstance(size, int):
            yield node.inputs[1], size


def origin(index: Node, size: int) -> tuple[Node, int]:
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
