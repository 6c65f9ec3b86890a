"""Whether the bytes of a run can be counted: a program's sizes are int64."""

from __future__ import annotations

import math

from llmc.compiler.dims import upper_bound
from llmc.compiler.graph import Graph, results_of
from llmc.compiler.module import Module
from llmc.errors import LlmcError

MOST = 2**62
_ITEM = 8  # bytes of the widest dtype


def want_countable(module: Module) -> None:
    """Refuse bounds at which the tensors of a run would have more bytes than int64 counts.

    Raises:
        LlmcError: the largest run of a function has too many.
    """
    for graph in module.functions.values():
        if _elements(graph) > MOST // _ITEM:
            raise LlmcError(
                "the largest run has more bytes than can be counted",
                at=", ".join(f"{name} up to {bound.high}" for name, bound in graph.dims.items()),
                hint="give a smaller --max-batch or --max-seq",
            )


def _elements(graph: Graph) -> int:
    """Of all values of the largest run."""
    shapes = (kind.shape for node in graph.nodes for kind in results_of(node.type))
    return sum(math.prod(upper_bound(dim, graph.dims) for dim in shape) for shape in shapes)
