"""What CPUs have kernels for: op -> lowering, tested complete."""

from __future__ import annotations

from llmc.targets.cpu.attention import attention, ragged_attention
from llmc.targets.cpu.conv import conv
from llmc.targets.cpu.elementwise import (
    elementwise,
    filling,
    joining,
    movement,
    rotary,
    scattering,
    selection,
)
from llmc.targets.cpu.products import (
    bf16,
    cell,
    decoded,
    grouped,
    int16_blocks,
    linear,
    matmul,
    n_of_m,
    qlinear,
    sparse,
    sparse_int8,
    split_rows,
)
from llmc.targets.cpu.rows import norm, order, quantised, ragged, reduction, scan, softmax
from llmc.targets.cpu.storage import bfloat16, bitmask, blockwise, codebook
from llmc.targets.lowering import Lowerings, layered

LOWERINGS: Lowerings = layered(
    elementwise.LOWERINGS,
    movement.LOWERINGS,
    joining.LOWERINGS,
    selection.LOWERINGS,
    scattering.LOWERINGS,
    filling.LOWERINGS,
    rotary.LOWERINGS,
    reduction.LOWERINGS,
    softmax.LOWERINGS,
    scan.LOWERINGS,
    order.LOWERINGS,
    sparse.LOWERINGS,  # declines weights without blocks
    n_of_m.LOWERINGS,  # declines weights without N of M
    decoded.LOWERINGS,  # declines plain weights
    linear.LOWERINGS,
    bitmask.LOWERINGS,
    bfloat16.LOWERINGS,
    blockwise.LOWERINGS,
    codebook.LOWERINGS,
    cell.LOWERINGS,
    matmul.LOWERINGS,
    grouped.LOWERINGS,
    attention.LOWERINGS,
    norm.LOWERINGS,
    conv.LOWERINGS,
    quantised.LOWERINGS,
    bf16.LOWERINGS,
    sparse_int8.LOWERINGS,  # declines weights of few lines of zeros
    qlinear.LOWERINGS,
    int16_blocks.LOWERINGS,
    split_rows.LOWERINGS,
    ragged.LOWERINGS,
    ragged_attention.LOWERINGS,
)
