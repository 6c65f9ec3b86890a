"""Attention with a sink, GPT-OSS's: a score beside those of the keys, that takes its share and gives nothing.

transformers puts it behind the keys. There its place in a row, and with it the order in which the row is summed,
changes with every token of a call; before them, all that a query sees has the same place in every call, and the same
bits.
"""

from __future__ import annotations

from llmc.compiler.dims import dim
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.rewrite import rewrite


def sink_first(node: Node) -> Node | None:
    """slice{0..n}(softmax(concat(scores, sink))) -> slice{1..n+1}(softmax(concat(sink, scores)))"""
    match node:
        case Node("slice", (Node("softmax", (row,), {"axis": axis}),), {"axis": cut, "start": 0, "step": 1}):
            joined = _joined(row)
        case _:
            return None
    if joined is None or not axis == cut == joined.attributes["axis"] == node.type.rank - 1:
        return None
    scores, sink = joined.inputs
    keys = scores.shape[-1]
    if isinstance(keys, int) or sink.shape[-1] != 1 or node.shape[-1] != keys:
        return None
    turned = make("concat", (sink, scores), joined.source, axis=axis)
    shares = make("softmax", (_like(row, turned),), node.source, axis=axis)
    return make("slice", (shares,), node.source, axis=axis, start=1, stop=dim(keys + 1))


def _joined(row: Node) -> Node | None:
    """The two that a row is made of, with or without its largest taken off."""
    match row:
        case Node("concat", (_, _)):
            return row
        case Node("sub", (Node("concat", (_, _)) as joined, Node("max", (most,), {"keepdims": True}))):
            return joined if most is joined else None
    return None


def _like(row: Node, turned: Node) -> Node:
    if row.op == "concat":
        return turned
    largest = row.inputs[1]
    most = make("max", (turned,), largest.source, axes=largest.attributes["axes"], keepdims=True)
    return make("sub", (turned, most), row.source)


def before_keys(graph: Graph) -> Graph:
    """The graph of a step with sinks before the keys."""
    return rewrite(graph, (sink_first,))
