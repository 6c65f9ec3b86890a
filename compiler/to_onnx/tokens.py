"""A graph on the rows of real tokens -> the same on all rows.

How many tokens there are the data decides, and no file that is read again may have such a size. What works on rows
works on each for itself, attention leaves padding out by its keys, and `unpack_rows` writes zeros there: with all
places kept the outputs are the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import sympy

from llmc.compiler.counted import counted_dim, counted_dims
from llmc.compiler.dims import Dim, dim, product, symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, make

Dims = dict[Any, Dim]


def on_all_rows(graph: Graph) -> Graph:
    """The graph with every place kept; itself where it packs nothing."""
    counted = counted_dims(graph)
    if not counted:
        return graph
    whole: Dims = {symbol(name): product(mask.shape) for name, mask in counted.items()}
    done: dict[Node, Node] = {}
    for node in graph.nodes:
        done[node] = _rebuilt(node, tuple(done[i] for i in node.inputs), whole)
    dims = {name: bounds for name, bounds in graph.dims.items() if name not in counted}
    return replace(graph.exchanged(done.__getitem__), dims=dims)


def _rebuilt(node: Node, inputs: tuple[Node, ...], whole: Dims) -> Node:
    """A node on rebuilt inputs, and with sizes in place of what was counted."""
    if counted_dim(node):
        return _places(inputs[0])
    if node.op == "pack_offsets":
        batch, seq = inputs[0].shape
        return _times(make("iota", (), node.source, length=dim(batch + 1)), seq)
    if node.op == "pack_places":
        places = make("reshape", (_places(inputs[0]),), shape=node.shape)
        kept = make("cast", (inputs[0],), dtype="bool")
        return make("where", (kept, places, constant(np.int64(-1))), node.source)
    attributes = {name: _instead(value, whole) for name, value in node.attributes.items()}
    same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
    if same and attributes == dict(node.attributes):
        return node
    return make(node.op, inputs, node.source, **attributes)


def _places(mask: Node) -> Node:
    return make("iota", (), mask.source, length=product(mask.shape))


def _times(x: Node, size: Dim) -> Node:
    return make("mul", (x, make("dim", (), value=size)))


def _instead(value: Any, whole: Dims) -> Any:
    """An attribute with sizes in place of counted dims."""
    if isinstance(value, tuple):
        return tuple(_instead(part, whole) for part in value)
    return dim(value.subs(whole)) if isinstance(value, sympy.Expr) else value
