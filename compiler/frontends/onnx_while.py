"""Loops of ONNX that count by themselves: how often one runs, read from the condition that ends it.

What TensorFlow calls a while loop comes without a count. One that goes on while a number, which grows by 1 each time,
is below a limit runs as often as both say; the body need not be imported to know that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.onnx_call import Call
from llmc.compiler.frontends.onnx_values import Sizes, Value, known
from llmc.compiler.frontends.ranges import is_nonnegative
from llmc.compiler.graph import Node

_EXACT = 1 << 24  # integers up to here are floats as well
_WIDE = (1, 6, 7, 11)  # ONNX's float, int32, int64 and double
_SAME = ("Identity", "Cast")
_BELOW = {
    "Less": 0,
    "LessOrEqual": 1,
    "Greater": 0,
    "GreaterOrEqual": 1,
}  # op -> one more if the limit is reached


def trips_of(call: Call) -> Dim | None:
    """How often a Loop without a count runs, None if that is not known before it does.

    A loop that may not even begin, but where a size is 0, is none of these.
    """
    start = call.value(1) if call.has(1) else None
    if start is not None and not _begins(start):
        return None
    trips = _Body(call).trips()
    if trips is None or isinstance(trips, int):
        return None if trips is None else max(trips, 1)
    if start is None or known(start) is not None:  # what begins anyway runs once at least
        return dim(sympy.Max(1, trips))
    return trips if is_nonnegative(dim(trips - 1)) else None


def passed_on(graph: Any, position: int) -> bool:
    """Whether a carried value of a body is the same in each iteration."""
    return bool(_Names(graph).plain(graph.output[1 + position].name) == graph.input[2 + position].name)


class _Names:
    """Which node of a body makes what."""

    def __init__(self, graph: Any) -> None:
        self.makers = {name: node for node in graph.node for name in node.output if name}

    def plain(self, name: str, through: tuple[str, ...] = ("Identity",)) -> str:
        """The name of a value before it was handed on."""
        seen: set[str] = set()
        while name not in seen and _hands_on(self.makers.get(name), through):
            seen.add(name)
            name = self.makers[name].input[0]
        return name


def _hands_on(node: Any, through: tuple[str, ...]) -> bool:
    """Whether a node gives what it gets; a cast does so to whole numbers between types that hold them."""
    if node is None or node.op_type not in through:
        return False
    return node.op_type != "Cast" or all(a.i in _WIDE for a in node.attribute if a.name == "to")


class _Body:
    def __init__(self, call: Call) -> None:
        self.call, self.graph = call, call.attributes["body"]
        self.names = _Names(self.graph)
        self.scope = call.scope.body(self.graph)
        self.carried = {info.name: i for i, info in enumerate(self.graph.input[2:])}

    def trips(self) -> Dim | None:
        name = self.names.plain(self.graph.output[0].name)
        node = self.names.makers.get(name)
        if node is None or node.op_type not in _BELOW or len(node.input) != 2:
            return None
        rising, limit = node.input if node.op_type.startswith("Less") else reversed(node.input)
        first, last = self.after_first(rising), self.number(limit)
        if first is None or last is None:
            return None
        if isinstance(last, int) and last >= _EXACT:
            return None
        # The number is `first` when the first iteration ends; the loop goes on while it is below.
        return dim(last - first + 1 + _BELOW[node.op_type])

    def after_first(self, name: str) -> Dim | None:
        """What a number is when the first iteration ends, of one that is 1 more after each."""
        name = self.names.plain(name, _SAME)
        more, old = 0, name
        if name not in self.carried and name != self.graph.input[0].name:
            added = self.one_more(name)
            if added is None:
                return None
            more, old = 1, added
        if old == self.graph.input[0].name:
            return more
        place = self.carried[old]
        kept = self.names.plain(self.graph.output[1 + place].name, _SAME)
        if self.one_more(kept) != old:
            return None
        start = number_of(self.call.value(2 + place))
        return None if start is None else dim(start + more)

    def one_more(self, name: str) -> str | None:
        """The input of the body to which a node adds 1."""
        node = self.names.makers.get(name)
        if node is None or node.op_type != "Add":
            return None
        for old, step in (node.input, reversed(node.input)):
            old = self.names.plain(old, _SAME)
            if (old in self.carried or old == self.graph.input[0].name) and self.number(step) == 1:
                return str(old)
        return None

    def number(self, name: str) -> Dim | None:
        """A number that is the same in each iteration."""
        name = self.names.plain(name, _SAME)
        if name in self.carried:
            place = self.carried[name]
            return number_of(self.call.value(2 + place)) if passed_on(self.graph, place) else None
        node = self.names.makers.get(name)
        if node is not None and node.op_type == "Constant":
            self.scope.reader.read(node, self.scope)
        elif node is not None or name in {i.name for i in self.graph.input}:
            return None
        return number_of(self.scope.value(name))


def number_of(value: Value | None) -> Dim | None:
    """A whole number that is known, perhaps by the sizes of inputs, and perhaps cast."""
    while isinstance(value, Node) and value.op in ("cast", "reshape"):
        value = value.inputs[0]
    if isinstance(value, Node) and value.op == "dim":
        return dim(value.attributes["value"])
    array = known(value)
    if array is None or array.size != 1:
        return None
    found = array.reshape(-1)[0]
    if isinstance(value, Sizes):
        return dim(found)
    return int(found) if np.isfinite(found) and found == int(found) and abs(int(found)) < _EXACT else None


def _begins(condition: Value | None) -> bool:
    """Whether a condition holds for all sizes, which are at least 1."""
    array = known(condition)
    if array is not None:
        return array.size == 1 and bool(array.reshape(-1)[0])
    if not isinstance(condition, Node) or condition.op not in ("lt", "le", "gt", "ge"):
        return False
    small, large = condition.inputs if condition.op in ("lt", "le") else condition.inputs[::-1]
    low, high = number_of(small), number_of(large)
    if low is None or high is None:
        return False
    return is_nonnegative(dim(high - low - int(condition.op in ("lt", "gt"))))
