"""Several graphs as one, so that a test compiles once and their equal kernels are made once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmc.compiler.dims import Bounds
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import input_


def join(graphs: Mapping[str, Graph], shared: bool) -> Graph:
    """One graph whose outputs are called `GRAPH.OUTPUT`; inputs are shared by name, or called `GRAPH.INPUT`."""
    inputs: dict[str, Node] = {}
    outputs: dict[str, Node] = {}
    for label, graph in graphs.items():
        joined = graph.replace(
            lambda node, label=label: _renamed(node, inputs, "" if shared else f"{label}.")
        )
        outputs |= {f"{label}.{name}": node for name, node in joined.outputs.items()}
    dims: dict[str, Bounds] = {}
    for graph in graphs.values():
        assert all(dims.setdefault(name, bounds) == bounds for name, bounds in graph.dims.items())
    return Graph(tuple(inputs.values()), outputs, dims)


def _renamed(node: Node, inputs: dict[str, Node], prefix: str) -> Node:
    if node.op != "input":
        return node
    a = node.attributes
    name = prefix + a["name"]
    if name not in inputs:
        rest = {k: a[k] for k in ("default", "low", "high")}
        inputs[name] = input_(name, node.dtype, node.shape, **rest)
    assert {**inputs[name].attributes, "name": ""} == {**a, "name": ""}
    return inputs[name]


def part(values: Mapping[str, Any], label: str) -> dict[str, Any]:
    """What belongs to one graph of a join, under its own names."""
    return {name.removeprefix(f"{label}."): v for name, v in values.items() if name.startswith(f"{label}.")}
