"""Quantised values and integer products. Every float step of a reference is the kernels' own, to the last bit.

Quantisation is symmetric: value = q * scale, q an integer in -127..127. In the graph it is first explicit
(`row_scale`, `quantize`, `dequantize`, the ONNX convention), then fused into `qlinear` on packed rows, or `qconv2d`.
Values that come with a zero point, as in ONNX files, are value = (q - zero) * scale, q any integer of the zero's type.

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
from llmc.compiler.ops.float_steps import fma32, gelu_poly32
from llmc.compiler.ops.linear import ACTIVATIONS, EXTRAS, check_epilogue, product_rows
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rows import ZERO, line_stride, pack_rows, row_stride, unpack_rows
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
LONGEST = 1 << 17  # 127 * 127 * LONGEST still fits an int32
LONGEST_WITH_ZERO = 1 << 16  # and 255 * 128 * LONGEST_WITH_ZERO
LEVEL_DTYPES = frozenset({"i8", "u8"})


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


def _quantize_reference(x: Array, scale: Array, *zero: Array) -> Array:
    if zero:
        return levels(x, scale, zero[0])
    scaled = x * (np.float32(1) / scale)
    low = np.where(scaled < LEVELS, scaled, np.float32(LEVELS))  # NaN becomes 127, as in the kernels
    return np.asarray(np.rint(np.maximum(low, np.float32(-LEVELS))).astype(np.int8))


def levels(x: Array, scale: Array, zero: Array) -> Array:
    """round(x / scale) + zero, halves to even, within the zero's type; NaN becomes the largest level."""
    info = np.iinfo(zero.dtype)
    near = np.rint(x / scale) + zero.astype(np.float32)
    low = np.where(near < info.max, near, np.float32(info.max))
    return np.asarray(np.maximum(low, np.float32(info.min)).astype(zero.dtype))


@op("quantize", _quantize_reference, traits={"elementwise": True, "cost": 8})
def _quantize(x: TensorType, scale: TensorType, *zero: TensorType) -> TensorType:
    """With a zero point as ONNX has it, of whose type the levels are."""
    want_dtype(x, F32)
    _want_zero(x, zero)
    return TensorType(zero[0].dtype if zero else "i8", _want_scale(x, scale))


def _dequantize_reference(q: Array, scale: Array, *zero: Array) -> Array:
    value = q.astype(np.float32)
    return np.asarray((value - zero[0].astype(np.float32) if zero else value) * scale)


@op("dequantize", _dequantize_reference, traits={"elementwise": True})
def _dequantize(q: TensorType, scale: TensorType, *zero: TensorType) -> TensorType:
    want_dtype(q, LEVEL_DTYPES)
    _want_zero(q, zero)
    if zero and zero[0].dtype != q.dtype:
        raise LlmcError(f"the zero point is {zero[0].dtype}, the levels are {q.dtype}")
    return TensorType("f32", _want_scale(q, scale))


def _want_zero(x: TensorType, zero: tuple[TensorType, ...]) -> None:
    if len(zero) > 1:
        raise LlmcError(f"{len(zero)} zero points are given")
    for one in zero:
        want_dtype(one, LEVEL_DTYPES, "the zero point")
        _want_fitting(x, one, "a zero point")


def _want_scale(x: TensorType, scale: TensorType) -> tuple[Any, ...]:
    want_dtype(scale, F32, "the scale")
    return _want_fitting(x, scale, "a scale")


def _want_fitting(x: TensorType, part: TensorType, what: str) -> tuple[Any, ...]:
    shape = broadcast(x.shape, part.shape)
    if not same_shape(shape, x.shape):
        raise LlmcError(f"{what} of {shape_text(part.shape)} does not fit values of {shape_text(x.shape)}")
    return shape


# --- packed rows, made by fusion only


def packed_stride(k: int, table: bool) -> int:
    """Bytes of a packed row of k values, as `quantize_rows` writes it."""
    return row_stride(k) if table else line_stride(k)


def _quantize_rows_reference(x: Array, *given: Array, has_scale: bool, has_zero: bool, table: bool) -> Array:
    scale, stride = given[0].reshape(1) if has_scale else row_scales(x), packed_stride(x.shape[-1], table)
    q = _quantize_reference(x, scale, *given[1:])
    signed = q if q.dtype == np.int8 else (q ^ np.uint8(ZERO)).view(np.int8)
    return pack_rows(signed, np.broadcast_to(scale, (*x.shape[:-1], 1)), stride)


