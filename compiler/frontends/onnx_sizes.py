"""Arithmetic on sizes: ONNX spells shapes as small integer tensors, here they are arrays of dims.

`on_sizes` is tried before a node's converter. It computes with NumPy on object arrays of ints and sympy expressions;
what it cannot decide, such as `seq == 1`, it leaves to the converter, which computes it as data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import Dim, dim, floored, from_one
from llmc.compiler.frontends.imported import HUGE
from llmc.compiler.frontends.onnx_call import Call
from llmc.compiler.frontends.onnx_values import Items, Sizes, Value, known, want_short
from llmc.compiler.frontends.ranges import is_nonnegative
from llmc.compiler.graph import DTYPES, Source
from llmc.compiler.ops import constant

Array = np.ndarray[Any, Any]
_LIMIT = 256  # elements; shapes are short
_INTEGERS = ("i32", "i64")  # ONNX's types 6 and 7


class UndecidedError(Exception):
    """The answer depends on the sizes at run time."""


def on_sizes(call: Call) -> Value | None:
    """The node's value if it computes with sizes alone, else None."""
    compute = _TABLE.get(call.type)
    given = [v for v in call.inputs if v is not None]
    if compute is None or not any(isinstance(v, Sizes) for v in given):
        return None
    arrays = [known(v) for v in call.inputs]
    if any(a is None and v is not None for a, v in zip(arrays, call.inputs, strict=True)):
        return None
    if any(a is not None and (a.size > _LIMIT or a.dtype.kind == "f") for a in arrays):
        return None
    dtypes = {v.dtype for v in given if not isinstance(v, Items) and v.dtype in _INTEGERS}
    try:
        made = compute(call, *[None if a is None else a.astype(object) for a in arrays])
    except UndecidedError:
        return None
    if made is None:
        return None
    stated = _INTEGERS[int(call.attributes["to"]) - 6] if call.type == "Cast" else min(dtypes)
    return as_value(made, stated, call.source)


def as_value(array: Any, dtype: str, source: Source) -> Value:
    """Dims as `Sizes`, or as a constant if all are numbers."""
    dims = np.empty(np.shape(array), object)
    dims[...] = array
    flat = [d if isinstance(d, (bool, np.bool_)) else dim(d) for d in dims.reshape(-1)]
    if all(isinstance(d, (bool, np.bool_)) for d in flat) and flat:
        return constant(np.array(flat, np.bool_).reshape(dims.shape), source=source)
    if all(isinstance(d, int) for d in flat):
        return constant(np.array(flat, DTYPES[dtype]).reshape(dims.shape), source=source)
    for size in flat:
        want_short(size)
    kept = np.empty(len(flat), object)
    kept[:] = flat
    return Sizes(kept.reshape(dims.shape), dtype)


# --- arithmetic


