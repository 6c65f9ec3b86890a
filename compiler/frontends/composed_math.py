"""Functions and activations in elementary ops, without overflow and without loss near zero."""

from __future__ import annotations

import math

from llmc.compiler.frontends.composed import number
from llmc.compiler.frontends.parts import Maker, sliced
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


def log_sum_exp(m: Maker, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    """log(sum(exp(x))), of the differences to the largest element, which is 0 where it is not finite."""
    top = m.op("max", x, axes=axes, keepdims=True)
    finite = m.op("lt", m.op("abs", top), number(m, float("inf"), x))
    held = m.op("where", finite, top, number(m, 0, x))
    total = m.op("sum", m.op("exp", m.op("sub", x, held)), axes=axes, keepdims=True)
    made = m.op("add", m.op("log", total), held)
    rest = tuple(d for i, d in enumerate(made.shape) if i not in axes)
    return made if keepdims else m.reshape(made, rest)


_BITS = 6  # of an exponent: two to the 63rd is the largest power that any integer holds


def integer_power(m: Maker, x: Node, exponent: Node) -> Node:
    """x ** exponent modulo what the dtype holds: the squares of x that the bits of the exponent name."""
    one, two = number(m, 1, x), number(m, 2, x)
    made, rest = one, exponent
    for bit in range(_BITS):
        odd = m.op("ne", m.op("mod", rest, two), number(m, 0, x))
        made = m.op("where", odd, m.op("mul", made, x), made)
        if bit + 1 < _BITS:
            x, rest = m.op("mul", x, x), m.op("floordiv", rest, two)
    return m.op("where", m.op("lt", exponent, number(m, 0, x)), number(m, 0, x), made)


def running_product(m: Maker, x: Node, axis: int) -> Node:
    """The product of all elements up to each, in steps that double."""
    size, step = x.shape[axis], 1
    m.require(isinstance(size, int), "a running product along an axis of dynamic size")
    while isinstance(size, int) and step < size:
        before = tuple(step if a == axis else 0 for a in range(x.type.rank))
        part = sliced(m, x, axis, 0, size - step)
        x = m.op("mul", x, m.op("pad", part, before=before, after=(0,) * x.type.rank, value=1))
        step *= 2
    return x


def inverse_sine(m: Maker, x: Node) -> Node:
    """atan(x / sqrt(1 - x**2)), the root by its factors, which lose nothing near 1."""
    one = number(m, 1, x)
    root = m.op("sqrt", m.op("mul", m.op("sub", one, x), m.op("add", one, x)))
    inside = arc_tangent(m, m.op("div", x, root))
    outside = m.op("gt", m.op("abs", x), one)
    return m.op("where", outside, number(m, float("nan"), x), inside)


# atan on [0, tan(pi/8)] as x + x**3 * P(x**2), minimax (Cephes, atanf); highest power first
_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
_EIGHTH = math.tan(math.pi / 8)


def arc_tangent(m: Maker, x: Node) -> Node:
    """By the part of the circle that |x| lies in: atan(x) = pi/2 - atan(1/x) = pi/4 + atan((x - 1) / (x + 1))."""
    one, size = number(m, 1, x), m.op("abs", x)
    steep, middle = (m.op("gt", size, number(m, limit, x)) for limit in (1 / _EIGHTH, _EIGHTH))
    turned = m.op("div", number(m, -1, x), size)
    half = m.op("div", m.op("sub", size, one), m.op("add", size, one))
    inner = m.op("where", steep, turned, m.op("where", middle, half, size))
    angles = [number(m, angle, x) for angle in (math.pi / 2, math.pi / 4, 0)]
    start = m.op("where", steep, angles[0], m.op("where", middle, angles[1], angles[2]))
    square = m.op("mul", inner, inner)
    series = number(m, _ATAN[0], x)
    for factor in _ATAN[1:]:
        series = m.op("add", m.op("mul", series, square), number(m, factor, x))
    angle = m.op("add", start, m.op("add", inner, m.op("mul", m.op("mul", inner, square), series)))
    return m.op("where", m.op("lt", x, number(m, 0, x)), m.op("neg", angle), angle)
