"""Hold `Together` to its word: what works by row gives, on rows of several sessions, what each gets alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmc.compiler import interpret
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS
from llmc.compiler.together import Together

Array = np.ndarray[Any, Any]
Calls = Sequence[Mapping[str, Array]]


def by_row(graph: Graph, sessions: Sequence[Calls], exact: bool = False) -> list[str]:
    """Run the last call of every session by itself, and what works by row on all of them too; the ops that do.

    Args:
        sessions: the calls of each.
        exact: compare bits; else within what a product of NumPy's differs by with the number of rows.
    """
    together = Together(graph)
    assert not together.refusal, together.refusal
    seen = [_values(graph, calls) for calls in sessions]
    found = []
    for node in graph.nodes:
        rows = together.rows(node)
        if not rows or not together.works_by_row(node, rows):
            continue
        inputs = [_joined(together, x, seen) for x in node.inputs]
        extra = {"sizes": _sizes(together, seen)} if OPS[node.op].symbolic else {}
        value = OPS[node.op].reference(*inputs, **node.attributes, **extra)
        wanted = _joined(together, node, seen)
        np.testing.assert_allclose(value, wanted, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
        found.append(node.op)
    return found


def _values(graph: Graph, calls: Calls) -> tuple[dict[Node, Array], dict[str, int]]:
    """The values of the last call, and its sizes."""
    states: dict[str, Array] = {}
    for inputs in calls[:-1]:
        _, states = interpret.step(graph, inputs, states)
    values: dict[Node, Array] = {}
    interpret.step(graph, calls[-1], states, lambda node, value: values.update({node: np.array(value)}))
    return values, interpret.bind(graph, calls[-1], states)


def _joined(together: Together, node: Node, seen: Sequence[Any]) -> Array:
    """The rows of all sessions; what is common as it is."""
    parts = [values[node] for values, _ in seen]
    rows = together.rows(node)
    if not rows:
        assert together.common(node)
        return parts[0]
    axis = next(i for i, d in enumerate(node.shape) if d != 1)
    return np.concatenate(parts, axis)


def _sizes(together: Together, seen: Sequence[Any]) -> dict[str, int]:
    return {d: sum(sizes[d] for _, sizes in seen) for d in together.row_dims}
