"""ATen's roundings, remainders toward zero, products that are added and inverse sines, in elementary ops."""

from __future__ import annotations

import math

from llmc.compiler.frontends import composed_math
from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.composed_rounding import nearest_even, truncated, truncated_rest
from llmc.compiler.graph import Node


@aten("trunc.default", "fix.default", "frac.default")
def _trunc(call: Call) -> Node:
    x = call["self"]
    if x.dtype not in ("f32", "f16"):
        return x  # type: ignore[no-any-return]
    whole = truncated(call, x)
    return call.op("sub", x, whole) if "frac" in str(call.target) else whole


@aten("round.default", "round.decimals")
def _round(call: Call) -> Node:
    x = call["self"]
    call.require(call.get("decimals", 0) == 0, "rounding to decimals", "multiply, round and divide")
    return nearest_even(call, x)


@aten("fmod.Tensor", "fmod.Scalar")
def _fmod(call: Call) -> Node:
    return truncated_rest(call, *call.tensors("self", "other"))


@aten("__lshift__.Scalar", "bitwise_left_shift.Tensor_Scalar")
def _shift_left(call: Call) -> Node:
    return call.op("mul", call["self"], call.scalar(1 << call["other"], call["self"].dtype))


@aten("__rshift__.Scalar", "bitwise_right_shift.Tensor_Scalar")
def _shift_right(call: Call) -> Node:
    return call.op("floordiv", call["self"], call.scalar(1 << call["other"], call["self"].dtype))


@aten("addcmul.default", "addcdiv.default")
def _add_product(call: Call) -> Node:
    """self + value * (a * b), or a / b."""
    a, b = call["tensor1"], call["tensor2"]
    made, value = call.op("div" if "div" in str(call.target) else "mul", a, b), call.get("value", 1)
    made = made if value == 1 else call.op("mul", made, call.scalar(value, made.dtype))
    return call.op("add", call["self"], made)


@aten("lerp.Scalar", "lerp.Tensor")
def _lerp(call: Call) -> Node:
    """start + weight * (end - start); from the end where the weight is above a half, as PyTorch does."""
    start, end = call["self"], call["end"]
    weight = call.scalar(call["weight"], start.dtype)
    away = call.op("sub", end, start)
    near = call.op("add", start, call.op("mul", weight, away))
    left = call.op("sub", call.scalar(1, start.dtype), weight)
    far = call.op("sub", end, call.op("mul", away, left))
    small = call.op("lt", call.op("abs", weight), call.scalar(0.5, start.dtype))
    return call.op("where", small, near, far)


@aten("tan.default", "sinh.default", "cosh.default")
def _trigonometry(call: Call) -> Node:
    x = call.cast(call["self"], call.dtype)
    if "tan" in str(call.target):
        return call.op("div", call.op("sin", x), call.op("cos", x))
    up, down = call.op("exp", x), call.op("exp", call.op("neg", x))
    both = call.op("sub" if "sinh" in str(call.target) else "add", up, down)
    return call.op("mul", both, call.scalar(0.5, x.dtype))


@aten("atan.default", "arctan.default")
def _arc_tangent(call: Call) -> Node:
    return composed_math.arc_tangent(call, call.cast(call["self"], call.dtype))


@aten("asin.default", "arcsin.default", "acos.default", "arccos.default")
def _inverse(call: Call) -> Node:
    """acos(x) = pi/2 - asin(x)"""
    angle = composed_math.inverse_sine(call, call.cast(call["self"], call.dtype))
    if "sin" in str(call.target):
        return angle
    return call.op("sub", call.scalar(math.pi / 2, call.dtype), angle)
