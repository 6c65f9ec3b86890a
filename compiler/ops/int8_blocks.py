"""Products of weights in blocks with activations on int8 that have a scale for each block too.

A row of k values is k signed bytes, 127 at most, up to the end of a cache line; then 1.0 where a packed row has its
scale (`rows.py`), so that products end as others do; and on the next line the sum of each block's levels, as i32, and
behind these the scale of each block. Weights are those of `blockwise`, unsigned around a zero z:
sum q (l - z) = sum q l - z sum q. Sums of blocks are exact, below 2^24, so as floats they are too.

Both scales of a block are multiplied first: total + sum * (scale of the weights * scale of the row). llama.cpp has the
scheme as Q4_0 by Q8_0, in blocks of 32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.graph import TensorType
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.float_steps import fma32
from llmc.compiler.ops.int16 import LINE, want_blocks, whole_weights
from llmc.compiler.ops.linear import product_rows
from llmc.compiler.ops.quantise import LEVELS, row_scales
from llmc.compiler.ops.quantise import scaled as with_epilogue
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rows import ZERO, line_stride, pack_rows
from llmc.compiler.ops.rules import Array, want_dtype, want_flags, want_int
from llmc.compiler.ops.split import part_size
from llmc.compiler.ops.traits import Rows
from llmc.errors import LlmcError


def sums_offset(k: int) -> int:
    """Where the sums of blocks of a row of k values lie, in bytes; the scales follow them."""
    return line_stride(part_size(k))


def row_bytes(k: int, block: int) -> int:
    """Bytes of a row of k values."""
    return sums_offset(k) + -(-8 * -(-k // block) // LINE) * LINE


def _blocks(x: Array, block: int) -> list[Array]:
    return [x[..., at : at + block] for at in range(0, x.shape[-1], block)]


def _int8_rows_reference(x: Array, block: int) -> Array:
    scales, levels = [], []
    for part in _blocks(x, block):
        scale = row_scales(part)
        with np.errstate(all="ignore"):
            level = np.fmin(
                part * (np.float32(1) / scale), np.float32(LEVELS)
            )  # NaN becomes 127, as in the kernels
        levels.append(np.rint(np.maximum(level, np.float32(-LEVELS))).astype(np.int8))
        scales.append(scale)
    k = x.shape[-1]
    beyond = [(0, 0)] * (x.ndim - 1) + [(0, part_size(k) - k)]
    one = np.ones((*x.shape[:-1], 1), np.float32)
    rows = pack_rows(np.pad(np.concatenate(levels, -1), beyond), one, row_bytes(k, block))
    rows[..., : part_size(k)] ^= ZERO  # signed
    sums = np.stack([level.sum(-1, dtype=np.int32) for level in levels], -1).astype("<i4")
    tail = np.concatenate([sums.view(np.uint8), np.concatenate(scales, -1).astype("<f4").view(np.uint8)], -1)
    rows[..., sums_offset(k) : sums_offset(k) + tail.shape[-1]] = tail
    return rows


@op("int8_rows", _int8_rows_reference, traits={"rows": Rows((0,))}, block=REQUIRED)
def _int8_rows(x: TensorType, block: Any) -> TensorType:
    want_dtype(x, F32)
    want_int(block, "block", 1)
    if not x.rank or not isinstance(x.shape[-1], int):
        raise LlmcError("the last axis must have a fixed size")
    return TensorType("u8", (*x.shape[:-1], row_bytes(x.shape[-1], block)))


def levels_of(rows: Array, k: int, block: int) -> tuple[Array, Array]:
    """Levels f64 `[..., k]` and scales f32 `[..., blocks]` of rows."""
    count = -(-k // block)
    at = sums_offset(k) + 4 * count
    scales = np.ascontiguousarray(rows[..., at : at + 4 * count]).view("<f4").astype(np.float32)
    return np.ascontiguousarray(rows[..., :k]).view(np.int8).astype(np.float64), scales


def _int8_blockwise_reference(
    rows: Array,
    levels: Array,
    scales: Array,
    *extras: Array,
    columns: int,
    bits: int,
    block: int,
    has_zeros: bool,
    epilogue: tuple[str, ...],
) -> Array:
    level, x_scales = levels_of(rows, columns, block)
    whole, extras = whole_weights(levels, extras, columns, bits, block, has_zeros)
    w = whole.astype(np.float64)
    total = np.zeros((*level.shape[:-1], len(w)), np.float32)
    for i, (part, column) in enumerate(zip(_blocks(level, block), _blocks(w, block), strict=True)):
        with np.errstate(all="ignore"):
            scale = x_scales[..., i : i + 1] * scales[:, i].astype(np.float32)
        total = fma32((part @ column.T).astype(np.float32), scale, total)
    return with_epilogue(total, np.ones(1, np.float32), extras, epilogue)


@op(
    "int8_blockwise",
    _int8_blockwise_reference,
    traits={"accuracy": "close", "product": True, "rows": Rows(product_rows)},
    columns=REQUIRED,
    bits=REQUIRED,
    block=REQUIRED,
    has_zeros=False,
    epilogue=(),
)
def _int8_blockwise(
    rows: TensorType,
    levels: TensorType,
    scales: TensorType,
    *extras: TensorType,
    columns: Any,
    bits: Any,
    block: Any,
    has_zeros: Any,
    epilogue: Any,
) -> TensorType:
    """Blocks one after the other, each an exact sum times both scales."""
    want_int(columns, "columns", 1)
    want_int(block, "block", 1)
    want_flags(has_zeros=has_zeros)
    given = (rows, levels, scales, *extras)
    return want_blocks(given, (8, row_bytes(columns, block)), columns, bits, block, has_zeros, epilogue)
