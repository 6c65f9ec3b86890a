"""Symbolic dimensions: an int, or a sympy expression over named dims such as `batch` and `seq`.

A dim name carries its bounds in the graph (`Graph.dims`), not in the symbol, so that one model can be
compiled for other bounds. The algebra is sympy's; this file only prints, parses, bounds and evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import sympy
from sympy.printing.c import C99CodePrinter

from llmc.errors import LlmcError

Dim = Any  # int | sympy.Expr; sympy ships no types


class Bounds(NamedTuple):
    """Inclusive range of a named dim."""

    low: int
    high: int


class floordiv(sympy.Function):  # noqa: N801 - printed and parsed under this name
    """a // b of positive integers, kept whole where it does not divide."""

    nargs = 2
    is_integer = True
    is_nonnegative = True

    @classmethod
    def eval(cls, a: Any, b: Any) -> Any:
        if b == 1:
            return a
        if a.is_Integer and b.is_Integer:
            return a // b


def ceil_div(a: Dim, b: int) -> Dim:
    """The number of parts of size `b` that cover `a`."""
    return dim(floordiv(sympy.sympify(a) + (b - 1), sympy.Integer(b)))


@lru_cache(maxsize=None)
def symbol(name: str) -> sympy.Symbol:
    """The dim called `name`, a positive integer."""
    return sympy.Symbol(name, integer=True, positive=True)


def dim(value: Any) -> Dim:
    """`value` as an int if it is one, as a sympy expression if not; a str is parsed."""
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
    names = {"Max": sympy.Max, "Min": sympy.Min, "floordiv": floordiv}
    try:
        tree = compile(text, "<dim>", "eval")
        symbols = {n: symbol(n) for n in tree.co_names if n not in names}
        return dim(eval(tree, {"__builtins__": {}}, {**names, **symbols, "Integer": sympy.Integer}))
    except (SyntaxError, TypeError, NameError, AttributeError, ValueError) as error:
        raise LlmcError(f"not a dimension: {text!r}", hint="write an int or an expression such as 2*seq + 1") from error


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
    return int(value.subs({s: sizes[str(s)] for s in value.free_symbols}))


def upper_bound(value: Dim, bounds: Mapping[str, Bounds]) -> int:
    """The value at every dim's upper bound: the maximum, as all sizes in llmc grow with their dims."""
    return evaluate(value, {name: b.high for name, b in bounds.items()})


class _CPrinter(C99CodePrinter):  # type: ignore[misc]
    """Integer C: divisions only by `floordiv`, minimum and maximum by the program's own helpers."""

    def _print_floordiv(self, expr: Any) -> str:
        a, b = (self._print(arg) for arg in expr.args)
        return f"(({a})/({b}))"

    def _print_Max(self, expr: Any) -> str:
        return self._nested("llmc_max", expr.args)

    def _print_Min(self, expr: Any) -> str:
        return self._nested("llmc_min", expr.args)

    def _nested(self, name: str, args: Any) -> str:
        first, *rest = (self._print(arg) for arg in args)
        return f"{name}({first}, {self._nested_text(name, rest)})" if rest else first

    def _nested_text(self, name: str, args: list[str]) -> str:
        first, *rest = args
        return f"{name}({first}, {self._nested_text(name, rest)})" if rest else first

    def _print_Pow(self, expr: Any) -> str:
        base, power = expr.args
        assert power.is_Integer and power > 0, f"not an integer expression: {expr}"
        return "(" + "*".join([f"({self._print(base)})"] * int(power)) + ")"


def dim_c(value: Dim) -> str:
    """`value` as a C expression over int64_t variables named like the dims."""
    return str(_CPrinter().doprint(sympy.sympify(value)))


def product(dims: Any) -> Dim:
    """The product of some dims, 1 for none."""
    total: Dim = 1
    for d in dims:
        total = total * d
    return dim(total)
