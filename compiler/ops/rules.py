"""Checks the type rules share. They raise `LlmcError` with the problem only; `Op.infer` adds the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import Dim, dim, dim_text
from llmc.compiler.graph import TensorType
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
FLOATS = frozenset({"f32", "f16"})
INTEGERS = frozenset({"i8", "u8", "i32", "i64"})
NUMBERS = FLOATS | INTEGERS
INDICES = frozenset({"i32", "i64"})


def same_dim(a: Dim, b: Dim) -> bool:
    """Whether two dims are equal for all sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(a == b) or _same_expression(a, b)


@cache
def _same_expression(a: Dim, b: Dim) -> bool:
    return bool(dim(a - b) == 0)


def same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes are equal for all sizes."""
    return len(a) == len(b) and all(map(same_dim, a, b))


def shape_text(shape: Iterable[Dim]) -> str:
    """`[batch, 12]`."""
    return f"[{', '.join(map(dim_text, shape))}]"


def want_dtype(x: TensorType, allowed: Iterable[str], what: str = "input") -> None:
    """Refuse `x` unless its dtype is in `allowed`."""
    if x.dtype not in allowed:
        raise LlmcError(f"{what} has dtype {x.dtype}, not {' or '.join(sorted(allowed))}")


def want_same_dtype(*types: TensorType) -> None:
    """Refuse inputs of different dtypes; there is no implicit promotion."""
    if any(t.dtype != types[0].dtype for t in types):
        raise LlmcError("inputs have different dtypes", hint="insert a cast")


def want_rank(x: TensorType, low: int, high: int | None = None, what: str = "input") -> None:
    """Refuse `x` unless its rank is within [low, high]; `high` defaults to `low`."""
    high = low if high is None else high
    if not low <= x.rank <= high:
        raise LlmcError(f"{what} has rank {x.rank}, not {low if low == high else f'{low} to {high}'}")


def want_shape(x: TensorType, shape: Sequence[Dim], what: str) -> None:
    """Refuse `x` unless it has exactly this shape."""
    if not same_shape(x.shape, shape):
        raise LlmcError(f"{what} has shape {shape_text(x.shape)}, not {shape_text(shape)}")


def want_int(value: Any, what: str, low: int | None = None) -> int:
    """`value` if it is an int of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
        raise LlmcError(f"{what} is {value!r}, not an integer{'' if low is None else f' of at least {low}'}")
    return value


def want_number(value: Any, what: str) -> None:
    """Refuse anything but a bool, int or float."""
    if not isinstance(value, (bool, int, float)):
        raise LlmcError(f"{what} is {value!r}, not a number")


def want_flags(**flags: Any) -> None:
    """Refuse attributes that are not bools."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise LlmcError(f"{name} is {value!r}, not true or false")


def want_count(inputs: Sequence[TensorType], count: int) -> None:
    """Refuse any other number of inputs."""
    if len(inputs) != count:
        raise LlmcError(f"it takes {count} inputs, not {len(inputs)}")


def want_axis(x: TensorType, axis: Any, what: str = "axis") -> int:
    """`axis` if it is one of `x`, counted from 0."""
    if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < x.rank:
        raise LlmcError(f"{what} {axis!r} is not in 0..{x.rank - 1}", hint="axes are counted from 0")
    return axis


def want_axes(x: TensorType, axes: Any) -> tuple[int, ...]:
    """`axes` if it is a non-empty ascending tuple of axes of `x`."""
    if not isinstance(axes, tuple) or not axes:
        raise LlmcError(f"axes is {axes!r}, not a tuple of at least one axis")
    for axis in axes:
        want_axis(x, axis)
    if any(a >= b for a, b in pairwise(axes)):
        raise LlmcError(f"axes {axes} are not in ascending order")
    return axes


def want_dim(value: Any, what: str) -> Dim:
    """`value` as a dim if it is an int or a sympy expression."""
    if isinstance(value, bool) or not isinstance(value, (int, sympy.Expr)):
        raise LlmcError(f"{what} holds {value!r}, not an integer or symbolic dim")
    return dim(value)


def want_dims(shape: Any, what: str = "shape") -> tuple[Dim, ...]:
    """A tuple of dims; known ones must not be negative."""
    if not isinstance(shape, tuple):
        raise LlmcError(f"{what} is {shape!r}, not a tuple")
    dims = tuple(want_dim(d, what) for d in shape)
    if any(isinstance(d, int) and d < 0 for d in dims):
        raise LlmcError(f"{what} {shape_text(dims)} has a negative dim")
    return dims


def broadcast(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """NumPy's broadcast shape; a symbolic dim against 1 gives the symbolic dim."""
    if all(s is shapes[0] or s == shapes[0] for s in shapes):
        return tuple(shapes[0])
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(_broadcast_dims(dims) for dims in zip(*padded, strict=True))


def _broadcast_dims(dims: Sequence[Dim]) -> Dim:
    result: Dim = 1
    for d in dims:
        if same_dim(d, 1):
            continue
        if not same_dim(result, 1) and not same_dim(result, d):
            raise LlmcError(f"dims {dim_text(result)} and {dim_text(d)} do not broadcast")
        result = d if same_dim(result, 1) else result
    return result


def want_broadcastable(x: TensorType, shape: Sequence[Dim], what: str) -> None:
    """Refuse `x` unless it broadcasts to exactly `shape`."""
    offset = len(shape) - x.rank
    if offset < 0 or not all(
        same_dim(d, 1) or same_dim(d, t) for d, t in zip(x.shape, shape[offset:], strict=True)
    ):
        raise LlmcError(f"{what} of shape {shape_text(x.shape)} does not broadcast to {shape_text(shape)}")
