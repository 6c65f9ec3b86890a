"""Element-wise ops of the IR on TIR vectors.

`apply` takes and returns vectors of the op's dtypes; a bool is a TIR condition. f16 is computed in f32
and rounded after each op, as NumPy does. NaN is the references'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmc.compiler import extensions
from llmc.compiler.ops import OPS
from llmc.errors import LlmcError
from llmc.targets.tir import math, math64
from llmc.targets.tir.emit import STORAGE, Emitter, Expr, dtype_of, lanes_of, splat, vector
from llmc.targets.tir.later import tirx
from llmc.targets.tir.sums import float_sum, negative

Operation = Callable[..., Expr]
_SUMMED = ("f32", "f64")


def constant(dtype: str, value: float, lanes: int) -> Expr:
    """`value` in every lane, in the storage dtype of llmc dtype `dtype`."""
    storage = STORAGE[dtype]
    if is_float(dtype):
        return splat(tirx.FloatImm(storage, float(value)), lanes)
    return splat(tirx.IntImm(storage, int(value)), lanes)


def is_float(dtype: str) -> bool:
    return dtype in ("f32", "f16", "f64")


def from_storage(k: Emitter, dtype: str, value: Expr) -> Expr:
    """What a load gave, as `apply` wants it: bytes become conditions."""
    return k.let(tirx.NE(value, constant("bool", 0, lanes_of(value)))) if dtype == "bool" else value


def to_storage(dtype: str, value: Expr) -> Expr:
    """The inverse of `from_storage`."""
    return tirx.Cast(vector("uint8", lanes_of(value)), value) if dtype == "bool" else value


# --- arithmetic


def _add(k: Emitter, dtype: str, a: Expr, b: Expr) -> Expr:
    return float_sum(k, a, b) if dtype in _SUMMED else a + b


def _sub(k: Emitter, dtype: str, a: Expr, b: Expr) -> Expr:
    return float_sum(k, a, b, minus=True) if dtype in _SUMMED else a - b


def _neg(k: Emitter, dtype: str, x: Expr) -> Expr:
    return negative(x) if dtype in _SUMMED else constant(dtype, 0, lanes_of(x)) - x


def _abs(k: Emitter, dtype: str, x: Expr) -> Expr:
    if dtype == "f32":
        return tirx.abs(x)
    zero = constant(dtype, 0, lanes_of(x))
    return x if dtype == "u8" else tirx.Select(x < zero, zero - x, x)


def _sign(k: Emitter, dtype: str, x: Expr) -> Expr:
    zero, one = (constant(dtype, v, lanes_of(x)) for v in (0, 1))
    if dtype == "u8":
        return tirx.Select(x > zero, one, zero)
    below = tirx.Select(x < zero, constant(dtype, -1, lanes_of(x)), zero)
    return tirx.Select(x > zero, one, below)


def maximum(k: Emitter, dtype: str, a: Expr, b: Expr) -> Expr:
    """The larger; NaN if either is. `tirx.max` picks b when a comparison is false."""
    larger = tirx.max(a, b)
    return tirx.Select(tirx.EQ(a, a), larger, a) if dtype == "f32" else larger


def minimum(k: Emitter, dtype: str, a: Expr, b: Expr) -> Expr:
    """The smaller; NaN if either is."""
    smaller = tirx.min(a, b)
    return tirx.Select(tirx.EQ(a, a), smaller, a) if dtype == "f32" else smaller


def _relu(k: Emitter, dtype: str, x: Expr) -> Expr:
    return math.relu(k, x) if dtype == "f32" else tirx.max(constant(dtype, 0, lanes_of(x)), x)


def _rsqrt(k: Emitter, dtype: str, x: Expr) -> Expr:
    return splat(1.0, lanes_of(x)) / k.let(tirx.sqrt(x))


def _integer_divmod(k: Emitter, dtype: str, a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """Quotient toward minus infinity and remainder with the divisor's sign; both 0 for b = 0, as in NumPy.

    The machine traps on b = 0 and on INT_MIN / -1, so those lanes divide by 1 instead: a / -1 = -a, wrapped.
    Values go through registers, as in `Emitter.let`: two divisions in a row took the analyzer ten seconds.
    """
    lanes = lanes_of(a)
    zero, one = constant(dtype, 0, lanes), constant(dtype, 1, lanes)
    nothing = k.let(tirx.EQ(b, zero))
    special = nothing if dtype == "u8" else k.let(tirx.bitwise_or(nothing, tirx.EQ(b, zero - one)))
    a, divisor = in_register(k, a), in_register(k, tirx.Select(special, one, b))
    quotient = in_register(k, tirx.truncdiv(a, divisor))
    remainder = in_register(k, a - quotient * divisor)
    if dtype != "u8":
        apart = tirx.bitwise_and(tirx.NE(remainder, zero), tirx.bitwise_xor(remainder < zero, divisor < zero))
        apart = k.let(apart)
        remainder = in_register(k, tirx.Select(apart, remainder + divisor, remainder))
        quotient = in_register(k, tirx.Select(apart, quotient - one, quotient))
        quotient = in_register(k, tirx.Select(special, zero - a, quotient))
    return in_register(k, tirx.Select(nothing, zero, quotient)), remainder


def in_register(k: Emitter, value: Expr) -> Expr:
    """`value` by way of a register, where TVM's analyzer does not look.

    Conditions are bytes there: what TVM reads of a register of conditions is not what it has written.
    """
    if dtype_of(value).startswith("bool"):
        return from_storage(k, "bool", in_register(k, to_storage("bool", value)))
    held = k.registers(1, dtype_of(value))
    k.set(held, 0, value)
    return k.get(held, 0)


def _float_divmod(k: Emitter, a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """NumPy's divmod: from the exact remainder `fmod`, moved to the divisor's side."""
    lanes = lanes_of(a)
    zero, one, half = (splat(v, lanes) for v in (0.0, 1.0, 0.5))
    rest = math64.fmod(k, a, b)
    # by float_sum's rule a product a must not feed a subtraction; through float64 it cannot be contracted
    exact = k.let(math64.difference(k, a, rest) / b)
    apart = tirx.bitwise_and(tirx.NE(rest, zero), tirx.bitwise_xor(rest < zero, b < zero))
    apart = k.let(apart)
    quotient = k.let(tirx.Select(apart, exact - one, exact))
    low = k.let(tirx.floor(quotient))
    low = k.let(tirx.Select(quotient - low > half, low + one, low))
    nothing = k.let(tirx.EQ(b, zero))
    low = tirx.Select(tirx.EQ(quotient, zero), math64.signed_zero(k, k.let(a / b)), low)
    whole = k.let(tirx.Select(nothing, k.let(a / b), low))
    moved = tirx.Select(apart, math64.difference(k, rest, k.let(negative(b))), rest)
    moved = tirx.Select(tirx.EQ(rest, zero), math64.signed_zero(k, b), moved)
    return whole, k.let(tirx.Select(nothing, splat(float("nan"), lanes), moved))


def _floordiv(k: Emitter, dtype: str, a: Expr, b: Expr) -> Expr:
    return (_float_divmod(k, a, b) if dtype == "f32" else _integer_divmod(k, dtype, a, b))[0]


def _mod(k: Emitter, dtype: str, a: Expr, b: Expr) -> Expr:
    return (_float_divmod(k, a, b) if dtype == "f32" else _integer_divmod(k, dtype, a, b))[1]


def _pow(k: Emitter, dtype: str, x: Expr, y: Expr, exponent: int | None = None) -> Expr:
    """`exponent` is y where it is a known small whole number."""
    if exponent is None:
        return math64.pow(k, x, y)
    square = k.let(x * x)
    products = {1: x, 2: square, 3: square * x, 4: square * square}
    return products[exponent]


# --- comparisons and logic


def _equal(k: Emitter, dtype: str, a: Expr, b: Expr) -> Expr:
    return tirx.Not(tirx.bitwise_xor(a, b)) if dtype == "bool" else tirx.EQ(a, b)


def _unequal(k: Emitter, dtype: str, a: Expr, b: Expr) -> Expr:
    """Not `tirx.NE`, which is false for NaN."""
    return tirx.bitwise_xor(a, b) if dtype == "bool" else tirx.Not(tirx.EQ(a, b))


def cast(k: Emitter, source: str, target: str, x: Expr) -> Expr:
    """Between any two dtypes; float to int truncates, anything to bool is != 0."""
    lanes = lanes_of(x)
    if source == target:
        return x
    if target == "bool":
        return _unequal(k, source, x, constant(source, 0, lanes))
    if is_float(source) and target in ("i8", "u8"):
        x = k.let(tirx.Cast(vector("int32", lanes), x))
    return tirx.Cast(vector(STORAGE[target], lanes), x)


def _plain(function: Callable[..., Expr]) -> Operation:
    return lambda k, dtype, *arguments: function(*arguments)


def _of_tir(name: str) -> Operation:
    return lambda k, dtype, *arguments: getattr(tirx, name)(*arguments)


def _float(function: Callable[..., Expr]) -> Operation:
    return lambda k, dtype, *arguments: function(k, *arguments)


def _gelu(k: Emitter, dtype: str, x: Expr, approximate: str = "none") -> Expr:
    return math.gelu(k, x) if approximate == "none" else math.gelu_tanh(k, x)


def _quantize(k: Emitter, dtype: str, x: Expr, scale: Expr, *zero: Expr) -> Expr:
    """`dtype` is that of the zero point, where there is one."""
    lanes = lanes_of(x)
    if not zero:
        level = math.to_level(k, x, k.let(splat(1.0, lanes) / scale))
        return tirx.Cast(vector("int8", lanes), level)
    middle = k.let(tirx.Cast(vector("float32", lanes), zero[0]))
    low = 0 if dtype == "u8" else -128
    return tirx.Cast(vector(STORAGE[dtype], lanes), math.to_level_around(k, x, scale, middle, low))


def _dequantize(k: Emitter, dtype: str, q: Expr, scale: Expr, *zero: Expr) -> Expr:
    wide, lanes = vector("int32", lanes_of(q)), lanes_of(q)
    level = k.let(tirx.Cast(wide, q) - tirx.Cast(wide, zero[0])) if zero else q
    return tirx.Cast(vector("float32", lanes), level) * scale


OPERATIONS: Mapping[str, Operation] = {
    "neg": _neg,
    "abs": _abs,
    "sign": _sign,
    "floor": _of_tir("floor"),
    "ceil": _of_tir("ceil"),
    "sqrt": _of_tir("sqrt"),
    "rsqrt": _rsqrt,
    "relu": _relu,
    "exp": _float(math.exp),
    "tanh": _float(math.tanh),
    "sigmoid": _float(math.sigmoid),
    "erf": _float(math.erf),
    "silu": _float(math.silu),
    "log": _float(math64.log),
    "sin": _float(math64.sin),
    "cos": _float(math64.cos),
    "gelu": _gelu,
    "not": _of_tir("Not"),
    "add": _add,
    "sub": _sub,
    "mul": _plain(lambda a, b: a * b),
    "div": _plain(lambda a, b: a / b),
    "pow": _pow,
    "maximum": maximum,
    "minimum": minimum,
    "floordiv": _floordiv,
    "mod": _mod,
    "eq": _equal,
    "ne": _unequal,
    "lt": _plain(lambda a, b: a < b),
    "le": _plain(lambda a, b: a <= b),
    "gt": _plain(lambda a, b: a > b),
    "ge": _plain(lambda a, b: a >= b),
    "and": _of_tir("bitwise_and"),
    "or": _of_tir("bitwise_or"),
    "xor": _of_tir("bitwise_xor"),
    "bitand": _of_tir("bitwise_and"),
    "bitor": _of_tir("bitwise_or"),
    "bitxor": _of_tir("bitwise_xor"),
    "where": _of_tir("Select"),
    "quantize": _quantize,
    "dequantize": _dequantize,
}


def _computed(
    k: Emitter, op: str, dtype: str, arguments: list[Expr], attributes: Mapping[str, Any], result: str
) -> Expr:
    """By llmc's own code, or that of the extension whose op it is, which is held to the dtype of its result."""
    if op in OPERATIONS:
        return OPERATIONS[op](k, dtype, *arguments, **attributes)
    value = extensions.scalars(k.backend)[op](k, dtype, *arguments, **attributes)
    wanted = vector("bool" if result == "bool" else STORAGE[result], lanes_of(arguments[0]))
    given = dtype_of(value) if hasattr(value, "ty") else repr(value)
    if given != wanted:
        raise LlmcError(f"{OPS[op].origin}: the {k.backend} kernel of {op} gives {given}, not {wanted}")
    return value


