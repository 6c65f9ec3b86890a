"""`bf16-products`: products with weights in bfloat16 take activations in bfloat16 too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmc.compiler.effects import Verdict, tell
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.pipeline import LOSSY, Keeps
from llmc.compiler.rewrite import Decline, RewritePass, Rule


def product_of_halves(node: Node) -> Node | Decline | None:
    """linear(x, bfloat16(h)) -> bf16_linear(bf16_rows(x), h)"""
    match node:
        case Node("linear", (x, Node("bfloat16", (halves,), stored), *extras)):
            pass
        case _:
            return None
    if halves.op != "constant":
        return Decline("the weight is computed")
    rows = make("bf16_rows", (x,), x.source)
    return make("bf16_linear", (rows, halves, *extras), node.source, **stored, **node.attributes)


@dataclass(frozen=True)
class Bf16Products(RewritePass):
    """Round the activations of products with weights in bfloat16 likewise, and sum in float32.

    What a value loses is at most 2^-9 of itself, and all of it below 2^-50.
    """

    name = "bf16-products"
    keeps: ClassVar[Keeps] = LOSSY
    rules: ClassVar[tuple[Rule, ...]] = (product_of_halves,)

    def run(self, graph: Graph) -> Graph:
        """Apply the rule, and tell of every product with such weights."""
        products = [n for n in graph.nodes if n.op == "linear" and n.inputs[1].op == "bfloat16"]
        tell("products with weights in bfloat16", (Verdict(n, 1, _left(n)) for n in products))
        return super().run(graph)


def _left(node: Node) -> str:
    """Why a product keeps its activations; empty if it does not."""
    made = product_of_halves(node)
    return made.reason if isinstance(made, Decline) else ""
