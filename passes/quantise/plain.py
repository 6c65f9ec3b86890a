"""`dequantize`: constant levels that no integer kernel reads become the floats that they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import OPS, constant
from llmc.compiler.pipeline import EXACT, Keeps, Pass
from llmc.passes.match import is_levels

_PRODUCTS = frozenset({"matmul", "linear", "conv2d"})
_VIEWS = frozenset({"transpose", "reshape"})


@dataclass(frozen=True)
class Dequantize(Pass):
    """Store as floats what is stored as levels, but for the weights of products and convolutions.

    Args:
        products: whether theirs, too: after the passes that make integer kernels of them.
    """

    name = "dequantize"
    keeps: ClassVar[Keeps] = EXACT
    products: bool = False

    def run(self, graph: Graph) -> Graph:
        """One walk."""
        users = graph.users
        kept = {n for n in graph.nodes if is_levels(n) and not self.products and _is_factor(n, users)}

        def change(before: Node, node: Node) -> Node:
            fixed = node.op == "dequantize" and all(part.op == "constant" for part in node.inputs)
            return _plain(node) if fixed and before not in kept else node

        return graph.rebuild(change)


def _is_factor(weight: Node, users: Mapping[Node, Iterable[Node]]) -> bool:
    """Whether a product multiplies by it, turned or not."""
    return any(
        reader.inputs[1] is weight
        if reader.op in _PRODUCTS
        else reader.op in _VIEWS and _is_factor(reader, users)
        for reader in users[weight]
    )


def _plain(node: Node) -> Node:
    arrays = [part.attributes["value"].array for part in node.inputs]
    name = node.inputs[0].attributes["value"].name
    value = np.ascontiguousarray(OPS["dequantize"].reference(*arrays))
    return constant(Weight(value, name), source=node.source)
