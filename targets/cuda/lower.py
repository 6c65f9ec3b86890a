"""What NVIDIA GPUs have kernels for: op -> lowering."""

from __future__ import annotations

from llmc.compiler.calls import Call
from llmc.compiler.graph import Node
from llmc.compiler.ops.recurrent import CELLS
from llmc.errors import LlmcError
from llmc.targets.cuda import (
    attention,
    conv,
    elementwise,
    grouped,
    int8_blocks,
    movement,
    norm,
    product,
    quantised,
    rotary,
    rows,
    selection,
    stored,
)
from llmc.targets.lowering import Lowering, Lowerings, layered


def _without_doubles(lowering: Lowering) -> Lowering:
    """`lowering`, which refuses nodes that read or give f64."""

    def lower(node: Node) -> Call | None:
        if "f64" in (node.dtype, *(i.dtype for i in node.inputs)):
            raise LlmcError(f"{node.op}: GPUs have no kernels of f64", hint="compile for a CPU")
        return lowering(node)

    return lower


_ALL: Lowerings = layered(
    elementwise.LOWERINGS,
    movement.LOWERINGS,
    selection.LOWERINGS,
    rows.LOWERINGS,
    rotary.LOWERINGS,
    norm.LOWERINGS,
    stored.LOWERINGS,  # declines plain weights
    product.LOWERINGS,
    grouped.LOWERINGS,
    attention.LOWERINGS,
    conv.LOWERINGS,
    quantised.LOWERINGS,
    int8_blocks.LOWERINGS,
)
LOWERINGS: Lowerings = {op: _without_doubles(lowering) for op, lowering in _ALL.items()}

# Other compressed weights are gone after the pass `unpack`, cells of recurrent networks after `expand-cells`; `ragged`,
# `split`, `int16` and `bf16-products` are for CPUs.
_RAGGED = frozenset({"pack_index", "pack_offsets", "pack_places", "unpack_rows", "ragged_mha"})
_PARTS = frozenset({"split_rows", "split_linear", "int16_rows", "int16_linear", "int16_blockwise"})
_HALVES = frozenset({"bf16_rows", "bf16_linear"})
_IMAGES = frozenset({"qconv2d", "channel_rows"})  # of images with channels last, as CPUs like them
MISSING = _RAGGED | _PARTS | _HALVES | _IMAGES | CELLS
