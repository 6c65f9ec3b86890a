"""Functions and activations in elementary ops, without overflow and without loss near zero."""

from __future__ import annotations

import math

from llmc.compiler.frontends.composed import number
from llmc.compiler.frontends.parts import Maker
from llmc.compiler.graph import Node


def log1p(m: Maker, x: Node) -> Node:
    """log(1 + x) with the digits that 1 + x loses (Kahan): with u = 1 + x it is log(u) * x / (u - 1)."""
    one, zero = number(m, 1, x), number(m, 0, x)
    u = m.op("add", x, one)
    held = m.op("sub", u, one)
    logarithm = m.op("log", u)
    exact = m.op("where", m.op("eq", held, x), logarithm, m.op("mul", logarithm, m.op("div", x, held)))
    return m.op("where", m.op("eq", held, zero), x, exact)


def expm1(m: Maker, x: Node) -> Node:
    """exp(x) - 1 = tanh(x / 2) * (exp(x) + 1)"""
    half = m.op("tanh", m.op("mul", x, number(m, 0.5, x)))
    return m.op("mul", half, m.op("add", m.op("exp", x), number(m, 1, x)))


def softplus(m: Maker, x: Node, beta: float = 1.0, threshold: float = 20.0) -> Node:
    """log(1 + exp(beta * x)) / beta, or x itself where beta * x is above the threshold."""
    scaled = x if beta == 1 else m.op("mul", x, number(m, beta, x))
    soft = log1p(m, m.op("exp", scaled))
    soft = soft if beta == 1 else m.op("div", soft, number(m, beta, x))
    return m.op("where", m.op("gt", scaled, number(m, threshold, x)), x, soft)


def log_sigmoid(m: Maker, x: Node) -> Node:
    """min(x, 0) - log(1 + exp(-|x|))"""
    low = m.op("minimum", x, number(m, 0, x))
    return m.op("sub", low, log1p(m, m.op("exp", m.op("neg", m.op("abs", x)))))


def mish(m: Maker, x: Node) -> Node:
    """x * tanh(softplus(x))"""
    return m.op("mul", x, m.op("tanh", softplus(m, x)))


def elu(m: Maker, x: Node, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Node:
    """scale * x above zero, scale * alpha * (exp(input_scale * x) - 1) below"""
    inner = x if input_scale == 1 else m.op("mul", x, number(m, input_scale, x))
    low = m.op("mul", expm1(m, inner), number(m, alpha * scale, x))
    high = x if scale == 1 else m.op("mul", x, number(m, scale, x))
    return m.op("where", m.op("gt", x, number(m, 0, x)), high, low)


SELU = (1.6732632423543772, 1.0507009873554805)  # alpha and scale (Klambauer et al. 2017)


def celu(m: Maker, x: Node, alpha: float) -> Node:
    """x above zero, alpha * (exp(x / alpha) - 1) below"""
    return elu(m, x, alpha, 1.0, 1.0 / alpha)


def sloped(m: Maker, x: Node, slope: Node) -> Node:
    """x above zero, slope * x below"""
    return m.op("where", m.op("gt", x, number(m, 0, x)), x, m.op("mul", x, slope))


def above(m: Maker, x: Node, threshold: float, value: float) -> Node:
    """x where it is above the threshold, else `value`"""
    return m.op("where", m.op("gt", x, number(m, threshold, x)), x, number(m, value, x))


def logit(m: Maker, x: Node, eps: float | None) -> Node:
    """log(x / (1 - x)), x within eps..1 - eps"""
    if eps is not None:
        x = m.op("minimum", m.op("maximum", x, number(m, eps, x)), number(m, 1 - eps, x))
    return m.op("log", m.op("div", x, m.op("sub", number(m, 1, x), x)))


def log_to(m: Maker, x: Node, base: int) -> Node:
    """The logarithm to a base"""
    return m.op("mul", m.op("log", x), number(m, 1 / math.log(base), x))
