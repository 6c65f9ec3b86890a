"""Symbolic dimensions: an int, or a sympy expression over named dims such as `batch` and `seq`.

A dim name carries its bounds in the graph (`Graph.dims`), not in the symbol, so that one model can be
compiled for other bounds. The algebra is sympy's; this file only prints, parses, bounds and evaluates.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Collection, Mapping
from functools import cache, reduce
from typing import Any, NamedTuple

import sympy

from llmc.errors import LlmcError

Dim = Any  # int | sympy.Expr; sympy ships no types


class Bounds(NamedTuple):
    """Inclusive range of a named dim."""

    low: int
    high: int


@cache
def symbol(name: str) -> sympy.Symbol:
    """The dim called `name`, an integer of at least 0: what a state holds begins with none of it."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def from_one(value: Dim, zero: Collection[str] = ()) -> Dim:
    """`value` with what follows from dims being at least 1, all but those of `zero`: Max(1, seq) -> seq."""
    if isinstance(value, int):
        return value
    symbols = [s for s in value.free_symbols if s.name not in zero]
    positive = {s: sympy.Symbol(s.name, integer=True, positive=True) for s in symbols}
    found = dim(value.xreplace(positive).xreplace({p: s for s, p in positive.items()}))
    if isinstance(found, int) or not found.has(sympy.Max, sympy.Min):
        return found
    return dim(found.xreplace({s: s + 1 for s in symbols}).xreplace({s: s - 1 for s in symbols}))


def dim(value: Any) -> Dim:
    """`value` as an int if it is one, as a sympy expression if not; a str is parsed."""
    if type(value) is int or isinstance(value, sympy.Symbol):
        return value
    if isinstance(value, str):
        return parse_dim(value)
    if isinstance(value, sympy.Expr):
        expr = sympy.expand(value)
        return int(expr) if expr.is_Integer else expr
    return int(value)


def parse_dim(text: str) -> Dim:
    """The dim written by `dim_text`.

    Raises:
        LlmcError: the text is not an expression over names and integers.
    """
    try:
        value = dim(_expression(ast.parse(text.strip(), mode="eval").body))
        if not isinstance(value, int) and (not value.free_symbols or value.has(sympy.zoo, sympy.nan)):
            raise ValueError  # 1/2, or a division by zero
        return value
    except (SyntaxError, TypeError, KeyError, ValueError, RecursionError, ZeroDivisionError) as error:
        raise LlmcError(
            f"not a dimension: {text!r}", hint="write an int or an expression such as 2*seq + 1"
        ) from error


_FUNCTIONS = {"Max": sympy.Max, "Min": sympy.Min, "floor": lambda x: floored(x)}
_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def _expression(tree: ast.expr) -> Any:
    """The sympy expression of a Python syntax tree. The text may come from anywhere: nothing is evaluated."""
    match tree:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return sympy.Integer(value)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=op, operand=x):
            return _OPERATORS[type(op)](_expression(x))
        case ast.BinOp(left=x, op=ast.Pow(), right=ast.Constant(value=int(power))) if 0 < power < 16:
            return _expression(x) ** power
        case ast.BinOp(left=x, op=op, right=y) if not isinstance(op, ast.Pow):
            return _OPERATORS[type(op)](_expression(x), _expression(y))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _FUNCTIONS[name](*map(_expression, arguments))
    raise ValueError


def dim_text(value: Dim) -> str:
    """Text that `parse_dim` reads back."""
    return str(value)


def dim_names(value: Dim) -> frozenset[str]:
    """The named dims in `value`."""
    return frozenset() if isinstance(value, int) else frozenset(str(s) for s in value.free_symbols)


def evaluate(value: Dim, sizes: Mapping[str, int]) -> int:
    """`value` at the given sizes.

    Raises:
        KeyError: a named dim has no size.
    """
    if isinstance(value, int):
        return value
    if isinstance(value, sympy.Symbol):  # most are, and sympy's way takes long
        return int(sizes[value.name])
    return int(value.subs({s: sizes[str(s)] for s in value.free_symbols}))


def upper_bound(value: Dim, bounds: Mapping[str, Bounds]) -> int:
    """The value at every dim's upper bound: the maximum, as all sizes in llmc grow with their dims."""
    return evaluate(value, {name: b.high for name, b in bounds.items()})


def dim_c(value: Dim) -> str:
    """`value` as a C expression in integer arithmetic over int64_t variables named like the dims.

    `llmc_max`, `llmc_min` and, for quotients, `llmc_floor` take two arguments.
    """
    if isinstance(value, (int, sympy.Integer, sympy.Symbol)):
        return str(value)
    if isinstance(value, sympy.floor) or _divides(value):
        return _quotient(value.args[0] if isinstance(value, sympy.floor) else value)
    parts = [dim_c(part) for part in value.args]
    if isinstance(value, sympy.Add):
        return f"({' + '.join(parts)})"
    if isinstance(value, sympy.Mul):
        return f"({' * '.join(parts)})"
    if isinstance(value, sympy.Pow):
        return f"({' * '.join([parts[0]] * int(value.exp))})"
    assert isinstance(value, (sympy.Max, sympy.Min)), f"no C form of {value!r}"
    name = "llmc_max" if isinstance(value, sympy.Max) else "llmc_min"
    return reduce(lambda a, b: f"{name}({a}, {b})", parts)


def _divides(value: Dim) -> bool:
    """Whether a term has a factor such as 1/2 or 1/seq: it is whole at the sizes a graph takes (constraints.py)."""
    factors = (factor for term in sympy.Add.make_args(value) for factor in sympy.Mul.make_args(term))
    return any(
        factor.as_base_exp()[1].is_negative or (factor.is_Number and not factor.is_Integer)
        for factor in factors
    )


def _quotient(value: Dim) -> str:
    numerator, denominator = sympy.fraction(sympy.together(value))
    numerator = sympy.expand(numerator)
    over, under = dim_c(numerator), dim_c(denominator)
    positive = all(term.as_coeff_Mul()[0] > 0 for term in sympy.Add.make_args(numerator))
    return f"({over} / {under})" if positive else f"llmc_floor({over}, {under})"  # C's / is no floor below 0


def floored(value: Any) -> Any:
    """The floor of an expression in one form, so that equal sizes are equal expressions.

    Of floors in a row one is left, floor((floor(u) + m) / n) = floor((u + m) / n), and of a constant the part below 1.
    """
    value = sympy.expand(value)
    for term in sympy.Add.make_args(value):
        factor, inner = term.as_coeff_Mul()
        rest = value - term
        if isinstance(inner, sympy.floor) and factor.p == 1 and (rest * factor.q).is_integer:
            return floored(rest + factor * inner.args[0])
    whole = sympy.floor(value.as_coeff_Add()[0])
    return sympy.floor(value - whole) + whole


def floor_div(a: Dim, b: int) -> Dim:
    """a // b for a positive b."""
    return a // b if isinstance(a, int) else dim(floored(a / sympy.Integer(b)))


def ceil_div(a: Dim, b: int) -> Dim:
    """The number of parts of size `b` that cover `a`."""
    return floor_div(dim(a + (b - 1)), b)


def product(dims: Any) -> Dim:
    """The product of some dims, 1 for none."""
    total: Dim = 1
    for d in dims:
        total = total * d
    return dim(total)
