"""Dims that the data decides: how many places of a mask are kept. They are counted before a graph runs."""

from __future__ import annotations

from collections.abc import Mapping

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops.declare import OPS


def counted_dim(node: Node) -> str:
    """The dim that `node` numbers the kept places of its first input by; empty if it counts nothing."""
    declared = OPS.get(node.op)
    return str(node.attributes[declared.counts]) if declared and declared.counts else ""


def counted_dims(graph: Graph) -> Mapping[str, Node]:
    """dim name -> the mask, an input of `graph`, whose kept places it numbers."""
    return {name: node.inputs[0] for node in graph.nodes if (name := counted_dim(node))}


def given_dims(graph: Graph) -> list[str]:
    """The dims of `graph` that a caller's shapes decide, in order."""
    counted = counted_dims(graph)
    return [name for name in graph.dims if name not in counted]
