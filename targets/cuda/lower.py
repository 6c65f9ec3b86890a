"""What NVIDIA GPUs have kernels for: op -> lowering."""

from __future__ import annotations

from llmc.targets.cuda import attention, elementwise, movement, norm, product, quantised, rows
from llmc.targets.lowering import Lowerings, layered

LOWERINGS: Lowerings = layered(
    elementwise.LOWERINGS,
    movement.LOWERINGS,
    rows.LOWERINGS,
    norm.LOWERINGS,
    product.LOWERINGS,
    attention.LOWERINGS,
    quantised.LOWERINGS,
)

# Ops of image models have no kernels yet; compressed weights are gone after the pass `unpack`, cells of recurrent
# networks after `expand_cells`; `ragged` and `split` are for CPUs.
_RAGGED = frozenset({"pack_index", "pack_offsets", "pack_places", "unpack_rows", "ragged_mha"})
_PARTS = frozenset({"split_rows", "split_linear"})
_CELLS = frozenset({"lstm_cell", "gru_cell"})
MISSING = frozenset({"conv2d", "max_pool2d", "avg_pool2d"}) | _RAGGED | _PARTS | _CELLS
