"""`unpack`: compressed weights as plain ones, for targets whose kernels do not decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import OPS, constant, make
from llmc.compiler.pipeline import Pass
from llmc.compiler.rewrite import Decline, rewrite
from llmc.passes.compress.weights import place, values


@dataclass(frozen=True)
class Unpack(Pass):
    """Store each compressed weight as the one it stands for: the same values at full size.

    Args:
        keep: ops of stored weights that stay, such as "codebook".
    """

    name = "unpack"
    keep: tuple[str, ...] = ()

    def run(self, graph: Graph) -> Graph:
        """Decode every stored weight that is not to stay."""
        return rewrite(graph, (self.decode_table, self.decode_weight))

    def decode_weight(self, node: Node) -> Node | Decline | None:
        """bitmask(constants), codebook(constants) -> constant"""
        if not self._wanted(node):
            return None
        array = values(node)
        if array is None:
            return Decline("its operands are not constants")
        return constant(Weight(np.ascontiguousarray(array), place(node)), source=node.source)

    def decode_table(self, node: Node) -> Node | None:
        """codebook(embedding(indices, at), values) -> embedding(codebook(indices, values), at)"""
        if not self._wanted(node):
            return None
        match node.inputs[0]:
            case Node("embedding", (Node("constant"), at)) as rows:
                parts = tuple(_table(part, at) for part in node.inputs)
                if None in parts:
                    return None
                table = make(
                    node.op, tuple(p for p in parts if p is not None), node.source, **node.attributes
                )
                return make("embedding", (table, at), node.source, **rows.attributes)
        return None

    def _wanted(self, node: Node) -> bool:
        return OPS[node.op].stored and node.op not in self.keep


def _table(part: Node, at: Node) -> Node | None:
    """The constant that a part is, or whose rows `at` it is."""
    match part:
        case Node("constant"):
            return part
        case Node("embedding", (Node("constant") as whole, index)) if index is at:
            return whole
    return None