def floor_div(a: Dim, b: Dim) -> Dim:
    """a // b of sizes, as an expression without floor where the division is exact."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            raise UndecidedError
        return a // b
    quotient = sympy.cancel(sympy.sympify(a) / b)
    if sympy.denom(sympy.together(quotient)) == 1:
        return dim(quotient)
    return dim(floored(quotient))


def _toward_zero(a: Dim, b: Dim) -> Dim:
    """a / b of sizes toward zero, where their signs are the same for all sizes."""
    if isinstance(b, int) and b < 0:
        return dim(-_toward_zero(a, -b))
    if is_nonnegative(dim(-a)) and not is_nonnegative(a):
        return dim(-_toward_zero(dim(-a), b))
    if not is_nonnegative(a) or not is_nonnegative(b):
        raise UndecidedError
    return floor_div(a, b)


def _mod(call: Call, a: Array, b: Array) -> Any:
    """By `fmod` with the sign of a, which is that of the quotient toward zero."""
    quotient = _toward_zero if call.attribute("fmod", 0) else floor_div
    return np.frompyfunc(lambda x, y: dim(x - y * quotient(x, y)), 2, 1)(a, b)


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """An element-wise function of dims as one of arrays."""
    vectorised = np.frompyfunc(function, 2, 1)

    def compute(call: Call, *arrays: Array) -> Any:
        total = arrays[0]
        for other in arrays[1:]:
            total = vectorised(total, other)
        return total

    return compute


def _compared(relation: Any) -> Callable[[Dim, Dim], bool]:
    def decide(a: Dim, b: Dim) -> bool:
        """The truth of a relation for all sizes; dims are at least 1."""
        answer = relation(from_one(dim(sympy.sympify(a) - b)), 0)
        if answer not in (sympy.true, sympy.false):
            raise UndecidedError
        return bool(answer)

    return decide


def _extreme(pick: Any) -> Callable[[Dim, Dim], Dim]:
    return lambda a, b: from_one(dim(pick(sympy.sympify(a), sympy.sympify(b))))


def _smaller(a: Dim, b: Dim) -> Dim:
    for one, other in ((a, b), (b, a)):
        if isinstance(one, int) and one >= HUGE and isinstance(other, sympy.Symbol):
            return other
    return _extreme(sympy.Min)(a, b)


def _where(call: Call, condition: Array, a: Array, b: Array) -> Any:
    if any(not isinstance(c, (bool, np.bool_)) for c in condition.reshape(-1)):
        raise UndecidedError
    return np.where(condition.astype(bool), a, b)


def _cast(call: Call, x: Array) -> Any:
    """Between integers; sizes fit any of them."""

    return x if int(call.attributes["to"]) in (6, 7) else None


# --- selection and shape


def _axes(call: Call, axes: Array | None) -> list[int]:
    given = call.attributes.get("axes") if axes is None else axes.reshape(-1).tolist()
    return [int(a) for a in given or []]


def _unsqueeze(call: Call, x: Array, axes: Array | None = None) -> Any:
    return np.expand_dims(x, tuple(_axes(call, axes)))


def _squeeze(call: Call, x: Array, axes: Array | None = None) -> Any:
    """Of arrays of sizes, whose own sizes are known."""
    return np.squeeze(x, tuple(_axes(call, axes)) or None)


def _slice(call: Call, x: Array, *bounds: Array | None) -> Any:
    """Before opset 10 the bounds are attributes."""
    if not bounds:
        named = [call.attributes.get(name) for name in ("starts", "ends", "axes")]
        bounds = tuple(None if n is None else np.array(n, object) for n in named)
    starts, ends, axes, steps = [*bounds, None, None, None][:4]
    if starts is None or ends is None:
        raise UndecidedError
    count = starts.size
    axes = np.arange(count) if axes is None else axes.reshape(-1)
    steps = np.ones(count, object) if steps is None else steps.reshape(-1)
    cuts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts.reshape(-1), ends.reshape(-1), axes, steps, strict=True):
        if not all(isinstance(n, int) for n in (start, end, step)):
            raise UndecidedError
        cuts[int(axis)] = slice(start, None if step < 0 and end < -x.size else end, step)
    return x[tuple(cuts)]


def _reshape(call: Call, x: Array, shape: Array) -> Any:
    if not all(isinstance(d, int) for d in shape.reshape(-1)):
        raise UndecidedError
    if call.attribute("allowzero", 0):
        return x.reshape(list(shape.reshape(-1)))
    return x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(shape.reshape(-1))])


def _expand(call: Call, x: Array, shape: Array) -> Any:
    if not all(isinstance(d, int) for d in shape.reshape(-1)):
        raise UndecidedError
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.reshape(-1))))


def _reduce(ufunc: Any) -> Callable[..., Any]:
    def compute(call: Call, x: Array, axes: Array | None = None) -> Any:
        chosen = tuple(_axes(call, axes)) or tuple(range(x.ndim))
        if not _axes(call, axes) and call.attribute("noop_with_empty_axes", 0):
            return x
        return ufunc.reduce(x, axis=chosen, keepdims=bool(call.attribute("keepdims", 1)))

    return compute


_TABLE: Mapping[str, Callable[..., Any]] = {
    "Add": lambda call, a, b: a + b,
    "Sub": lambda call, a, b: a - b,
    "Mul": lambda call, a, b: a * b,
    "Div": _each(_toward_zero),
    "Mod": _mod,
    "Max": _each(_extreme(sympy.Max)),
    "Min": _each(_smaller),
    "Neg": lambda call, x: -x,
    "Equal": _each(_compared(sympy.Eq)),
    "Less": _each(_compared(sympy.Lt)),
    "LessOrEqual": _each(_compared(sympy.Le)),
    "Greater": _each(_compared(sympy.Gt)),
    "GreaterOrEqual": _each(_compared(sympy.Ge)),
    "Where": _where,
    "Cast": _cast,
    "Identity": lambda call, x: x,
    "Gather": lambda call, x, index: np.take(x, index.astype(np.int64), axis=call.attribute("axis", 0)),
    "Concat": lambda call, *parts: np.concatenate(parts, call.attribute("axis", 0)),
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Reshape": _reshape,
    "Flatten": lambda call, x: x.reshape(1, -1) if call.attribute("axis", 1) == 0 else None,
    "Expand": _expand,
    "ReduceProd": _reduce(np.multiply),
    "ReduceSum": _reduce(np.add),
    "Shape": lambda call, x: np.array(x.shape, object)[
        call.attribute("start", 0) : call.attribute("end", None)
    ],
    "Size": lambda call, x: np.array(x.size, object),
}
