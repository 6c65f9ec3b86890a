"""When two attribute values, types or graphs are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from llmc.compiler.dims import dim
from llmc.compiler.graph import Graph, Node, Results, TensorType


def same_value(a: Any, b: Any) -> bool:
    """Whether two attribute values are the same: 1, 1.0 and True differ, NaN equals NaN, -0.0 is not 0.0."""
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return bool(dim(a - b) == 0)
    if type(a) is not type(b):
        return False
    if isinstance(a, Graph):
        return equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same_value, a, b))
    return repr(a) == repr(b) if isinstance(a, float) else bool(a == b)


def same_type(a: TensorType, b: TensorType) -> bool:
    """Whether two types are equal for all sizes of their dims."""
    if isinstance(a, Results) and isinstance(b, Results):
        return len(a.types) == len(b.types) and all(map(same_type, a.types, b.types))
    return a == b or (a.dtype == b.dtype and a.rank == b.rank and all(map(same_value, a.shape, b.shape)))


def equal(a: Graph, b: Graph, *, sources: bool = False) -> bool:
    """Whether two graphs have equal structure: dims, inputs, outputs, and nodes' ops, attributes and types.

    Sharing counts: `add(x, x)` of one node differs from `add` of two equal ones. `sources` compares sources.
    """
    if a.dims != b.dims or _names(a) != _names(b) or len(a.nodes) != len(b.nodes):
        return False
    # the order of nodes follows from the structure, so equal graphs list theirs in the same order
    twin = dict(zip(a.nodes, b.nodes, strict=True))
    return (
        [twin[i] for i in a.inputs] == list(b.inputs)
        and [twin[s] for s in a.states] == list(b.states)
        and [twin[root] for root in a.roots] == list(b.roots)
        and all(_equal_nodes(x, y, twin, sources) for x, y in twin.items())
    )


def _names(graph: Graph) -> tuple[list[str], list[str]]:
    return list(graph.outputs), list(graph.updates)


def _equal_nodes(a: Node, b: Node, twin: Mapping[Node, Node], sources: bool) -> bool:
    return (
        a.op == b.op
        and same_type(a.type, b.type)
        and [twin[i] for i in a.inputs] == list(b.inputs)
        and a.attributes.keys() == b.attributes.keys()
        and all(same_value(v, b.attributes[k]) for k, v in a.attributes.items())
        and (not sources or a.source == b.source)
    )
