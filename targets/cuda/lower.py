"""Graph to GPU kernel calls: the table of what the target supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmc.compiler.calls import Call
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops.storage import DECODERS
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

# Ops of image models have no kernels yet; compressed weights are gone after the pass `unpack`; `ragged` and
# `split` are for CPUs.
_RAGGED = frozenset({"pack_index", "pack_offsets", "pack_places", "unpack_rows", "ragged_mha"})
_PARTS = frozenset({"split_rows", "split_linear"})
MISSING = frozenset({"conv2d", "max_pool2d", "avg_pool2d"}) | DECODERS | _RAGGED | _PARTS


def lower(graph: Graph) -> tuple[Call, ...]:
    """The calls that compute `graph` on a GPU, in an order that respects its edges.

    Raises:
        LlmcError: an op has no kernel for its dtypes; every such node is listed.
    """
    return on_cpu.lower(graph, LOWERINGS)