def _held(k: Emitter, value: Expr) -> Expr:
    """`value` computed once. Of these kinds by way of a register: TVM's analyzer takes them for ranges of numbers, and
    fails where a range of floats is multiplied; a float made of an integer has the integer's range."""
    if not isinstance(value, tirx.Select | tirx.Min | tirx.Max | tirx.Cast) or not dtype_of(value).startswith(
        ("float32", "float64")
    ):
        return k.let(value)
    return k.let(in_register(k, value))


def apply(
    k: Emitter,
    op: str,
    dtypes: tuple[str, ...],
    result: str,
    arguments: list[Expr],
    attributes: Mapping[str, Any],
) -> Expr:
    """`op` on `arguments` of `dtypes`, giving `result`."""
    if op == "cast":
        return _held(k, cast(k, dtypes[0], result, arguments[0]))
    narrow = [d == "f16" for d in dtypes]
    arguments = [
        k.let(cast(k, "f16", "f32", a)) if is_half else a
        for a, is_half in zip(arguments, narrow, strict=True)
    ]
    compute = "f32" if dtypes[-1] == "f16" else dtypes[-1]
    value = _computed(k, op, compute, arguments, attributes, "f32" if result == "f16" else result)
    value = _held(k, value)
    return k.let(cast(k, "f32", "f16", value)) if result == "f16" else value
