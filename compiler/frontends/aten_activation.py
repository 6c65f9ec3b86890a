"""ATen's activations and functions that are written in elementary ops."""

from __future__ import annotations

import math

from llmc.compiler.frontends import composed_math
from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.composed import by_channel, number
from llmc.compiler.frontends.parts import sliced
from llmc.compiler.graph import Node


def _x(call: Call) -> Node:
    """Integers are promoted to the result's dtype first."""
    return call.cast(call["self"], call.dtype)


@aten("softplus.default")
def _softplus(call: Call) -> Node:
    return composed_math.softplus(call, _x(call), call.get("beta", 1), call.get("threshold", 20))


@aten("log_sigmoid.default")
def _log_sigmoid(call: Call) -> Node:
    return composed_math.log_sigmoid(call, _x(call))


@aten("mish.default")
def _mish(call: Call) -> Node:
    return composed_math.mish(call, _x(call))


@aten("elu.default")
def _elu(call: Call) -> Node:
    return composed_math.elu(call, _x(call), call["alpha"], call["scale"], call["input_scale"])


@aten("selu.default")
def _selu(call: Call) -> Node:
    return composed_math.elu(call, _x(call), *composed_math.SELU)


@aten("celu.default")
def _celu(call: Call) -> Node:
    return composed_math.celu(call, _x(call), call["alpha"])


@aten("log1p.default", "expm1.default")
def _near_zero(call: Call) -> Node:
    function = composed_math.log1p if "log1p" in str(call.target) else composed_math.expm1
    return function(call, _x(call))


@aten("log2.default", "log10.default")
def _log_to(call: Call) -> Node:
    return composed_math.log_to(call, _x(call), 2 if "log2" in str(call.target) else 10)


@aten("exp2.default")
def _exp2(call: Call) -> Node:
    x = _x(call)
    return call.op("exp", call.op("mul", x, number(call, math.log(2), x)))


@aten("logit.default")
def _logit(call: Call) -> Node:
    return composed_math.logit(call, _x(call), call.get("eps"))


@aten("threshold.default")
def _threshold(call: Call) -> Node:
    return composed_math.above(call, _x(call), call["threshold"], call["value"])


@aten("prelu.default", "_prelu_kernel.default")
def _prelu(call: Call) -> Node:
    """One slope, or one for each channel, which is axis 1; the kernel's has the shape already."""
    x, slope = call["self"], call["weight"]
    if slope.shape == (1,) or slope.type.rank == x.type.rank:
        return composed_math.sloped(call, x, slope)
    low = by_channel(call, x, "mul", slope) if x.type.rank > 1 else call.op("mul", x, slope)
    return call.op("where", call.op("gt", x, number(call, 0, x)), x, low)


@aten("glu.default")
def _glu(call: Call) -> Node:
    """The first half times the sigmoid of the second."""
    x = call["self"]
    axis = call.axis(call["dim"])
    half = call.shape[axis]
    first, second = (sliced(call, x, axis, start, half) for start in (0, half))
    return call.op("mul", first, call.op("sigmoid", second))


@aten("hardswish.default", "hardsigmoid.default")
def _hardswish(call: Call) -> Node:
    """clamp(x + 3, 0, 6) / 6, and x times that"""
    x = call["self"]
    raised = call.op("add", x, call.scalar(3.0, x.dtype))
    clamped = call.op("maximum", raised, call.scalar(0.0, x.dtype))
    gate = call.op("minimum", clamped, call.scalar(6.0, x.dtype))
    gate = call.op("div", gate, call.scalar(6.0, x.dtype))
    return gate if "hardsigmoid" in str(call.target) else call.op("mul", x, gate)
