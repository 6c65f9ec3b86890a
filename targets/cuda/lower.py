"""What NVIDIA GPUs have kernels for: op -> lowering."""

from __future__ import annotations

from llmc.compiler.ops.recurrent import CELLS
from llmc.targets.cuda import (
    attention,
    conv,
    elementwise,
    grouped,
    movement,
    norm,
    product,
    quantised,
    rows,
    selection,
)
from llmc.targets.lowering import Lowerings, layered

LOWERINGS: Lowerings = layered(
    elementwise.LOWERINGS,
    movement.LOWERINGS,
    selection.LOWERINGS,
    rows.LOWERINGS,
    norm.LOWERINGS,
    product.LOWERINGS,
    grouped.LOWERINGS,
    attention.LOWERINGS,
    conv.LOWERINGS,
    quantised.LOWERINGS,
)

# Compressed weights are gone after the pass `unpack`, cells of recurrent networks after `expand-cells`; `ragged` and
# `split` are for CPUs.
_RAGGED = frozenset({"pack_index", "pack_offsets", "pack_places", "unpack_rows", "ragged_mha"})
_PARTS = frozenset({"split_rows", "split_linear"})
_IMAGES = frozenset({"qconv2d"})  # of images with channels last, as CPUs like them
MISSING = _RAGGED | _PARTS | _IMAGES | CELLS