@op("quantize_rows", _quantize_rows_reference, traits=_ROWS, has_scale=False, has_zero=False, table=False)
def _quantize_rows(
    x: TensorType, *given: TensorType, has_scale: Any, has_zero: Any, table: Any
) -> TensorType:
    want_flags(has_scale=has_scale, has_zero=has_zero, table=table)
    want_dtype(x, F32)
    if len(given) != int(has_scale) + int(has_zero):
        raise LlmcError(f"{len(given)} scales and zero points are given, has_scale is {has_scale}")
    if has_zero and not has_scale:
        raise LlmcError("a zero point is given, but no scale")
    for scale in given[:1]:
        want_dtype(scale, F32, "the scale")
        want_shape(scale, (), "the scale")
    want_one_zero(given[1:])
    if not x.rank or not isinstance(x.shape[-1], int):
        raise LlmcError("the last axis must have a fixed size")
    return TensorType("u8", (*x.shape[:-1], packed_stride(x.shape[-1], table)))


def want_one_zero(zero: tuple[TensorType, ...]) -> None:
    """Refuse a zero point that is not one number for all values."""
    for one in zero:
        want_dtype(one, LEVEL_DTYPES, "the zero point")
        want_shape(one, (), "the zero point")


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
    rows: Array, w: Array, w_scale: Array, *others: Array, epilogue: tuple[str, ...], has_zero: bool
) -> Array:
    q, x_scale = unpack_rows(rows, w.shape[1])
    zero, extras = (signed(others[0]), others[1:]) if has_zero else (0.0, others)
    # float64 holds the integer sums exactly; float32 rounds them once, as the conversion of an int32 does
    sums = ((q.astype(np.float64) - zero) @ w.T.astype(np.float64)).astype(np.float32)
    return scaled(sums, x_scale * w_scale, extras, epilogue)


def signed(q: Array) -> Array:
    """Levels as float64, unsigned ones less 128."""
    return q.astype(np.float64) - (ZERO if q.dtype == np.uint8 else 0)


def scaled(sums: Array, scale: Array, extras: tuple[Array, ...], epilogue: tuple[str, ...]) -> Array:
    """epilogue(sums * scale), f32: a first bias or residual is added by one fused multiply-add."""
    pending, steps = iter(extras), epilogue
    if steps and steps[0] in EXTRAS:
        value, steps = fma32(sums, scale, next(pending)), steps[1:]
    else:
        value = sums * scale
    for step in steps:
        value = value + next(pending) if step in EXTRAS else _activated(value, step)
    return value


def _activated(value: Array, step: str) -> Array:
    """f32; what is to be rounded to levels to the last bit as the kernels have it."""
    if step == "gelu_poly":
        return gelu_poly32(value)
    return np.asarray(ACTIVATIONS[step](value.astype(np.float64))).astype(np.float32)


_QLINEAR = {"accuracy": "close", "product": True, "rows": Rows(product_rows)}


@op("qlinear", _qlinear_reference, traits=_QLINEAR, epilogue=(), has_zero=False)
def _qlinear(
    rows: TensorType, w: TensorType, w_scale: TensorType, *others: TensorType, epilogue: Any, has_zero: Any
) -> TensorType:
    """The sums are exact in int32; `float(sum) * (row scale * column scale)` takes a first bias or residual
    in one fused multiply-add. Bit for bit as the kernels but for activations. With `has_zero` a zero point comes
    before the extras: rows hold levels around it."""
    want_flags(has_zero=has_zero)
    want_dtype(w, {"i8"}, "the weight")
    want_rank(w, 2, what="the weight")
    n, k = w.shape
    want_sums(k, has_zero)
    _want_rows(rows, line_stride(k), k)
    want_dtype(w_scale, F32, "the weight's scale")
    want_shape(w_scale, (n,), "the weight's scale")
    result = TensorType("f32", (*rows.shape[:-1], n))
    check_epilogue(result, after_zero(others, has_zero), epilogue)
    return result


def want_sums(k: Any, has_zero: bool) -> None:
    """Refuse products of so many levels that their sums may not fit an int32."""
    longest = LONGEST_WITH_ZERO if has_zero else LONGEST
    if not isinstance(k, int) or not 0 < k < longest:
        raise LlmcError(f"the weight has {shape_text((k,))} columns: int32 sums hold up to {longest}")


def after_zero(others: tuple[TensorType, ...], has_zero: bool) -> tuple[TensorType, ...]:
    """What comes after the zero point, if there is one, which is checked."""
    if not has_zero:
        return others
    if not others:
        raise LlmcError("has_zero is true, but no zero point is given")
    want_one_zero(others[:1])
    return others[1:]
