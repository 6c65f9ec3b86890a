"""Quantised ops of `com.microsoft`: as ONNX's own in `onnx_quantise.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from llmc.compiler.frontends.composed import changed, joined
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_microsoft import microsoft
from llmc.compiler.frontends.onnx_pool import average
from llmc.compiler.frontends.onnx_quantise import product_of, product_of_levels, quantised, value_of
from llmc.compiler.graph import Node


def _optional(call: Call, position: int) -> Node | None:
    return call.node(position) if call.has(position) else None


def _value(call: Call, x: int, scale: int, zero: int) -> Node:
    """What a quantised input means."""
    return value_of(call, call.node(x), call.node(scale), _optional(call, zero))


def _made(call: Call, y: Node, scale: int, zero: int) -> Node:
    kind = call.kinds[zero] if call.has(zero) else call.kinds[0]
    return quantised(call, y, call.node(scale), _optional(call, zero), kind)


@onnx_op(*microsoft("QLinearAdd", "QLinearMul"))
def _binary(call: Call) -> Node:
    op = "add" if call.type == "QLinearAdd" else "mul"
    return _made(call, call.op(op, _value(call, 0, 1, 2), _value(call, 3, 4, 5)), 6, 7)


def _leaky(call: Call, x: Node) -> Node:
    slope = call.number(call.attribute("alpha", 0.01), "f32")
    return call.op("where", call.op("gt", x, call.number(0, "f32")), x, call.op("mul", x, slope))


_UNARY: Mapping[str, Callable[[Call, Node], Node]] = MappingProxyType(
    {
        "QLinearSigmoid": lambda call, x: call.op("sigmoid", x),
        "QLinearLeakyRelu": _leaky,
        "QLinearSoftmax": lambda call, x: _softmax(call, x),
        "QLinearGlobalAveragePool": lambda call, x: _global_mean(call, x),
    }
)


def _softmax(call: Call, x: Node) -> Node:
    axis = call.axis(x.type.rank, -1)
    call.require(call.attribute("opset", 13) >= 13 or axis == x.type.rank - 1, "a softmax over several axes")
    return call.op("softmax", x, axis=axis)


def _global_mean(call: Call, x: Node) -> Node:
    first = 1 if call.attribute("channels_last", 0) else 2
    axes = tuple(range(first, first + x.type.rank - 2))
    return call.op("mean", x, axes=axes, keepdims=True)


@onnx_op(*microsoft(*_UNARY))
def _unary(call: Call) -> Node:
    return _made(call, _UNARY[call.type](call, _value(call, 0, 1, 2)), 3, 4)


@onnx_op(*microsoft("QLinearAveragePool"))
def _average_pool(call: Call) -> Node:
    call.require(not call.attribute("channels_last", 0), "an average of channels that come last")
    x = _value(call, 0, 1, 2)
    return _made(call, average(call, x), 3, 4)


@onnx_op(*microsoft("QLinearWhere"))
def _where(call: Call) -> Node:
    chosen = call.op("where", call.node(0), _value(call, 1, 2, 3), _value(call, 4, 5, 6))
    return _made(call, chosen, 7, 8)


@onnx_op(*microsoft("QLinearConcat"))
def _concat(call: Call) -> Node:
    """The result's scale and zero point come first, then each part with its own."""
    parts = [_value(call, i, i + 1, i + 2) for i in range(2, len(call.inputs), 3)]
    whole = joined(call, parts, call.axis(parts[0].type.rank))
    return quantised(call, whole, call.node(0), call.node(1), call.kinds[1])


@onnx_op(*microsoft("MatMulIntegerToFloat"))
def _to_float(call: Call) -> Node:
    a, b, sa, sb = (call.node(i) for i in range(4))
    za, zb = _optional(call, 4), _optional(call, 5)
    made = product_of_levels(call, a, sa, za, b, sb, zb)
    if made is not None:
        return call.op("add", made, call.node(6)) if call.has(6) else made
    total = call.cast(product_of(call, a, za, b, zb), "f32")
    made = call.op("mul", call.op("mul", total, sa), sb)
    return call.op("add", made, call.node(6)) if call.has(6) else made


@onnx_op(*microsoft("DynamicQuantizeMatMul"))
def _dynamic(call: Call) -> Node:
    """The left is quantised by its own range."""
    x, b, sb = call.node(0), call.node(1), call.node(2)
    codes, scale, zero = by_range(call, x)
    made = product_of_levels(call, codes, scale, zero, b, sb, _optional(call, 3))
    if made is None:
        total = call.cast(product_of(call, codes, zero, b, _optional(call, 3)), "f32")
        made = call.op("mul", call.op("mul", total, scale), sb)
    return call.op("add", made, call.node(4)) if call.has(4) else made


@onnx_op(*microsoft("QGemm"))
def _q_gemm(call: Call) -> Node:
    """alpha * a' @ b' + c, c in units of alpha * a_scale * b_scale; a float where no y_scale is given."""
    a, sa, za, b, sb, zb = (call.node(i) for i in range(6))
    a = call.transpose(a, (1, 0)) if call.attribute("transA", 0) else a
    alpha = call.attribute("alpha", 1.0)
    if call.attribute("transB", 0):
        b = changed(call, b, lambda w: w.T, lambda w: call.transpose(w, (1, 0)))
    made = product_of_levels(call, a, sa, za, b, sb, zb)
    unit = call.op("mul", call.reshape(sa, ()), sb)
    if made is None:
        made = call.op("mul", call.cast(product_of(call, a, za, b, zb), "f32"), unit)
    if call.has(6):
        made = call.op("add", made, call.op("mul", call.cast(call.node(6), "f32"), unit))
    made = made if alpha == 1.0 else call.op("mul", made, call.number(alpha, "f32"))
    return _made(call, made, 7, 8) if call.has(7) else made


def by_range(call: Call, x: Node) -> tuple[Node, Node, Node]:
    """DynamicQuantizeLinear: unsigned codes of 8 bits for the range of x with 0 in it."""
    axes, nothing = tuple(range(x.type.rank)), call.number(0, "f32")
    high = call.op("maximum", call.op("max", x, axes=axes, keepdims=False), nothing)
    low = call.op("minimum", call.op("min", x, axes=axes, keepdims=False), nothing)
    span = call.op("sub", high, low)
    flat = call.op("eq", span, nothing)
    scale = call.op("div", call.op("where", flat, call.number(255, "f32"), span), call.number(255, "f32"))
    zero = quantised(call, call.op("sub", nothing, low), scale, None, 2)
    return quantised(call, x, scale, zero, 2), scale, zero
