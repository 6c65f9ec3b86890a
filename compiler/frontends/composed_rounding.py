"""Roundings, and quotients toward zero with their remainders, written out in ops of the IR."""

from __future__ import annotations

from llmc.compiler.frontends.composed import number
from llmc.compiler.frontends.parts import Maker
from llmc.compiler.frontends.ranges import Ranges, is_nonnegative
from llmc.compiler.graph import Node

_FLOATS = ("f32", "f16")


def truncated(m: Maker, x: Node) -> Node:
    """x without what is behind the point."""
    below = m.op("lt", x, number(m, 0, x))
    return m.op("where", below, m.op("ceil", x), m.op("floor", x))


def truncated_quotient(m: Maker, a: Node, b: Node) -> Node:
    """a / b toward zero: of integers one more than the floor where the signs differ and something is left."""
    if a.dtype in _FLOATS:
        return truncated(m, m.op("div", a, b))
    whole = m.op("floordiv", a, b)
    ranges = Ranges()
    if a.dtype == "u8" or all(is_nonnegative(ranges[n].low) for n in (a, b)):
        return whole
    more = m.op("and", _differ(m, a, b), m.op("ne", m.op("mul", whole, b), a))
    return m.op("add", whole, m.op("cast", more, dtype=a.dtype))


def truncated_rest(m: Maker, a: Node, b: Node) -> Node:
    """a - b * (a / b toward zero): the sign is the dividend's. Of floats by their magnitudes, which is exact."""
    zero = number(m, 0, a)
    if a.dtype in _FLOATS:
        rest = m.op("mod", m.op("abs", a), m.op("abs", b))
        signed = m.op("where", m.op("lt", a, zero), m.op("neg", rest), rest)
        return m.op(
            "where", m.op("eq", a, zero), m.op("sub", a, rest), signed
        )  # of -0 nothing is left but -0
    rest = m.op("mod", a, b)
    over = m.op("and", _differ(m, a, b), m.op("ne", rest, zero))
    return m.op("where", over, m.op("sub", rest, b), rest)


def _differ(m: Maker, a: Node, b: Node) -> Node:
    """Whether one of both is below zero."""
    zero = number(m, 0, a)
    return m.op("xor", m.op("lt", a, zero), m.op("lt", b, zero))


def nearest_even(m: Maker, x: Node) -> Node:
    """To the nearest, halves to the even one: floor, or ceil where what is left is above a half or odd.

    Not floor and one more: -0.3 becomes -0, as in PyTorch and ONNX.
    """
    if x.dtype not in _FLOATS:
        return x
    low, half = m.op("floor", x), number(m, 0.5, x)
    rest = m.op("sub", x, low)
    odd = m.op("ne", m.op("mod", low, number(m, 2, x)), number(m, 0, x))
    up = m.op("or", m.op("gt", rest, half), m.op("and", m.op("eq", rest, half), odd))
    return m.op("where", up, m.op("ceil", x), low)
