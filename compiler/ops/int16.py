"""Products of weights on int8 with activations on int16, exact: what is sensitive of a model on int8.

A row is q * scale, q an integer of magnitude up to 127 * 256 + 127, so that q = 256 h + m with h and m in -128..127:
two rows of bytes, which the instructions that multiply bytes take one after the other. Sums are exact. As floats
they are in two steps: 256 * float(total >> 8) + float(total & 255), rounded at most twice.

A row lies packed (`rows.py`) as `2 * part_size(k)` values, the h of all, then the m, as split rows do (`split.py`).
Where weights have a scale for each block of a row (`blockwise`), it is weights that are unsigned, around a zero z, half
of all levels or what the block says, and so h and m lie as signed bytes; the sum of each block's levels follows the
scale, on the next cache line, as i32, since sum q (l - z) = sum q l - z sum q.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", have
the scheme with 8 bits; TensorFlow Lite calls this one 16x8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.graph import TensorType
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.float_steps import fma32
from llmc.compiler.ops.linear import check_epilogue, product_rows
from llmc.compiler.ops.quantise import row_scales, scaled
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rows import ZERO, line_stride, pack_rows, unpack_rows
from llmc.compiler.ops.rules import (
    Array,
    same_dim,
    shape_text,
    want_dtype,
    want_flags,
    want_int,
    want_rank,
    want_shape,
)
from llmc.compiler.ops.split import part_size, side_by_side
from llmc.compiler.ops.storage import packed_bytes, unpack_indices, want_zeros
from llmc.compiler.ops.traits import Rows
from llmc.errors import LlmcError

PARTS = 2
LIMIT = 127 * 256 + 127  # the largest level
LINE = 64  # bytes of a cache line
LONGEST = 1 << 16  # 255 * 128 * LONGEST still fits an int32


def row_bytes(k: int, block: int = 0) -> int:
    """Bytes of a row of k values, with sums of blocks if a block is given."""
    sums = 4 * -(-k // block) if block else 0
    return line_stride(PARTS * part_size(k)) + -(-sums // LINE) * LINE


def sums_offset(k: int) -> int:
    """Where the sums of blocks of a row of k values lie, in bytes."""
    return line_stride(PARTS * part_size(k))


def longest_block(bits: int) -> int:
    """Values of the longest block whose total fits an int32, as the kernels make it."""
    return 256 if bits == 8 else 4096


def fits(columns: int, bits: int, block: int) -> bool:
    """Whether there are products with weights in such blocks: whole vectors of 16, or a whole row."""
    return block <= longest_block(bits) and (block % 16 == 0 or block == columns)


def _int16_rows_reference(x: Array, block: int) -> Array:
    scale = row_scales(x, LIMIT)
    with np.errstate(all="ignore"):
        level = np.fmin(
            x * (np.float32(1) / scale), np.float32(LIMIT)
        )  # NaN becomes LIMIT, as in the kernels
    whole = np.rint(np.maximum(level, np.float32(-LIMIT))).astype(np.int32)
    high = (whole + 128) >> 8
    parts = (part.astype(np.int8) for part in (high, whole - 256 * high))
    k = x.shape[-1]
    rows = pack_rows(side_by_side(tuple(parts)), scale, row_bytes(k, block))
    if block:
        rows[..., : PARTS * part_size(k)] ^= ZERO  # signed
        sums = np.add.reduceat(whole, range(0, k, block), axis=-1).astype("<i4")
        at = sums_offset(k)
        rows[..., at : at + 4 * sums.shape[-1]] = sums.view(np.uint8)
    return rows


@op("int16_rows", _int16_rows_reference, traits={"rows": Rows((0,))}, block=0)
def _int16_rows(x: TensorType, block: Any) -> TensorType:
    want_dtype(x, F32)
    want_int(block, "block", 0)
    if not x.rank or not isinstance(x.shape[-1], int):
        raise LlmcError("the last axis must have a fixed size")
    return TensorType("u8", (*x.shape[:-1], row_bytes(x.shape[-1], block)))


def _int16_linear_reference(
    rows: Array, w: Array, w_scale: Array, *extras: Array, epilogue: tuple[str, ...]
) -> Array:
    level, x_scale = levels_of(rows, w.shape[1])
    return scaled(_total32(level, signed_levels(w)), x_scale * w_scale, extras, epilogue)


def signed_levels(w: Array) -> Array:
    """Levels of weights as i8; u8 are around 128, as `blockwise` has them."""
    return w if w.dtype == np.int8 else (w ^ np.uint8(ZERO)).view(np.int8)


def levels_of(rows: Array, k: int, signed: bool = False) -> tuple[Array, Array]:
    """Levels as f64 `[..., k]`, and the scales f32 `[..., 1]` of rows, whose bytes are `signed` or have 128 on top."""
    part = part_size(k)
    parts, scale = unpack_rows(rows, PARTS * part)
    if signed:
        parts = parts ^ np.int8(-ZERO)
    return 256.0 * parts[..., :k] + parts[..., part : part + k], scale


def _total32(level: Array, w: Array) -> Array:
    """Exact sums of f64 `[..., k]` times whole numbers `[n, k]`, as floats."""
    total = (level @ w.T.astype(np.float64)).astype(np.int64)  # below 2^53: exact in float64
    high, low = (value.astype(np.float32) for value in (total >> 8, total & 255))
    return fma32(high, np.float32(256), low)


_INT16_LINEAR = {"accuracy": "close", "product": True, "rows": Rows(product_rows)}


@op("int16_linear", _int16_linear_reference, traits=_INT16_LINEAR, epilogue=())
def _int16_linear(
    rows: TensorType, w: TensorType, w_scale: TensorType, *extras: TensorType, epilogue: Any
) -> TensorType:
    """Bit for bit as the kernels but for activations."""
    want_dtype(w, {"i8", "u8"}, "the weight")
    want_rank(w, 2, what="the weight")
    n, k = w.shape
    if not isinstance(k, int) or not 0 < k < LONGEST:
        raise LlmcError(f"the weight has {shape_text((k,))} columns: int32 sums hold up to {LONGEST}")
    _want_rows(rows, k, row_bytes(k), 16)
    want_dtype(w_scale, F32, "the weight's scale")
    want_shape(w_scale, (n,), "the weight's scale")
    result = TensorType("f32", (*rows.shape[:-1], n))
    check_epilogue(result, extras, epilogue)
    return result


def _want_rows(rows: TensorType, k: int, size: int, bits: int) -> None:
    want_dtype(rows, {"u8"}, "the row")
    if not rows.rank or not same_dim(rows.shape[-1], size):
        raise LlmcError(
            f"rows of {shape_text(rows.shape[-1:])} bytes do not hold {k} values of {bits} bits",
            hint=f"{size} do",
        )


def whole_weights(
    levels: Array, others: tuple[Array, ...], columns: int, bits: int, block: int, has_zeros: bool
) -> tuple[Array, tuple[Array, ...]]:
    """Levels i64 `[n, columns]` less what each block has for 0, and what the epilogue adds."""
    whole = unpack_indices(levels, columns, bits).astype(np.int64)
    if not has_zeros:
        return whole - (1 << (bits - 1)), others
    zeros = unpack_indices(others[0], -(-columns // block), bits).astype(np.int64)
    return whole - np.repeat(zeros, block, axis=1)[:, :columns], others[1:]


def _int16_blockwise_reference(
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
    level, x_scale = levels_of(rows, columns, signed=True)
    w, extras = whole_weights(levels, extras, columns, bits, block, has_zeros)
    total = np.zeros((*level.shape[:-1], len(w)), np.float32)
    for i, at in enumerate(range(0, columns, block)):
        part = _total32(level[..., at : at + block], w[:, at : at + block])
        total = fma32(part, scales[:, i].astype(np.float32), total)
    return scaled(total, x_scale, extras, epilogue)


@op(
    "int16_blockwise",
    _int16_blockwise_reference,
    traits=_INT16_LINEAR,
    columns=REQUIRED,
    bits=REQUIRED,
    block=REQUIRED,
    has_zeros=False,
    epilogue=(),
)
def _int16_blockwise(
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
    """With weights as `blockwise` has them: blocks one after the other, each an exact sum times its scale. With
    `has_zeros` their zero points come before the extras.
    """
    want_int(columns, "columns", 1)
    want_int(block, "block", 1)
    want_flags(has_zeros=has_zeros)
    given = (rows, levels, scales, *extras)
    return want_blocks(given, (16, row_bytes(columns, block)), columns, bits, block, has_zeros, epilogue)


def want_blocks(
    given: tuple[TensorType, ...],
    of_row: tuple[int, int],
    columns: int,
    bits: Any,
    block: int,
    has_zeros: bool,
    epilogue: Any,
) -> TensorType:
    """The type of a product with weights in blocks.

    Args:
        given: rows, levels, scales, zero points if it `has_zeros`, and what the epilogue adds.
        of_row: bits of its values, and its bytes.

    Raises:
        LlmcError: they do not fit together.
    """
    rows, levels, scales, *extras = given
    if bits not in (4, 8) or isinstance(bits, bool):
        raise LlmcError(f"bits is {bits!r}, not 4 or 8")
    if not fits(columns, bits, block):
        raise LlmcError(
            f"there is no product with blocks of {block}",
            hint=f"a multiple of 16 up to {longest_block(bits)}, or a whole row of at most that",
        )
    want_dtype(levels, {"u8"}, "the levels")
    want_rank(levels, 2, what="the levels")
    want_shape(levels, (levels.shape[0], packed_bytes(columns, bits)), "the levels")
    want_dtype(scales, {"f32", "f16"}, "the scales")
    want_shape(scales, (levels.shape[0], -(-columns // block)), "the scales")
    if has_zeros:
        if not extras:
            raise LlmcError("has_zeros is true, but no zero points are given")
        want_zeros(extras.pop(0), scales, bits)
    _want_rows(rows, columns, of_row[1], of_row[0])
    result = TensorType("f32", (*rows.shape[:-1], levels.shape[0]))
    check_epilogue(result, tuple(extras), epilogue)
    return result
