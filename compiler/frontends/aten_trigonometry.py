"""ATen's inverse trigonometric functions, in elementary ops."""

from __future__ import annotations

import math

from llmc.compiler.frontends import composed_math
from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.graph import Node


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
