"""Sums of floats on TIR vectors: a product that feeds one is an explicit fma, so that no code generator decides."""

from __future__ import annotations

from llmc.targets.tir.emit import Emitter, Expr, dtype_of, fma, lanes_of, splat
from llmc.targets.tir.later import tirx


def _definition(k: Emitter, value: Expr) -> Expr:
    while isinstance(value, tirx.Var) and str(value.name) in k.bound:
        value = k.bound[str(value.name)]
    return value


def _is_minus_one(value: Expr) -> bool:
    value = value.value if isinstance(value, tirx.Broadcast) else value
    return isinstance(value, tirx.FloatImm) and float(value.value) == -1.0


def _term(k: Emitter, value: Expr) -> tuple[bool, Expr, tuple[Expr, Expr] | None]:
    """`value` as (negated, |value's body|, factors if that is a product)."""
    negated = False
    while True:
        made = _definition(k, value)
        if not isinstance(made, tirx.Mul):
            return negated, value, None
        if not _is_minus_one(made.b):
            return negated, value, (made.a, made.b)
        negated, value = not negated, made.a


def is_product(k: Emitter, value: Expr) -> bool:
    """Whether `float_sum` sees a product in it, or a negation."""
    negated, _, factors = _term(k, value)
    return negated or factors is not None


def negative(value: Expr, negated: bool = True) -> Expr:
    """-value, exact; also for 0."""
    dtype = "float64" if dtype_of(value).startswith("float64") else "float32"
    return value * splat(tirx.FloatImm(dtype, -1.0), lanes_of(value)) if negated else value


def float_sum(k: Emitter, a: Expr, b: Expr, minus: bool = False) -> Expr:
    """a + b or a - b of f32 or f64; a product among them is fused: the code generator would, by its own lights."""
    (down_a, body_a, factors_a), (down_b, body_b, factors_b) = _term(k, a), _term(k, b)
    down_b ^= minus
    if factors_a:
        return fma(negative(factors_a[0], down_a), factors_a[1], negative(body_b, down_b))
    if factors_b:
        return fma(negative(factors_b[0], down_b), factors_b[1], negative(body_a, down_a))
    if down_a and down_b:
        return negative(k.let(body_a + body_b))
    if down_a:
        return body_b - body_a
    return body_a - body_b if down_b else body_a + body_b
