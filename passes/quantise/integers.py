"""`integers`: products and convolutions of a model that comes quantised run on integer kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmc.compiler.effects import Verdict, tell
from llmc.compiler.graph import Graph, Node
from llmc.compiler.pipeline import Keeps, Pass
from llmc.compiler.rewrite import Decline, rewrite
from llmc.passes.quantise.integer import integer_convolution, integer_product

RULES = {"linear": integer_product, "conv2d": integer_convolution}
_READ = (*RULES, "matmul")


@dataclass(frozen=True)
class Integers(Pass):
    """Multiply levels as integers where a file has quantised both factors, and tell where that is not to be had.

    Sums of products become exact, so the answers move by the float rounding that is saved.
    """

    name = "integers"
    keeps: ClassVar[Keeps] = Keeps("close", 1e-4)

    def run(self, graph: Graph) -> Graph:
        """The rules of `qfuse` for levels."""
        tell("products of levels", _verdicts(graph))
        return rewrite(graph, tuple(RULES.values()))


def _verdicts(graph: Graph) -> Iterator[Verdict]:
    for node in graph.nodes:
        if node.op in _READ and any(_is_dequantised(i) for i in node.inputs[:2]):
            yield Verdict(node, 1, _left(node))


def _is_dequantised(node: Node) -> bool:
    return node.op == "dequantize" or (node.op == "chain" and node.attributes["body"][-1][0] == "dequantize")


def _left(node: Node) -> str:
    """Why it stays float; empty if it does not."""
    if node.op not in RULES:
        return "of two computed values"
    after = RULES[node.op](node)
    if after is None:
        return "of which one factor is no levels"
    return after.reason if isinstance(after, Decline) else ""
