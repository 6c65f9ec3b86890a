"""Element-wise ops, and `chain`, a fused sequence of them.

References of inexact functions compute in float64 and round once, so that they are an oracle for kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmc.compiler.graph import DTYPES, TensorType
from llmc.compiler.ops.declare import OPS, REQUIRED, op
from llmc.compiler.ops.rules import FLOATS, INTEGERS, NUMBERS, Array, broadcast, want_dtype, want_same_dtype
from llmc.compiler.ops.traits import Known, Partial
from llmc.errors import LlmcError

Function = Callable[..., Array]
BOOL = frozenset({"bool"})
DOUBLES = frozenset({"f64"})
EVERY = frozenset(DTYPES)


def erf64(x: Array) -> Array:
    """The error function in float64; NumPy has none."""
    x = np.asarray(x, np.float64)
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def sigmoid64(x: Array) -> Array:
    """1 / (1 + exp(-x)); for large negative x, exp overflows to inf and the result is 0."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def gelu64(x: Array) -> Array:
    """x * Phi(x), Phi the normal distribution function."""
    return np.where(np.isneginf(x), 0.0, 0.5 * x * (1.0 + erf64(x * math.sqrt(0.5))))


def gelu_tanh64(x: Array) -> Array:
    """The tanh approximation of gelu (Hendrycks and Gimpel 2016)."""
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)
    return np.where(np.isneginf(x), 0.0, 0.5 * x * (1.0 + np.tanh(inner)))


# P of `gelu_poly`, highest power first: minimax in the error of gelu up to the limit, with 1/2 + x P(x**2) = 1 there
GELU_POLY = (-5.01109679e-7, 2.73061166e-5, -6.23248443e-4, 7.88405368e-3, -6.26807146e-2, 3.96552324e-1)
GELU_LIMIT = 3.66


def gelu_poly64(x: Array) -> Array:
    """gelu to 5e-4, for results that are rounded to int8: x (1/2 + x P(x**2)), with x limited to +-GELU_LIMIT."""
    x = np.maximum(x, -GELU_LIMIT)
    t = np.minimum(x, GELU_LIMIT)
    return np.asarray(x * (0.5 + t * np.polyval(GELU_POLY, t * t)))


def silu64(x: Array) -> Array:
    """x * sigmoid(x)."""
    return np.where(np.isneginf(x), 0.0, x * sigmoid64(x))


def relu(x: Array) -> Array:
    """max(x, 0); NaN stays."""
    return np.asarray(np.maximum(x, np.zeros((), x.dtype)))


def _sign(x: Array) -> Array:
    """-1, 0 or 1; NaN gives 0, as in PyTorch."""
    zero = np.zeros((), x.dtype)
    result: Array = (x > zero).astype(x.dtype) - (x < zero).astype(x.dtype)
    return result


def _rounded(function: Function) -> Function:
    """`function` of float64 arrays, rounded once to the dtype of the first argument."""

    def reference(*arrays: Array) -> Array:
        result: Array = function(*(a.astype(np.float64) for a in arrays))
        return np.asarray(result).astype(arrays[0].dtype)

    return reference


def _unary(name: str, allowed: frozenset[str], reference: Function, **traits: Any) -> None:
    def rule(x: TensorType) -> TensorType:
        want_dtype(x, allowed)
        return x

    op(name, reference, traits={"elementwise": True, **traits})(rule)


def _binary(
    name: str,
    allowed: frozenset[str],
    reference: Function,
    result: str | None = None,
    **traits: Any,
) -> None:
    def rule(a: TensorType, b: TensorType) -> TensorType:
        want_same_dtype(a, b)
        want_dtype(a, allowed)
        return TensorType(result or a.dtype, broadcast(a.shape, b.shape))

    op(name, reference, traits={"elementwise": True, **traits})(rule)


def _absorbed(zero: bool) -> Partial:
    """The value of a product, or of a sum of flags: one operand decides it, if what is not known is finite."""

    def value(a: Known, b: Known) -> Known:
        for x in (a, b):
            if x is not None and bool(x) == zero:
                return x
        return None

    return value


def _chosen(c: Known, a: Known, b: Known) -> Known:
    return None if c is None else a if c else b


_unary("neg", NUMBERS | DOUBLES, np.negative)
_unary("abs", NUMBERS, np.abs)
_unary("sign", NUMBERS, _sign)
_unary("floor", FLOATS, np.floor)
_unary("ceil", FLOATS, np.ceil)
_unary("sqrt", FLOATS, np.sqrt, cost=4)
_unary("relu", NUMBERS, relu)
_unary("not", BOOL, np.logical_not)
_CLOSE: dict[str, tuple[Function, int]] = {
    "exp": (np.exp, 16),
    "log": (np.log, 60),
    "rsqrt": (lambda x: 1.0 / np.sqrt(x), 8),
    "sin": (np.sin, 50),
    "cos": (np.cos, 50),
    "tanh": (np.tanh, 18),
    "sigmoid": (sigmoid64, 20),
    "erf": (erf64, 18),
    "silu": (silu64, 20),
}
for _name, (_function, _cost) in _CLOSE.items():
    _unary(_name, FLOATS, _rounded(_function), accuracy="close", cost=_cost)

