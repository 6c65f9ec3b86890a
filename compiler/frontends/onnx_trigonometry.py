"""ONNX's trigonometric and hyperbolic functions, in elementary ops."""

from __future__ import annotations

import math

from llmc.compiler.frontends import composed_math
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.graph import Node


@onnx_op("Tan", "Asin", "Acos", "Atan")
def _circular(call: Call) -> Node:
    x = call.node(0)
    match call.type:
        case "Tan":
            return call.op("div", call.op("sin", x), call.op("cos", x))
        case "Atan":
            return composed_math.arc_tangent(call, x)
        case "Asin":
            return composed_math.inverse_sine(call, x)
    return call.op("sub", call.number(math.pi / 2, x.dtype), composed_math.inverse_sine(call, x))


@onnx_op("Sinh", "Cosh")
def _hyperbolic(call: Call) -> Node:
    """sinh = (e + e / (1 + e)) / 2 with e = exp(|x|) - 1, which loses nothing near zero."""
    x = call.node(0)
    half = call.number(0.5, x.dtype)
    if call.type == "Cosh":
        both = call.op("add", call.op("exp", x), call.op("exp", call.op("neg", x)))
        return call.op("mul", both, half)
    grown = composed_math.expm1(call, x)
    whole = call.op("add", grown, call.number(1, x.dtype))
    made = call.op("mul", call.op("add", grown, call.op("div", grown, whole)), half)
    large = call.op("gt", call.op("abs", x), call.number(20, x.dtype))
    straight = call.op("sub", call.op("exp", x), call.op("exp", call.op("neg", x)))
    return call.op("where", large, call.op("mul", straight, half), made)


@onnx_op("Asinh", "Acosh", "Atanh")
def _inverse(call: Call) -> Node:
    """By log(1 + ...), which loses nothing near zero."""
    x = call.node(0)
    one, half = call.number(1, x.dtype), call.number(0.5, x.dtype)
    match call.type:
        case "Atanh":
            ratio = call.op("div", call.op("add", x, x), call.op("sub", one, x))
            return call.op("mul", composed_math.log1p(call, ratio), half)
        case "Acosh":
            less = call.op("sub", x, one)
            root = call.op("sqrt", call.op("mul", less, call.op("add", x, one)))
            return _or_of_twice(call, x, composed_math.log1p(call, call.op("add", less, root)))
    size = call.op("abs", x)
    square = call.op("mul", size, size)
    root = call.op("add", call.op("sqrt", call.op("add", square, one)), one)
    angle = composed_math.log1p(call, call.op("add", size, call.op("div", square, root)))
    angle = _or_of_twice(call, size, angle)
    return call.op("where", call.op("lt", x, call.number(0, x.dtype)), call.op("neg", angle), angle)


def _or_of_twice(call: Call, x: Node, angle: Node) -> Node:
    """log(2 x) where x is so large that 1 is nothing beside its square, which may be infinite."""
    twice = call.op("add", call.op("log", x), call.number(math.log(2), x.dtype))
    return call.op("where", call.op("gt", x, call.number(1e8, x.dtype)), twice, angle)
