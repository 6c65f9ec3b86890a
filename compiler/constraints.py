"""What sizes must satisfy for a graph to have a value, where the bounds of its dims do not say that they do.

Type rules compare shapes as expressions: that a slice `0:seq` lies within `width` rows they cannot tell. Kernels do
not look either, they would read what lies beside. So a compiled function and the interpreter look at these constraints
before a call, and refuse it alike. Those of the bodies of a branch hold whichever
body runs; those of a loop that does not run at all do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import sympy

from llmc.compiler.bounded import never_negative
from llmc.compiler.dims import Bounds, Dim, dim, dim_text, evaluate
from llmc.compiler.graph import Graph, Node, results_of
from llmc.compiler.ops import OPS
from llmc.compiler.ops.traits import AtMost
from llmc.errors import LlmcError

HINT = "give inputs whose sizes fit; a state that grows holds nothing at first"


@dataclass(frozen=True)
class Constraint:
    """`times <= 0 or low <= high`, and how to tell that it is not so: `head`, a value, `middle`, a value."""

    low: Dim
    high: Dim
    times: Dim
    head: str
    middle: str
    values: tuple[Dim, Dim]

    def refusal(self, sizes: Mapping[str, int]) -> str:
        """What is wrong at these sizes, empty if nothing is."""
        if evaluate(self.times, sizes) <= 0 or evaluate(self.low, sizes) <= evaluate(self.high, sizes):
            return ""
        first, second = (evaluate(value, sizes) for value in self.values)
        return f"{self.head}{first}{self.middle}{second}"


_known: WeakKeyDictionary[Graph, tuple[Constraint, ...]] = WeakKeyDictionary()


def constraints(graph: Graph) -> tuple[Constraint, ...]:
    """Those of all nodes that the bounds of `graph.dims` do not prove, the strongest of those that say alike."""
    if graph not in _known:
        found: dict[Any, tuple[Dim, Constraint]] = {}
        for node, at_most in _unproven(graph, graph.dims, 1):
            key, room = _normal(at_most)
            if key not in found or room < found[key][0]:
                found[key] = room, _told(node, at_most)
        _known[graph] = tuple(constraint for _, constraint in found.values())
    return _known[graph]


def check_sizes(graph: Graph, sizes: Mapping[str, int]) -> None:
    """Refuse sizes of all dims, the counted ones too, at which `graph` has no value.

    Raises:
        LlmcError: the sentence that a compiled function gives.
    """
    for constraint in constraints(graph):
        if refusal := constraint.refusal(sizes):
            raise LlmcError(refusal, hint=HINT)


def _unproven(graph: Graph, bounds: Mapping[str, Bounds], times: Dim) -> Iterator[tuple[Node, AtMost]]:
    """Those of a graph, or of a body that runs `times`."""
    seen: set[Any] = set()
    for node in graph.nodes:
        for at_most in (*_declared(node), *_sizes(node, seen)):
            limited = replace(at_most, times=_least(times, at_most.times, bounds))
            if not never_negative(dim(at_most.high - at_most.low), bounds):
                yield node, limited
        for body in node.bodies:
            runs = node.attributes.get("count", 1)
            yield from _unproven(body, bounds, _least(times, runs, bounds))


def _least(a: Dim, b: Dim, bounds: Mapping[str, Bounds]) -> Dim:
    """The smaller of two numbers of times; 1 stands for all that are never below it."""
    a, b = (1 if never_negative(dim(t - 1), bounds) else t for t in (a, b))
    return b if a == 1 else a if b == 1 else dim(sympy.Min(a, b))


def _declared(node: Node) -> Iterator[AtMost]:
    declared = OPS[node.op].constraints
    if declared is not None:
        yield from declared(*(i.type for i in node.inputs), **node.attributes)


def _sizes(node: Node, seen: set[Any]) -> Iterator[AtMost]:
    """No size is negative, and all that is symbolic is whole."""
    for kind in results_of(node.type):
        for axis, size in enumerate(kind.shape):
            if isinstance(size, sympy.Symbol) or size in seen:
                continue
            seen.add(size)
            yield AtMost(0, size, high_name=f"the size of axis {axis}")
            yield from _whole(size, f"the size of axis {axis}")
    for name, value in node.attributes.items() if OPS[node.op].symbolic else ():
        if isinstance(value, sympy.Expr) and value not in seen:
            seen.add(value)
            yield from _whole(value, f"its {name}")


def _whole(value: Dim, name: str) -> Iterator[AtMost]:
    """What is divided without rest: n / d, so that n <= d * floor(n/d)."""
    if isinstance(value, int):
        return
    over, under = sympy.fraction(sympy.together(value))
    if under != 1:
        yield AtMost(
            dim(over), dim(under * sympy.floor(over / under)), f"{name}, not whole: {under} times it"
        )


def _normal(at_most: AtMost) -> tuple[Any, Dim]:
    """(key, room): constraints of one key hold where that with the least room does."""
    room, rest = sympy.sympify(dim(at_most.high - at_most.low)).as_coeff_Add()
    factor, rest = rest.as_content_primitive()
    if rest.func is sympy.floor:  # floor(n/d) + room >= 0 is n + d*room >= 0
        over, under = sympy.fraction(sympy.together(rest.args[0]))
        if under.is_Integer and factor == 1:
            more, rest = sympy.expand(over).as_coeff_Add()
            room = under * room + more
            factor, rest = rest.as_content_primitive()
    return (rest, at_most.times), sympy.floor(room / factor)


def _told(node: Node, at_most: AtMost) -> Constraint:
    place = node.source.path or node.source.line
    where = f"{node.op} at {place}" if place else node.op
    low, high = (
        _named(at_most.low_name, at_most.low),
        _named(at_most.high_name, at_most.high),
    )
    values = (at_most.low, at_most.high)
    if isinstance(at_most.low, int):  # what may vary comes first
        head, middle, values = f"{where}: {high}", f", is below {low}", values[::-1]
    else:
        head, middle = f"{where}: {low}", f", is above {high}"
    return Constraint(at_most.low, at_most.high, at_most.times, head, middle, values)


def _named(name: str, value: Dim) -> str:
    """What goes before a number: "its stop, seq + 1 = "."""
    text = "" if isinstance(value, int) else f"{dim_text(value)} = "
    return f"{name}, {text}" if name else text
