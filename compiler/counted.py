"""Dims that the data decides: how many places of a mask are kept. They are counted before a graph runs."""

from __future__ import annotations

from collections.abc import Mapping

from llmc.compiler.graph import Graph, Node


def counted_dims(graph: Graph) -> Mapping[str, Node]:
    """dim name -> the mask, an input of `graph`, whose kept places it numbers."""
    return {str(n.attributes["tokens"]): n.inputs[0] for n in graph.nodes if n.op == "pack_index"}


def given_dims(graph: Graph) -> list[str]:
    """The dims of `graph` that a caller's shapes decide, in order."""
    counted = counted_dims(graph)
    return [name for name in graph.dims if name not in counted]
