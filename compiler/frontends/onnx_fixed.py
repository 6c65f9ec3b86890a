"""Inputs of an ONNX file that always have one value: they become weights, and what depends on them is decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.frontends.onnx_kinds import DTYPES, dtype_name
from llmc.errors import LlmcError

Number = int | float
_MOST = 1 << 20  # elements
_ROUNDED = Fraction(1, 1 << 8)  # what a fraction may be rounded by: bfloat16 has as many bits
_BEYOND = 1 << 1000  # any float
_DIGITS = 40  # of a number in a sentence


def fix(graph: Any, values: Mapping[str, Number], path: Path) -> None:
    """Make weights of those inputs of a file's graph.

    Args:
        graph: onnx.GraphProto, which is changed.
        values: of each input, for all of its elements.

    Raises:
        LlmcError: there is no such input, its size is open, or its dtype does not hold the value: integers exactly,
            fractions to 8 bits.
    """
    from onnx import numpy_helper

    weights = {t.name for t in graph.initializer}
    inputs = {i.name: i for i in graph.input if i.name not in weights}
    for name, value in values.items():
        if name not in inputs:
            raise LlmcError(
                f"the file has no input {name!r}", at=str(path), hint=f"it has {', '.join(inputs)}"
            )
        array = _array(inputs[name], value, str(path))
        graph.input.remove(inputs[name])
        graph.initializer.append(numpy_helper.from_array(array, name))


def _array(info: Any, value: Number, at: str) -> np.ndarray[Any, Any]:
    kind = info.type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
    if kind.elem_type not in DTYPES or not kind.HasField("shape") or min(sizes, default=0) < 0:
        raise LlmcError(
            f"input {info.name!r} cannot have one value",
            at=at,
            found="an open size" if min(sizes, default=0) < 0 else dtype_name(kind.elem_type),
            hint="--dim gives open axes a size",
        )
    if int(np.prod(sizes, dtype=object)) > _MOST:
        raise LlmcError(f"input {info.name!r} has more than {_MOST} elements", at=at, found=str(sizes)[:200])
    return np.full(sizes, _held(value, kind.elem_type, info.name, at))


def _held(value: Number, kind: int, name: str, at: str) -> Any:
    """The value as a number of an element type, which is the input's own: it decides what is computed with it."""
    from onnx import helper

    if not isinstance(value, Real) or not (isinstance(value, Integral) or math.isfinite(value)):
        raise LlmcError(f"input {name!r} cannot be {value!r:.60}", at=at, hint="a finite number can")
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    exact = Fraction(int(value)) if isinstance(value, Integral) else Fraction(float(value))
    return (_float if DTYPES[kind] == "f32" else _integer)(exact, dtype, name, at)


def _integer(value: Fraction, dtype: np.dtype[Any], name: str, at: str) -> Any:
    low, high = _range(dtype)
    if value.denominator > 1 or not low <= value <= high:
        raise LlmcError(
            f"input {name!r} of {dtype} cannot be {_told(value)}",
            at=at,
            hint=f"integers from {low} to {high}",
        )
    return np.asarray(int(value)).astype(dtype)


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    signed, width = not dtype.name.startswith("uint"), int(dtype.name.lstrip("uint"))
    return (-1 << (width - 1), (1 << (width - 1)) - 1) if signed else (0, min(1 << width, 1 << 63) - 1)


def _float(value: Fraction, dtype: np.dtype[Any], name: str, at: str) -> Any:
    """Rounded as the dtype rounds, and as float32 does, in which all floats are computed; integers are not rounded."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.asarray(_as_float(value)).astype(dtype)
        computed = float(near.astype(np.float32))
    apart = abs(Fraction(computed) - value) if math.isfinite(computed) else math.inf
    if apart > (0 if value.denominator == 1 else _ROUNDED * abs(value)):
        raise LlmcError(
            f"input {name!r} of {dtype} cannot be {_told(value)}",
            at=at,
            hint=f"its nearest value is {computed:g}",
        )
    return near


def _as_float(value: Fraction) -> float:
    if abs(value) < _BEYOND:
        return float(value)
    return math.inf if value > 0 else -math.inf


def _told(value: Fraction) -> str:
    whole = str(value) if value.denominator == 1 else repr(float(value))
    return whole if len(whole) <= _DIGITS else f"{whole[:_DIGITS]}..., a number of {len(whole)} digits"
