"""Reductions, softmax and normalisation.

References of `f32` results compute in float64 and round once, so that they are an oracle for kernels. Norms have the
kernels' own steps, too, for what is rounded to levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.graph import TensorType
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.float_steps import norm32
from llmc.compiler.ops.rules import (
    FLOATS,
    NUMBERS,
    Array,
    want_axes,
    want_axis,
    want_count,
    want_dtype,
    want_flags,
    want_number,
    want_shape,
)
from llmc.compiler.ops.traits import AtMost, Rows, beside_first, last_axes
from llmc.errors import LlmcError

F32 = frozenset({"f32"})
BOOL = frozenset({"bool"})


def _wide(x: Array) -> Any:
    """The dtype to accumulate in: float64 for floats, the dtype itself (wrapping) for integers."""
    return np.float64 if x.dtype.kind == "f" else x.dtype


def reduced(shape: tuple[Dim, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[Dim, ...]:
    """`shape` after a reduction over `axes`."""
    if keepdims:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def _some(x: TensorType, axes: tuple[int, ...], keepdims: bool) -> Iterator[AtMost]:
    """Of nothing there is no largest element."""
    return (AtMost(1, x.shape[axis], high_name=f"the size of axis {axis}") for axis in axes)


def _reduction(
    name: str, allowed: frozenset[str], reference: Callable[..., Any], accuracy: str = "exact", **traits: Any
) -> None:
    def rule(x: TensorType, axes: Any, keepdims: Any) -> TensorType:
        want_dtype(x, allowed)
        want_flags(keepdims=keepdims)
        return TensorType(x.dtype, reduced(x.shape, want_axes(x, axes), keepdims))

    traits = {"accuracy": accuracy, "rows": last_axes("axes"), "first_axis": beside_first("axes"), **traits}
    op(name, reference, traits=traits, axes=REQUIRED, keepdims=False)(rule)


def _sum(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.sum(x, axes, dtype=_wide(x), keepdims=keepdims)).astype(x.dtype)


def _mean(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.mean(x, axes, dtype=np.float64, keepdims=keepdims)).astype(x.dtype)


def _prod(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.prod(x, axes, dtype=_wide(x), keepdims=keepdims)).astype(x.dtype)


_reduction("sum", NUMBERS, _sum, "close")
_reduction("prod", NUMBERS, _prod, "close")
_reduction("mean", FLOATS, _mean, "close")
_reduction("max", NUMBERS, lambda x, axes, keepdims: np.max(x, axes, keepdims=keepdims), constraints=_some)
_reduction("min", NUMBERS, lambda x, axes, keepdims: np.min(x, axes, keepdims=keepdims), constraints=_some)
_reduction("any", BOOL, lambda x, axes, keepdims: np.any(x, axes, keepdims=keepdims))
_reduction("all", BOOL, lambda x, axes, keepdims: np.all(x, axes, keepdims=keepdims))


def _argmax_constraints(x: TensorType, axis: int, keepdims: bool) -> Iterator[AtMost]:
    return _some(x, (axis,), keepdims)


@op(
    "argmax",
    lambda x, axis, keepdims: np.argmax(x, axis, keepdims=keepdims),
    traits={"constraints": _argmax_constraints, "first_axis": beside_first("axis")},
    axis=REQUIRED,
    keepdims=False,
)
def _argmax(x: TensorType, axis: Any, keepdims: Any) -> TensorType:
    want_dtype(x, NUMBERS)
    want_flags(keepdims=keepdims)
    return TensorType("i64", reduced(x.shape, (want_axis(x, axis),), keepdims))


def _cumsum_reference(x: Array, axis: int) -> Array:
    return np.cumsum(x, axis, dtype=_wide(x)).astype(x.dtype)


_CUMSUM = {"accuracy": "close", "first_axis": beside_first("axis")}


@op("cumsum", _cumsum_reference, traits=_CUMSUM, axis=REQUIRED)
def _cumsum(x: TensorType, axis: Any) -> TensorType:
    want_dtype(x, NUMBERS)
    want_axis(x, axis)
    return x


def softmax64(x: Array, axis: int) -> Array:
    """Softmax in float64; a row of all -inf gives NaN."""
    wide = x.astype(np.float64)
    weights = np.exp(wide - wide.max(axis, keepdims=True, initial=-np.inf))
    return np.asarray(weights / weights.sum(axis, keepdims=True))


def _log_softmax_reference(x: Array, axis: int) -> Array:
    shifted = x.astype(np.float64) - x.max(axis, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))).astype(x.dtype)


def _softmax(x: TensorType, axis: Any) -> TensorType:
    want_dtype(x, F32)
    want_axis(x, axis)
    return x


_SOFTMAX = {"accuracy": "close", "rows": last_axes("axis"), "first_axis": beside_first("axis")}
op("softmax", lambda x, axis: softmax64(x, axis).astype(x.dtype), traits=_SOFTMAX, axis=REQUIRED)(_softmax)
op("log_softmax", _log_softmax_reference, traits=_SOFTMAX, axis=REQUIRED)(_softmax)


def layer_norm64(x: Array, weight: Array | None, bias: Array | None, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in float64."""
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    result = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    result = result if weight is None else result * weight
    return np.asarray(result if bias is None else result + bias)


