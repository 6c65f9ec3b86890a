"""Graph to GPU kernel calls: the table of what the target supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmc.compiler.calls import Call, Region
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops.storage import DECODERS
from llmc.errors import LlmcError
from llmc.targets.cpu import lower as on_cpu
from llmc.targets.cuda import attention, elementwise, movement, norm, product, quantised, rows

LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    **elementwise.LOWERINGS,
    **movement.LOWERINGS,
    **rows.LOWERINGS,
    **norm.LOWERINGS,
    **product.LOWERINGS,
    **attention.LOWERINGS,
    **quantised.LOWERINGS,
}

# Ops of image models have no kernels yet; compressed weights are gone after the pass `unpack`, cells of recurrent
# networks after `expand_cells`; `ragged` and `split` are for CPUs.
_RAGGED = frozenset({"pack_index", "pack_offsets", "pack_places", "unpack_rows", "ragged_mha"})
_PARTS = frozenset({"split_rows", "split_linear"})
_CELLS = frozenset({"lstm_cell", "gru_cell"})
MISSING = frozenset({"conv2d", "max_pool2d", "avg_pool2d"}) | DECODERS | _RAGGED | _PARTS | _CELLS


def lower(graph: Graph) -> tuple[Call | Region, ...]:
    """The calls that compute `graph` on a GPU, in an order that respects its edges.

    Raises:
        LlmcError: an op has no kernel for its dtypes; every such node is listed. Or there is a branch: its condition
            is in the GPU's memory, where the program cannot read it while it hands out launches.
    """
    branch = next((node for node in graph.everywhere() if node.op == "branch"), None)
    if branch is not None:
        raise LlmcError(
            "a branch cannot run on a GPU yet: its condition is computed there, the program decides on the host",
            at=str(branch.source),
            hint="compute both sides and choose by where",
        )
    return on_cpu.lower(graph, LOWERINGS)
