"""What `quantize` tells: which weights it wrote as int8 or half precision, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from llmc.compiler.effects import Verdict, tell, tell_weights
from llmc.compiler.graph import Graph, Node

TABLES = ("embedding", "embed_norm")


def tell_quantised(graph: Graph, changed: Collection[Node], left: Callable[[Node, Node], str]) -> None:
    """Tell of every weight.

    Args:
        left: why the pass leaves a weight, as this product or table look-up reads it.
    """

    def why(weight: Node) -> str:
        readers = (n for n in graph.users[weight] if _reads(n, weight))
        return next((left(node, weight) for node in readers), "")

    tell_weights(graph, changed, why)


def tell_ranges(scales: Mapping[Node, float]) -> None:
    """Tell of what products read which has one scale for all tokens: of static quantisation."""
    tell(
        "inputs of products with one range",
        (Verdict(x, 1, "" if s else "by token, as one would lose too much") for x, s in scales.items()),
    )


def _reads(node: Node, weight: Node) -> bool:
    """Whether it is what a product multiplies by, or where a table is looked up."""
    if node.op in ("linear", "conv2d"):
        return node.inputs[1] is weight
    if node.op not in TABLES:
        return False
    end = 1 if node.op == "embedding" else 2 * int(node.attributes["tables"])
    return any(table is weight for table in node.inputs[:end:2])
