"""`blank`: outputs by token are zeros where the mask says so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from llmc.compiler.graph import DTYPES, Graph, Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.ragged import MASKS
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.passes.match import reshaped


@dataclass(frozen=True)
class Blank(Pass):
    """Say in the graph that what models compute at padding is of no use, so that `ragged` need not compute it.

    Args:
        mask: name of the input `[batch, seq]` that is 0 at padding.
    """

    name = "blank"
    keeps: ClassVar[Keeps] = LOSSY  # at padding; every other value stays bit for bit
    mask: str = "attention_mask"

    def enters(self) -> bool:
        """Padding is a matter of a graph's inputs."""
        return False

    def run(self, graph: Graph) -> Graph:
        """outputs[batch, seq, ...] -> where(mask, outputs, 0)"""
        masks = [node for node in graph.inputs if node.attributes["name"] == self.mask]
        if not masks or masks[0].type.rank != 2 or masks[0].dtype not in MASKS:
            return graph
        (mask,) = masks
        outputs = {
            name: _blanked(node, mask) if node.shape[:2] == mask.shape and node is not mask else node
            for name, node in graph.outputs.items()
        }
        return graph if outputs == dict(graph.outputs) else replace(graph, outputs=outputs)


def _blanked(node: Node, mask: Node) -> Node:
    """node -> where(cast(mask), node, 0)"""
    tokens = mask if mask.dtype == "bool" else make("cast", (mask,), dtype="bool")
    tokens = reshaped(tokens, (*mask.shape, *(1,) * (node.type.rank - 2)))
    zero = constant(Weight(np.zeros((), DTYPES[node.dtype])), source=node.source)
    return make("where", (tokens, node, zero), node.source)
