"""ONNX's activations that are written in elementary ops."""

from __future__ import annotations

from llmc.compiler.frontends import composed_math
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import broadcast


@onnx_op("LeakyRelu")
def _leaky_relu(call: Call) -> Node:
    x = call.node(0)
    return composed_math.sloped(call, x, call.number(call.attribute("alpha", 0.01), x.dtype))


@onnx_op("PRelu")
def _prelu(call: Call) -> Node:
    x, slope = call.nodes()
    if call.opset < 7 and slope.shape not in ((1,), ()):  # of channels
        slope = call.reshape(slope, (*slope.shape, *(1,) * (x.type.rank - 2)))
    return composed_math.sloped(call, x, call.expand(slope, broadcast(slope.shape, x.shape)))


@onnx_op("Elu", "Selu", "Celu")
def _elu(call: Call) -> Node:
    x = call.node(0)
    if call.type == "Celu":
        return composed_math.celu(call, x, call.attribute("alpha", 1.0))
    alpha, scale = composed_math.SELU if call.type == "Selu" else (1.0, 1.0)
    return composed_math.elu(call, x, call.attribute("alpha", alpha), call.attribute("gamma", scale))


@onnx_op("Softplus", "Mish")
def _softplus(call: Call) -> Node:
    function = composed_math.softplus if call.type == "Softplus" else composed_math.mish
    return function(call, call.node(0))


@onnx_op("ThresholdedRelu")
def _thresholded(call: Call) -> Node:
    return composed_math.above(call, call.node(0), call.attribute("alpha", 1.0), 0.0)


@onnx_op("HardSigmoid", "HardSwish")
def _hard(call: Call) -> Node:
    """clamp(alpha * x + beta, 0, 1), and x times that"""
    x = call.node(0)
    swish = call.type == "HardSwish"
    alpha, beta = (1 / 6, 0.5) if swish else (call.attribute("alpha", 0.2), call.attribute("beta", 0.5))
    line = call.op("add", call.op("mul", x, call.number(alpha, x.dtype)), call.number(beta, x.dtype))
    gate = call.op("maximum", call.op("minimum", line, call.number(1, x.dtype)), call.number(0, x.dtype))
    return call.op("mul", x, gate) if swish else gate


@onnx_op("Softsign")
def _softsign(call: Call) -> Node:
    x = call.node(0)
    return call.op("div", x, call.op("add", call.number(1, x.dtype), call.op("abs", x)))


# activations of recurrent layers that the IR has, by their names in ONNX
_OWN = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu"}


def activated(call: Call, name: str, x: Node) -> Node:
    """An activation by its name, with the constants that hold without any."""
    if name in _OWN:
        return call.op(_OWN[name], x)
    call.require(name in ("Softsign", "Softplus"), f"the activation {name}")
    if name == "Softplus":
        return composed_math.softplus(call, x)
    return call.op("div", x, call.op("add", call.number(1, x.dtype), call.op("abs", x)))
