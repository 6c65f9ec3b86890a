"""`unpack`: compressed weights as plain ones, for targets whose kernels do not decode."""

from __future__ import annotations

import numpy as np

from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.storage import DECODERS
from llmc.compiler.rewrite import Decline, RewritePass
from llmc.passes.compress.weights import place, values


def decode_weight(node: Node) -> Node | Decline | None:
    """bitmask(constants), codebook(constants) -> constant"""
    if node.op not in DECODERS:
        return None
    array = values(node)
    if array is None:
        return Decline("its operands are not constants")
    return constant(Weight(np.ascontiguousarray(array), place(node)), source=node.source)


def decode_table(node: Node) -> Node | None:
    """codebook(embedding(indices, at), values) -> embedding(codebook(indices, values), at)"""
    match node:
        case Node(
            "codebook",
            (Node("embedding", (Node("constant") as packed, at)) as rows, Node("constant") as book),
        ):
            table = make("codebook", (packed, book), node.source, **node.attributes)
            return make("embedding", (table, at), node.source, **rows.attributes)
    return None


class Unpack(RewritePass):
    """Store each compressed weight as the one it stands for: the same values at full size."""

    name = "unpack"
    rules = (decode_table, decode_weight)
