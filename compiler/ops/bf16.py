"""Products of bfloat16 with sums in float32, in the order of Intel's tile unit, so that any CPU can have its bits.

A row of k values is k times 16 bits, the upper halves of float32, up to the end of a cache line, and one line of zeros
more where the lines are even, so that rows lie apart in every cache. A product goes over k in blocks of 32: one chain
of fused multiply-adds over the even ones of a block, one over the odd ones, both from 0; then total += even + odd.

Rounding is to the nearest, half to even; what is below 2^-50 in magnitude becomes 0. So products are multiples of
2^-114, sums of them too, and none is denormal: the tile unit takes denormals for 0. These are the steps of
TDPBF16PS in Intel's Software Developer's Manual, volume 2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmc.compiler.graph import TensorType
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.linear import check_epilogue, product_rows
from llmc.compiler.ops.quantise import scaled
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rules import Array, same_dim, shape_text, want_dtype, want_int, want_rank, want_shape
from llmc.compiler.ops.traits import Rows
from llmc.errors import LlmcError

BLOCK = 32  # values of k between two additions to the total
LINE = 64  # bytes of a cache line: of a block
LEAST = 2.0**-50  # the smallest magnitude that is kept
_SUMS = 1 << 14  # of the reference at a time
_LARGE = 2.0**126  # products below are no infinity in float32


def row_bytes(k: int) -> int:
    """Bytes of a row of k values: an odd number of lines."""
    return LINE * (-(-k // BLOCK) | 1)


def kept(halves: Array) -> Array:
    """u16 bfloat16, those that are too small as 0."""
    least = np.uint16((127 - 50) << 7)
    return np.where(halves & np.uint16(0x7FFF) < least, np.uint16(0), halves)


def rounded(x: Array) -> Array:
    """f32 -> u16: bfloat16 to the nearest, half to even; a NaN is 0x7FC0."""
    bits = np.ascontiguousarray(x, "<f4").view("<u4")
    with np.errstate(over="ignore"):
        upper = ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    with np.errstate(invalid="ignore"):
        small = np.abs(x) < np.float32(LEAST)
    return np.where(small, np.uint16(0), np.where(np.isnan(x), np.uint16(0x7FC0), upper))


def values(halves: Array, columns: int) -> Array:
    """u8 `[..., 2 columns or more]`, little-endian -> the f32 values of `columns` bfloat16."""
    upper = np.ascontiguousarray(halves[..., : 2 * columns]).view("<u2").astype("<u4") << 16
    return np.asarray(upper.view("<f4").astype(np.float32, copy=False))


def _bf16_rows_reference(x: Array) -> Array:
    rows = np.zeros((*x.shape[:-1], row_bytes(x.shape[-1])), np.uint8)
    rows[..., : 2 * x.shape[-1]] = rounded(x).astype("<u2").view(np.uint8)
    return rows


@op("bf16_rows", _bf16_rows_reference, traits={"rows": Rows((0,))})
def _bf16_rows(x: TensorType) -> TensorType:
    want_dtype(x, F32)
    if not x.rank or not isinstance(x.shape[-1], int):
        raise LlmcError("the last axis must have a fixed size")
    return TensorType("u8", (*x.shape[:-1], row_bytes(x.shape[-1])))


def _bf16_linear_reference(
    rows: Array, halves: Array, *extras: Array, columns: int, epilogue: tuple[str, ...]
) -> Array:
    upper = np.ascontiguousarray(halves).view("<u2")
    x, w = values(rows, columns), values(kept(upper).astype("<u2").view(np.uint8), columns)
    flat = x.reshape(math.prod(x.shape[:-1]), columns)
    total, each = np.empty((len(flat), len(w)), np.float32), max(1, _SUMS // max(1, len(w)))
    for at in range(0, len(flat), each):
        total[at : at + each] = sums(flat[at : at + each], w)
    return scaled(total.reshape(*x.shape[:-1], len(w)), np.ones(1, np.float32), extras, epilogue)


@np.errstate(all="ignore")
def sums(x: Array, w: Array) -> Array:
    """f32 `[m, k]` times `[n, k]` transposed, both of bfloat16's values, as the module says.

    A product has 16 digits and is exact in float32, unless it is too large. In float64 its sum with 24 others is far
    from the middle of two float32 where it is rounded, so that to round again to float32 is to round once.
    """
    most = np.abs(x).max(initial=0).astype(np.float64) * np.abs(w).max(initial=0)
    exact = np.float32 if most < _LARGE else np.float64
    total = np.zeros((len(x), len(w)), np.float32)
    missing = -x.shape[1] % BLOCK
    a, b = (np.ascontiguousarray(np.pad(v.astype(exact), ((0, 0), (0, missing))).T) for v in (x, w))
    products, chains = np.empty((2, *total.shape), exact), np.empty((2, *total.shape), np.float32)
    for block in range(0, len(a), BLOCK):
        chains[:] = 0
        for at in range(block, block + BLOCK, 2):
            np.multiply(a[at : at + 2, :, None], b[at : at + 2, None, :], out=products)
            np.add(products, chains, out=chains, casting="same_kind")
        total += chains[0] + chains[1]
    return total


@op(
    "bf16_linear",
    _bf16_linear_reference,
    traits={"accuracy": "close", "product": True, "rows": Rows(product_rows)},
    columns=REQUIRED,
    epilogue=(),
)
def _bf16_linear(
    rows: TensorType, halves: TensorType, *extras: TensorType, columns: Any, epilogue: Any
) -> TensorType:
    """With weights as `bfloat16` has them. Bit for bit as the kernels but for activations."""
    size = row_bytes(want_int(columns, "columns", 1))
    want_dtype(halves, {"u8"}, "the halves")
    want_rank(halves, 2, what="the halves")
    want_shape(halves, (halves.shape[0], 2 * columns), "the halves")
    want_dtype(rows, {"u8"}, "the row")
    if not rows.rank or not same_dim(rows.shape[-1], size):
        raise LlmcError(
            f"rows of {shape_text(rows.shape[-1:])} bytes do not hold {columns} values of bfloat16",
            hint=f"{size} do",
        )
    result = TensorType("f32", (*rows.shape[:-1], halves.shape[0]))
    check_epilogue(result, extras, epilogue)
    return result
