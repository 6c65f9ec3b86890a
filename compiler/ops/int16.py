"""Products of weights on int8 with activations on int16, exact: what is sensitive of a model on int8.

A row is q * scale, q an integer of magnitude up to 127 * 256 + 127, so that q = 256 h + m with h and m in -128..127:
two rows of bytes, which the instructions that multiply bytes take one after the other. Sums are exact. As floats
they are in two steps that every processor can do: 256 * float(total >> 8) + float(total & 255), rounded at most twice.

A row lies packed (`rows.py`) as `2 * part_size(k)` values, the h of all, then the m, as split rows do (`split.py`).
Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", have
the scheme with 8 bits; TensorFlow Lite calls this one 16x8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.graph import TensorType
from llmc.compiler.ops.declare import op
from llmc.compiler.ops.float_steps import fma32
from llmc.compiler.ops.linear import check_epilogue, product_rows
from llmc.compiler.ops.quantise import row_scales, scaled
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rows import line_stride, pack_rows, unpack_rows
from llmc.compiler.ops.rules import Array, same_dim, shape_text, want_dtype, want_rank, want_shape
from llmc.compiler.ops.split import part_size, side_by_side
from llmc.compiler.ops.traits import Rows
from llmc.errors import LlmcError

PARTS = 2
LIMIT = 127 * 256 + 127  # the largest level
LONGEST = 1 << 16  # 255 * 128 * LONGEST still fits an int32


def row_bytes(k: int) -> int:
    """Bytes of a row of k values."""
    return line_stride(PARTS * part_size(k))


def _int16_rows_reference(x: Array) -> Array:
    scale = row_scales(x, LIMIT)
    with np.errstate(all="ignore"):
        level = np.fmin(
            x * (np.float32(1) / scale), np.float32(LIMIT)
        )  # NaN becomes LIMIT, as in the kernels
    whole = np.rint(np.maximum(level, np.float32(-LIMIT))).astype(np.int32)
    high = (whole + 128) >> 8
    parts = ((part).astype(np.int8) for part in (high, whole - 256 * high))
    return pack_rows(side_by_side(tuple(parts)), scale, row_bytes(x.shape[-1]))


@op("int16_rows", _int16_rows_reference, traits={"rows": Rows((0,))})
def _int16_rows(x: TensorType) -> TensorType:
    want_dtype(x, F32)
    if not x.rank or not isinstance(x.shape[-1], int):
        raise LlmcError("the last axis must have a fixed size")
    return TensorType("u8", (*x.shape[:-1], row_bytes(x.shape[-1])))


def _int16_linear_reference(
    rows: Array, w: Array, w_scale: Array, *extras: Array, epilogue: tuple[str, ...]
) -> Array:
    k = w.shape[1]
    part = part_size(k)
    parts, x_scale = unpack_rows(rows, PARTS * part)
    level = 256.0 * parts[..., :k] + parts[..., part : part + k]
    total = (level @ w.T.astype(np.float64)).astype(np.int64)  # below 2^53: exact in float64
    high, low = ((value).astype(np.float32) for value in (total >> 8, total & 255))
    return scaled(fma32(high, np.float32(256), low), x_scale * w_scale, extras, epilogue)


_INT16_LINEAR = {"accuracy": "close", "product": True, "rows": Rows(product_rows)}


@op("int16_linear", _int16_linear_reference, traits=_INT16_LINEAR, epilogue=())
def _int16_linear(
    rows: TensorType, w: TensorType, w_scale: TensorType, *extras: TensorType, epilogue: Any
) -> TensorType:
    """Bit for bit as the kernels but for activations."""
    want_dtype(w, {"i8"}, "the weight")
    want_rank(w, 2, what="the weight")
    n, k = w.shape
    if not isinstance(k, int) or not 0 < k < LONGEST:
        raise LlmcError(f"the weight has {shape_text((k,))} columns: int32 sums hold up to {LONGEST}")
    want_dtype(rows, {"u8"}, "the row")
    if not rows.rank or not same_dim(rows.shape[-1], row_bytes(k)):
        raise LlmcError(
            f"rows of {shape_text(rows.shape[-1:])} bytes do not hold {k} values of 16 bits",
            hint=f"{row_bytes(k)} do",
        )
    want_dtype(w_scale, F32, "the weight's scale")
    want_shape(w_scale, (n,), "the weight's scale")
    result = TensorType("f32", (*rows.shape[:-1], n))
    check_epilogue(result, extras, epilogue)
    return result
