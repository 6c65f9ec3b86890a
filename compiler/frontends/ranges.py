"""What integer tensors can hold, and what that says about the longest sequence.

Positions are counted from shapes and looked up in tables of fixed size: the table's size is the model's limit,
which a file does not state otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import sympy

from llmc.compiler.dims import Dim, dim, dim_names, symbol
from llmc.compiler.graph import Graph, Node

_INTEGERS = ("i8", "u8", "i32", "i64")
_LONGEST = 1 << 20


class Range(NamedTuple):
    """Inclusive bounds, tight for some input; None where nothing is known."""

    low: Dim | None
    high: Dim | None


_UNKNOWN = Range(None, None)


class Ranges:
    """The ranges of a graph's nodes, each worked out once."""

    def __init__(self) -> None:
        self._known: dict[Node, Range] = {}

    def __getitem__(self, node: Node) -> Range:
        pending = [node]
        while pending:  # no recursion: positions may be computed far from the inputs
            wanted = [i for i in pending[-1].inputs if i not in self._known]
            if wanted:
                pending += wanted
                continue
            current = pending.pop()
            self._known[current] = _range(current, [self._known[i] for i in current.inputs])
        return self._known[node]


def is_nonnegative(value: Dim | None) -> bool:
    """Whether a bound is at least 0 for all sizes, which are at least 1."""
    if value is None:
        return False
    expr = sympy.sympify(value)
    more = {s: 1 + sympy.Symbol(s.name, integer=True, nonnegative=True) for s in expr.free_symbols}
    return bool(sympy.expand(expr.subs(more)).is_nonnegative)


def _range(node: Node, inputs: list[Range]) -> Range:
    if node.dtype == "bool":
        return Range(0, 1)
    if node.dtype not in _INTEGERS:
        return _UNKNOWN
    a = node.attributes
    match node.op:
        case "constant":
            array = a["value"].array
            return Range(int(array.min()), int(array.max())) if array.size else _UNKNOWN
        case "input":
            return Range(a["low"], a["high"])
        case "iota":
            ends = (dim(a["start"]), dim(a["start"] + a["step"] * (node.shape[0] - 1)))
            return Range(*ends) if a["step"] >= 0 else Range(*ends[::-1])
        case "dim" | "full":
            return Range(dim(a["value"]), dim(a["value"]))
        case "cast":
            return inputs[0] if node.inputs[0].dtype in (*_INTEGERS, "bool") else _UNKNOWN
        case "reshape" | "transpose" | "expand" | "slice" | "embedding" | "gather" | "max" | "min":
            return inputs[0]
    return _arithmetic(node, inputs)


def _arithmetic(node: Node, inputs: list[Range]) -> Range:
    x, y = inputs[0], inputs[-1]
    match node.op:
        case "add":
            return Range(_sum(x.low, y.low), _sum(x.high, y.high))
        case "sub":
            return Range(_sum(x.low, y.high, -1), _sum(x.high, y.low, -1))
        case "mul" if is_nonnegative(x.low) and is_nonnegative(y.low):
            return Range(_product(x.low, y.low), _product(x.high, y.high))
        case "cumsum" if is_nonnegative(x.low):
            return Range(x.low, _product(x.high, node.shape[node.attributes["axis"]]))
        case "abs":
            return Range(0, None)
        case "maximum":
            return Range(next((v.low for v in (x, y) if is_nonnegative(v.low)), None), _same(x.high, y.high))
        case "minimum":
            tops = [v.high for v in (x, y) if isinstance(v.high, int)]
            return Range(_lowest(x, y), min(tops) if tops else None)
        case "where":
            x = inputs[1]
            return Range(_lowest(x, y), _same(x.high, y.high))
        case "concat":
            lows = [r.low for r in inputs]
            return Range(0 if all(map(is_nonnegative, lows)) else None, None)
    return _UNKNOWN


def _sum(a: Dim | None, b: Dim | None, sign: int = 1) -> Dim | None:
    return None if a is None or b is None else dim(a + sign * b)


def _product(a: Dim | None, b: Dim | None) -> Dim | None:
    return None if a is None or b is None else dim(a * b)


def _lowest(x: Range, y: Range) -> Dim | None:
    return 0 if is_nonnegative(x.low) and is_nonnegative(y.low) else None


def _same(a: Dim | None, b: Dim | None) -> Dim | None:
    """The larger of two bounds if both are numbers: of others it is not known which one is reached."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else None


def longest(graph: Graph, name: str) -> int | None:
    """The largest size of the dim `name` for which every position is inside its table; None if any is."""
    limits = [n for size, room in _demands(graph) if (n := _largest(size, room, name)) is not None]
    return min(limits, default=None)


def _demands(graph: Graph) -> Iterator[tuple[Dim, int]]:
    """Pairs of a symbolic count of rows and the rows there are."""
    ranges = Ranges()
    for node in graph.nodes:
        if node.op == "embedding" and isinstance(node.inputs[0].shape[0], int):
            high = ranges[node.inputs[1]].high
            if high is not None:
                yield dim(high + 1), node.inputs[0].shape[0]
        elif node.op == "slice":
            room = node.inputs[0].shape[node.attributes["axis"]]
            if isinstance(room, int):
                yield dim(node.attributes["stop"]), room


def _largest(size: Dim, room: int, name: str) -> int | None:
    """The largest n for which `size`, which grows with the dim, is at most `room`."""
    if dim_names(size) != {name}:
        return None

    def fits(n: int) -> bool:
        return bool(size.subs(symbol(name), n) <= room)

    if fits(_LONGEST) or not fits(1):
        return None
    low, high = 1, _LONGEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
