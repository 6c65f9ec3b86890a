"""Products of float32 in parts of 8 bits: the Ozaki scheme, for processors that multiply bytes much faster than floats.

A row x is written as fixed point of 24 bits below its largest magnitude: x = s (h + m / 2^8 + l / 2^16), with h, m and
l integers in -128..127. A column of weights is written so too, and of the nine products of parts the six

    (h h) + (h m + m h) / 2^8 + (h l + m m + l h) / 2^16

are summed, each bracket exactly in int32; what is left out is below 2^-22 of the largest product. So errors are those
of a float32 sum, relative to the largest values of row and column. K. Ozaki et al., "Error-free transformations of
matrix multiplication by using fast routines of matrix multiplication", Numerical Algorithms 59, 2012; by integers as
in H. Ootomo, K. Ozaki and R. Yokota, "DGEMM on integer matrix multiplication unit", IJHPCA 38, 2024.

A split row is a packed row (`rows.py`) of `3 * part_size(k)` values: the h of all, then the m, then the l. Split
weights lie the other way, l, m, h: each bracket is then one product of a beginning of the row with an end of the
column.
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
from llmc.compiler.ops.traits import first_input
from llmc.errors import LlmcError

PARTS = 3
UNIT = 65536  # of the last part in the first
LIMIT = 127 * UNIT + 127 * 256 + 127  # the largest value that three parts hold
TOP = LIMIT / UNIT  # exact in f32
TINY = 2.0**-100  # a smaller scale has no finite reciprocal to speak of: such rows count as zero
LONGEST = 1 << 14  # 255 * 128 * 3 * LONGEST still fits an int32
_DEPTH = 64  # bytes of a tile's row


def part_size(k: int) -> int:
    """Bytes of one part of a row of k values."""
    return -(-k // _DEPTH) * _DEPTH


def brackets(size: int) -> tuple[tuple[int, int], ...]:
    """What is summed together of parts of `size` bytes: (where in the split column it begins, how many bytes)."""
    return tuple(((PARTS - 1 - i) * size, (i + 1) * size) for i in range(PARTS))


def split(x: Array, scale: Array) -> tuple[Array, Array, Array]:
    """f32 or f64 `[..., k]` and `[..., 1]` -> the parts h, m, l of x / scale, i8 `[..., k]`."""
    with np.errstate(all="ignore"):
        fixed = x * (x.dtype.type(UNIT) / scale.astype(x.dtype))
        np.fmin(fixed, LIMIT, out=fixed)  # NaN becomes LIMIT, as in the kernels
        np.rint(np.maximum(fixed, -LIMIT, out=fixed), out=fixed)
    whole = fixed.astype("<i4", order="C") + 0x808080  # the parts + 128
    low_first = whole.view(np.uint8).reshape(*fixed.shape, 4)
    high, middle, low = ((low_first[..., at] ^ np.uint8(128)).view(np.int8) for at in (2, 1, 0))
    return high, middle, low


def split_scales(x: Array) -> Array:
    """f32 `[..., k]` -> `[..., 1]`: the largest magnitude / TOP, 1 for a row of zeros."""
    return row_scales(x, TOP, TINY)


def split_weights(w: Array) -> tuple[Array, Array]:
    """f32 `[n, k]`, finite -> i8 `[n, 3 part_size(k)]` and f32 `[n]`."""
    scale = split_scales(w)
    return side_by_side(split(w.astype(np.float64), scale)[::-1]), scale.reshape(-1)


def side_by_side(parts: tuple[Array, ...]) -> Array:
    """i8 `[..., k]` each -> `[..., len(parts) * part_size(k)]`, what is missing zero."""
    k = parts[0].shape[-1]
    beyond = [(0, 0)] * (parts[0].ndim - 1) + [(0, part_size(k) - k)]
    return np.concatenate([np.pad(part, beyond) for part in parts], -1)


def _split_rows_reference(x: Array) -> Array:
    scale = split_scales(x)
    q = side_by_side(split(x, scale))
    return pack_rows(q, scale, line_stride(q.shape[-1]))


@op("split_rows", _split_rows_reference, traits={"first_axis": first_input})
def _split_rows(x: TensorType) -> TensorType:
    want_dtype(x, F32)
    if not x.rank or not isinstance(x.shape[-1], int):
        raise LlmcError("the last axis must have a fixed size")
    return TensorType("u8", (*x.shape[:-1], line_stride(PARTS * part_size(x.shape[-1]))))


_SPLIT_LINEAR = {"accuracy": "close", "first_axis": product_rows}


def _split_linear_reference(
    rows: Array, w: Array, w_scale: Array, *extras: Array, epilogue: tuple[str, ...]
) -> Array:
    q, x_scale = unpack_rows(rows, w.shape[1])
    a, b = q.astype(np.float64), w.T.astype(np.float64)
    # float64 holds the integer sums exactly; float32 rounds them once, as the conversion of an int32 does
    first, second, third = (
        (a[..., :count] @ b[start:]).astype(np.float32) for start, count in brackets(w.shape[1] // PARTS)
    )
    total = fma32(third, np.float32(2.0**-16), fma32(second, np.float32(2.0**-8), first))
    return scaled(total, x_scale * w_scale, extras, epilogue)


@op("split_linear", _split_linear_reference, traits=_SPLIT_LINEAR, epilogue=())
def _split_linear(
    rows: TensorType, w: TensorType, w_scale: TensorType, *extras: TensorType, epilogue: Any
) -> TensorType:
    """Bit for bit as the kernels but for activations."""
    want_dtype(w, {"i8"}, "the weight")
    want_rank(w, 2, what="the weight")
    n, size = w.shape
    if not isinstance(size, int) or size % (PARTS * _DEPTH) or not 0 < size <= PARTS * LONGEST:
        raise LlmcError(
            f"the weight has {shape_text((size,))} columns: not {PARTS} parts of a multiple of {_DEPTH}, "
            f"up to {LONGEST}"
        )
    want_dtype(rows, {"u8"}, "the split row")
    if not rows.rank or not same_dim(rows.shape[-1], line_stride(size)):
        raise LlmcError(
            f"rows of {shape_text(rows.shape[-1:])} bytes do not hold {size} parts",
            hint=f"{line_stride(size)} do",
        )
    want_dtype(w_scale, F32, "the weight's scale")
    want_shape(w_scale, (n,), "the weight's scale")
    result = TensorType("f32", (*rows.shape[:-1], n))
    check_epilogue(result, extras, epilogue)
    return result
