"""`fuse`: nodes that one kernel can do together become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Keeps, Pass, close
from llmc.compiler.rewrite import rewrite
from llmc.errors import LlmcError
from llmc.passes.fuse import chains, convolutions, heads, norms, products, rms_norm
from llmc.passes.simplify import shapes


@dataclass(frozen=True)
class Fuse(Pass):
    """Fuse attention, norms, epilogues of products, embeddings and sums with their norm, element-wise chains.

    Rounding changes where a scale moves from a factor into the attention. Queries whose keys are all masked
    out give zeros, whatever they gave before.

    Args:
        chains: whether to fuse element-wise ops among themselves.
        max_steps: most ops in one chain.
        max_inputs: most values one chain reads.
    """

    name = "fuse"
    keeps: ClassVar[Keeps] = close(1e-5)
    chains: bool = True
    max_steps: int = 16
    max_inputs: int = 8

    def __post_init__(self) -> None:
        if self.max_steps < 2 or self.max_inputs < 1:
            raise LlmcError(
                "fuse: a chain takes at least 2 steps and 1 input",
                found=f"{self.max_steps}, {self.max_inputs}",
            )

    def run(self, graph: Graph) -> Graph:
        """Patterns first, largest first; what is left of the element-wise ops goes into chains."""
        graph = rewrite(graph, (*shapes.RULES, *norms.PARTS, *heads.RULES))
        graph = rewrite(graph, (*products.RULES, *norms.RULES, *rms_norm.RULES, *convolutions.RULES))
        if not self.chains:
            return graph
        graph = rewrite(graph, (shapes.view_early, shapes.reshape_of_reshape, shapes.drop_identity))
        return chains.fuse_chains(graph, self.max_steps, self.max_inputs)