def want_norm(x: TensorType, eps: Any, **parameters: TensorType) -> None:
    """The checks all norms share: f32, a last axis, parameters of its length, eps >= 0."""
    want_dtype(x, F32)
    if not x.rank:
        raise LlmcError("the input is a scalar")
    want_number(eps, "eps")
    if not eps >= 0:
        raise LlmcError(f"eps is {eps}, not positive")
    for name, parameter in parameters.items():
        want_dtype(parameter, F32, name)
        want_shape(parameter, (x.shape[-1],), name)


_NORM = {"accuracy": "close", "rows": Rows((0,), sliced=True)}
_ADD_NORM = {"accuracy": "close", "rows": Rows((0, 1), sliced=True)}


def _layer_norm_reference(x: Array, *rest: Array, eps: float, has_weight: bool, has_bias: bool) -> Array:
    weight = rest[0] if has_weight else None
    return layer_norm64(x, weight, rest[-1] if has_bias else None, eps).astype(x.dtype)


def _layer_norm_steps(x: Array, *rest: Array, eps: float, has_weight: bool, has_bias: bool) -> Array:
    return norm32(x, rest[0] if has_weight else None, rest[-1] if has_bias else None, eps)


@op(
    "layer_norm",
    _layer_norm_reference,
    traits={**_NORM, "steps": _layer_norm_steps},
    eps=REQUIRED,
    has_weight=True,
    has_bias=True,
)
def _layer_norm(*inputs: TensorType, eps: float, has_weight: bool, has_bias: bool) -> TensorType:
    want_flags(has_weight=has_weight, has_bias=has_bias)
    want_count(inputs, 1 + has_weight + has_bias)
    names = ["weight"] * has_weight + ["bias"] * has_bias
    want_norm(inputs[0], eps, **dict(zip(names, inputs[1:], strict=True)))
    return inputs[0]


def _rms_norm_reference(x: Array, weight: Array, eps: float) -> Array:
    wide = x.astype(np.float64)
    scale = 1.0 / np.sqrt((wide * wide).mean(-1, keepdims=True) + eps)
    return np.asarray(wide * scale * weight).astype(x.dtype)


def _rms_norm_steps(x: Array, weight: Array, eps: float) -> Array:
    return norm32(x, weight, None, eps, centre=False)


@op("rms_norm", _rms_norm_reference, traits={**_NORM, "steps": _rms_norm_steps}, eps=REQUIRED)
def _rms_norm(x: TensorType, weight: TensorType, eps: float) -> TensorType:
    want_norm(x, eps, weight=weight)
    return x


# --- made by fusion only


def _add_norm_reference(x: Array, residual: Array, weight: Array, bias: Array, eps: float) -> Array:
    return layer_norm64(x.astype(np.float64) + residual, weight, bias, eps).astype(x.dtype)


def _add_norm_steps(x: Array, residual: Array, weight: Array, bias: Array, eps: float) -> Array:
    return norm32(x + residual, weight, bias, eps)


@op("add_norm", _add_norm_reference, traits={**_ADD_NORM, "steps": _add_norm_steps}, eps=REQUIRED)
def _add_norm(
    x: TensorType, residual: TensorType, weight: TensorType, bias: TensorType, eps: float
) -> TensorType:
    want_dtype(residual, F32, "residual")
    want_shape(residual, x.shape, "residual")
    want_norm(x, eps, weight=weight, bias=bias)
    return x
