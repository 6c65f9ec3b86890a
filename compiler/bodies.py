"""Passes on the bodies of loops and branches: a body is a graph, so what changes a graph changes it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llmc.compiler.dims import Bounds
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.spec import Pass


def run_everywhere(change: Pass, graph: Graph) -> Graph:
    """What a pass makes of `graph` and, if it enters bodies, of those in it, inner ones after outer ones."""
    after = change.run(graph)
    if not isinstance(after, Graph) or not change.enters():
        return after

    def visit(node: Node) -> Node:
        return _changed(change, node, graph.dims) if node.bodies else node

    return after.replace(visit)


def _changed(change: Pass, node: Node, dims: Mapping[str, Bounds]) -> Node:
    made = {
        name: _body(change, value, dims) if isinstance(value, Graph) else value
        for name, value in node.attributes.items()
    }
    if all(made[name] is value for name, value in node.attributes.items()):
        return node
    return make(node.op, node.inputs, node.source, **made)


def _body(change: Pass, body: Graph, dims: Mapping[str, Bounds]) -> Graph:
    """The pass sees a body with the dims of the graph around it, which are not its own."""
    whole = replace(body, dims=dims)
    after = run_everywhere(change, whole)
    return body if after is whole else Graph(after.inputs, after.outputs)