_binary("add", NUMBERS | DOUBLES, np.add, commutative=True)
_binary("sub", NUMBERS | DOUBLES, np.subtract)
_binary("mul", NUMBERS | DOUBLES, np.multiply, commutative=True, partial=_absorbed(False))
_binary("div", FLOATS | DOUBLES, np.divide, cost=4)
_binary("pow", FLOATS, _rounded(np.power), accuracy="close", cost=120)
_binary("maximum", NUMBERS, np.maximum, commutative=True)
_binary("minimum", NUMBERS, np.minimum, commutative=True)
_binary("floordiv", NUMBERS, np.floor_divide, cost=60)
_binary("mod", NUMBERS, np.mod, cost=60)
_binary("eq", EVERY, np.equal, result="bool", commutative=True)
_binary("ne", EVERY, np.not_equal, result="bool", commutative=True)
_binary("lt", NUMBERS, np.less, result="bool")
_binary("le", NUMBERS, np.less_equal, result="bool")
_binary("gt", NUMBERS, np.greater, result="bool")
_binary("ge", NUMBERS, np.greater_equal, result="bool")
_binary("and", BOOL, np.logical_and, commutative=True, partial=_absorbed(False))
_binary("or", BOOL, np.logical_or, commutative=True, partial=_absorbed(True))
_binary("xor", BOOL, np.logical_xor, commutative=True)
_binary("bitand", INTEGERS, np.bitwise_and, commutative=True)
_binary("bitor", INTEGERS, np.bitwise_or, commutative=True)
_binary("bitxor", INTEGERS, np.bitwise_xor, commutative=True)


def _gelu_reference(x: Array, approximate: str) -> Array:
    return _rounded(gelu64 if approximate == "none" else gelu_tanh64)(x)


@op(
    "gelu", _gelu_reference, traits={"elementwise": True, "accuracy": "close", "cost": 22}, approximate="none"
)
def _gelu(x: TensorType, approximate: str) -> TensorType:
    want_dtype(x, {"f32"})
    if approximate not in ("none", "tanh"):
        raise LlmcError(f"approximate is {approximate!r}", hint='use "none" or "tanh"')
    return x


def _cast_reference(x: Array, dtype: str) -> Array:
    return x != 0 if dtype == "bool" else x.astype(DTYPES[dtype])


@op("cast", _cast_reference, traits={"elementwise": True}, dtype=REQUIRED)
def _cast(x: TensorType, dtype: str) -> TensorType:
    if {x.dtype, dtype} == {"f16", "f64"}:
        raise LlmcError("no processor casts between f16 and f64", hint="cast to f32 first")
    return TensorType(dtype, x.shape)


@op("where", np.where, traits={"elementwise": True, "partial": _chosen})
def _where(c: TensorType, a: TensorType, b: TensorType) -> TensorType:
    want_dtype(c, BOOL, "the condition")
    want_same_dtype(a, b)
    return TensorType(a.dtype, broadcast(c.shape, a.shape, b.shape))


# --- chain

Step = tuple[str, tuple[int, ...], tuple[tuple[str, Any], ...]]


def chain_value(ref: int, inputs: Sequence[Any], results: Sequence[Any]) -> Any:
    """What an argument reference of a chain's body means: input `ref`, or the result of step `-ref - 1`."""
    return inputs[ref] if ref >= 0 else results[-ref - 1]


def _is_step(step: Any) -> bool:
    match step:
        case (str(), tuple(refs), tuple(attributes)):
            pairs = all(isinstance(a, tuple) and len(a) == 2 and isinstance(a[0], str) for a in attributes)
            return pairs and all(type(r) is int for r in refs)
    return False


def _chain_reference(*arrays: Array, body: tuple[Step, ...]) -> Array:
    results: list[Array] = []
    for name, refs, attributes in body:
        arguments = [chain_value(r, arrays, results) for r in refs]
        results.append(OPS[name].reference(*arguments, **OPS[name].complete(dict(attributes))))
    return np.broadcast_to(results[-1], np.broadcast_shapes(*(a.shape for a in arrays)))


def _chain_partial(*arguments: Known, body: tuple[Step, ...]) -> Known:
    results: list[Known] = []
    for name, refs, attributes in body:
        values = [chain_value(r, arguments, results) for r in refs]
        results.append(OPS[name].known(values, OPS[name].complete(dict(attributes))))
    return results[-1]


_CHAIN = {"elementwise": True, "accuracy": "close", "partial": _chain_partial}


@op("chain", _chain_reference, traits=_CHAIN, body=REQUIRED)
def _chain(*inputs: TensorType, body: tuple[Step, ...]) -> TensorType:
    if not isinstance(body, tuple) or not body:
        raise LlmcError("body is not a tuple of at least one step")
    results: list[TensorType] = []
    for number, step in enumerate(body):
        if not _is_step(step):
            raise LlmcError(f"step {number} is {step!r}, not (op, argument references, attributes)")
        name, refs, attributes = step
        declared = OPS.get(name)
        if declared is None or not declared.elementwise or name == "chain":
            raise LlmcError(f"step {number} is {name!r}, not a simple element-wise op")
        for ref in refs:
            if not -len(results) <= ref < len(inputs):
                raise LlmcError(f"step {number} reads {ref}, not an input or an earlier step")
        arguments = [chain_value(r, inputs, results) for r in refs]
        results.append(declared.rule(*arguments, **declared.complete(dict(attributes))))
    return TensorType(results[-1].dtype, broadcast(*(t.shape for t in inputs)))
