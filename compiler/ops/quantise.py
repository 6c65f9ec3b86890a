"""Quantised values and integer products. Every float step of a reference is the kernels' own, to the last bit.

Quantisation is symmetric: value = q * scale, q an integer in -127..127. In the graph it is first explicit
(`row_scale`, `quantize`, `dequantize`, the ONNX convention), then fused into `qlinear` on packed rows.

A packed row holds k values and their scale in one piece, u8: q + 128 for each value, 128 up to a multiple of 16,
then the scale as 4 little-endian bytes of f32, then zeros: 12 in a table (`row_stride`), up to a multiple of 64 in
what a product reads (`line_stride`), so that every row starts a cache line. Unsigned bytes are what x86's
`vpdpbusd` and `tdpbusd` want of one operand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.graph import TensorType
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.linear import ACTIVATIONS, EXTRAS, check_epilogue, product_rows
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rows import line_stride, pack_rows, row_stride, unpack_rows
from llmc.compiler.ops.rules import (
    Array,
    broadcast,
    same_dim,
    same_shape,
    shape_text,
    want_dtype,
    want_flags,
    want_int,
    want_rank,
    want_shape,
)
from llmc.compiler.ops.traits import Rows
from llmc.errors import LlmcError

LEVELS = 127  # the largest quantised value
TINY = 2.0**-120  # a smaller scale has no finite reciprocal to speak of: such rows count as zero
Number = Array | np.float32
LONGEST = 1 << 17  # 127 * 127 * LONGEST still fits an int32


@np.errstate(all="ignore")
def fma32(a: Number, b: Number, c: Number) -> Array:
    """a * b + c of f32 arrays or numbers rounded once, as a fused multiply-add does.

    The product of two f32 is exact in f64. Its sum with c is rounded to odd there (Boldo and Melquiond 2008:
    innocuous before a second rounding to a format of at least two bits less), by Knuth's exact error term.
    """
    a, b, c = (np.asarray(v, np.float32).astype(np.float64) for v in (a, b, c))
    product, c = np.broadcast_arrays(a * b, c)
    total = np.array(product + c)
    back = total - product
    error = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & np.isfinite(error) & (error != 0) & (bits & 1 == 0)
    bits[inexact] += np.where((error > 0) == (total > 0), 1, -1)[inexact]
    return np.asarray(total.astype(np.float32))


# --- explicit form


def row_scales(x: Array, levels: float = LEVELS, tiny: float = TINY) -> Array:
    """f32 `[..., k]` -> `[..., 1]`: the largest magnitude / levels, 1 for a row of zeros."""
    scale = np.abs(x).max(-1, keepdims=True, initial=0.0) / np.float32(levels)
    return np.where(scale < tiny, np.float32(1), scale).astype(np.float32)


_ROWS = {"rows": Rows((0,))}


@op("row_scale", row_scales, traits=_ROWS)
def _row_scale(x: TensorType) -> TensorType:
    want_dtype(x, F32)
    if not x.rank:
        raise LlmcError("the input is a scalar")
    return TensorType("f32", (*x.shape[:-1], 1))


def _quantize_reference(x: Array, scale: Array) -> Array:
    scaled = x * (np.float32(1) / scale)
    low = np.where(scaled < LEVELS, scaled, np.float32(LEVELS))  # NaN becomes 127, as in the kernels
    return np.asarray(np.rint(np.maximum(low, np.float32(-LEVELS))).astype(np.int8))


@op("quantize", _quantize_reference, traits={"elementwise": True, "cost": 8})
def _quantize(x: TensorType, scale: TensorType) -> TensorType:
    want_dtype(x, F32)
    return TensorType("i8", _want_scale(x, scale))


@op("dequantize", lambda q, scale: q.astype(np.float32) * scale, traits={"elementwise": True})
def _dequantize(q: TensorType, scale: TensorType) -> TensorType:
    want_dtype(q, {"i8"})
    return TensorType("f32", _want_scale(q, scale))


def _want_scale(x: TensorType, scale: TensorType) -> tuple[Any, ...]:
    want_dtype(scale, F32, "the scale")
    shape = broadcast(x.shape, scale.shape)
    if not same_shape(shape, x.shape):
        raise LlmcError(f"a scale of {shape_text(scale.shape)} does not fit values of {shape_text(x.shape)}")
    return shape


# --- packed rows, made by fusion only


def packed_stride(k: int, table: bool) -> int:
    """Bytes of a packed row of k values, as `quantize_rows` writes it."""
    return row_stride(k) if table else line_stride(k)


def _quantize_rows_reference(x: Array, *given: Array, has_scale: bool, table: bool) -> Array:
    scale, stride = given[0].reshape(1) if has_scale else row_scales(x), packed_stride(x.shape[-1], table)
    return pack_rows(_quantize_reference(x, scale), np.broadcast_to(scale, (*x.shape[:-1], 1)), stride)


@op("quantize_rows", _quantize_rows_reference, traits=_ROWS, has_scale=False, table=False)
def _quantize_rows(x: TensorType, *given: TensorType, has_scale: Any, table: Any) -> TensorType:
    want_flags(has_scale=has_scale, table=table)
    want_dtype(x, F32)
    if len(given) != int(has_scale):
        raise LlmcError(f"{len(given)} scales are given, has_scale is {has_scale}")
    for scale in given:
        want_dtype(scale, F32, "the scale")
        want_shape(scale, (), "the scale")
    if not x.rank or not isinstance(x.shape[-1], int):
        raise LlmcError("the last axis must have a fixed size")
    return TensorType("u8", (*x.shape[:-1], packed_stride(x.shape[-1], table)))


def _dequantize_rows_reference(rows: Array, size: int) -> Array:
    q, scale = unpack_rows(rows, size)
    return np.asarray(q.astype(np.float32) * scale)


@op("dequantize_rows", _dequantize_rows_reference, traits=_ROWS, size=REQUIRED)
def _dequantize_rows(rows: TensorType, size: Any) -> TensorType:
    want_int(size, "size", 1)
    table = bool(rows.rank) and same_dim(rows.shape[-1], row_stride(size))
    _want_rows(rows, row_stride(size) if table else line_stride(size), size)
    return TensorType("f32", (*rows.shape[:-1], size))


def _want_rows(rows: TensorType, stride: int, k: int) -> None:
    want_dtype(rows, {"u8"}, "the packed row")
    if not rows.rank or not same_dim(rows.shape[-1], stride):
        raise LlmcError(
            f"rows of {shape_text(rows.shape[-1:])} bytes do not hold {k} values", hint=f"{stride} do"
        )


def _qlinear_reference(
    rows: Array, w: Array, w_scale: Array, *extras: Array, epilogue: tuple[str, ...]
) -> Array:
    q, x_scale = unpack_rows(rows, w.shape[1])
    # float64 holds the integer sums exactly; float32 rounds them once, as the conversion of an int32 does
    sums = (q.astype(np.float64) @ w.T.astype(np.float64)).astype(np.float32)
    return scaled(sums, x_scale * w_scale, extras, epilogue)


def scaled(sums: Array, scale: Array, extras: tuple[Array, ...], epilogue: tuple[str, ...]) -> Array:
    """epilogue(sums * scale), f32: a first bias or residual is added by one fused multiply-add."""
    pending, steps = iter(extras), epilogue
    if steps and steps[0] in EXTRAS:
        value, steps = fma32(sums, scale, next(pending)), steps[1:]
    else:
        value = sums * scale
    for step in steps:
        after = value + next(pending) if step in EXTRAS else ACTIVATIONS[step](value.astype(np.float64))
        value = np.asarray(after).astype(np.float32)
    return value


_QLINEAR = {"accuracy": "close", "product": True, "rows": Rows(product_rows)}


@op("qlinear", _qlinear_reference, traits=_QLINEAR, epilogue=())
def _qlinear(
    rows: TensorType, w: TensorType, w_scale: TensorType, *extras: TensorType, epilogue: Any
) -> TensorType:
    """The sums are exact in int32; `float(sum) * (row scale * column scale)` takes a first bias or residual
    in one fused multiply-add. Bit for bit as the kernels but for activations."""
    want_dtype(w, {"i8"}, "the weight")
    want_rank(w, 2, what="the weight")
    n, k = w.shape
    if not isinstance(k, int) or not 0 < k < LONGEST:
        raise LlmcError(f"the weight has {shape_text((k,))} columns: int32 sums hold up to {LONGEST}")
    _want_rows(rows, line_stride(k), k)
    want_dtype(w_scale, F32, "the weight's scale")
    want_shape(w_scale, (n,), "the weight's scale")
    result = TensorType("f32", (*rows.shape[:-1], n))
    check_epilogue(result, extras, epilogue)
    return result
