"""ONNX's element-wise ops and reductions."""

from __future__ import annotations

from llmc.compiler.frontends.onnx_call import Call, Value, onnx_op
from llmc.compiler.frontends.onnx_kinds import DTYPES, dtype_name
from llmc.compiler.graph import Node

_UNARY = {
    **{name.title(): name for name in ("neg", "abs", "sign", "floor", "ceil", "exp", "log", "sqrt", "sin")},
    **{name.title(): name for name in ("cos", "tanh", "sigmoid", "erf", "relu", "not")},
}


@onnx_op(*_UNARY)
def _unary(call: Call) -> Node:
    return call.op(_UNARY[call.type], call.node(0))


_BINARY = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Equal": "eq",
    "Less": "lt",
    "LessOrEqual": "le",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "And": "and",
    "Or": "or",
    "Xor": "xor",
}


@onnx_op(*_BINARY)
def _binary(call: Call) -> Node:
    """ONNX broadcasts as NumPy and has equal dtypes, as the IR. Equality of bools is not xor."""
    a, b = call.nodes()
    if call.type == "Equal" and a.dtype == "bool":
        return call.op("not", call.op("xor", a, b))
    return call.op(_BINARY[call.type], a, b)


@onnx_op("Div")
def _div(call: Call) -> Node:
    """Integers are divided toward zero: the same as floordiv where nothing is negative."""
    a, b = call.nodes()
    if a.dtype == "f32":
        return call.op("div", a, b)
    whole = call.op("floordiv", call.op("abs", a), call.op("abs", b))
    signs = call.op("mul", call.op("sign", a), call.op("sign", b))
    return call.op("mul", whole, signs)


@onnx_op("Mod")
def _mod(call: Call) -> Node:
    """With the divisor's sign, or, by `fmod`, the dividend's."""
    a, b = call.nodes()
    if not call.attribute("fmod", 0):
        return call.op("mod", a, b)
    rest = call.op("mod", call.op("abs", a), call.op("abs", b))
    return call.op("where", call.op("lt", a, call.number(0, a.dtype)), call.op("neg", rest), rest)


_VARIADIC = {"Sum": "add", "Max": "maximum", "Min": "minimum"}


@onnx_op(*_VARIADIC, "Mean")
def _variadic(call: Call) -> Node:
    first, *rest = call.nodes()
    for other in rest:
        first = call.op(_VARIADIC.get(call.type, "add"), first, other)
    if call.type != "Mean":
        return first
    return call.op("div", first, call.number(len(call.inputs), first.dtype))


@onnx_op("Pow")
def _pow(call: Call) -> Node:
    """Small constant exponents become products and roots."""
    x, exponent = call.nodes()
    x = call.cast(x, "f32") if x.dtype != "f32" and exponent.dtype == "f32" else x
    value = exponent.attributes["value"].array if exponent.op == "constant" else None
    match value.item() if value is not None and value.size == 1 and not exponent.type.rank else None:
        case 1:
            return x
        case 2:
            return call.op("mul", x, x)
        case 3:
            return call.op("mul", call.op("mul", x, x), x)
        case 0.5 if x.dtype == "f32":
            return call.op("sqrt", x)
        case -0.5 if x.dtype == "f32":
            return call.op("rsqrt", x)
    call.require(x.dtype == "f32", "a power of integers")
    return call.op("pow", x, call.cast(exponent, x.dtype))


@onnx_op("Reciprocal")
def _reciprocal(call: Call) -> Node:
    x = call.node(0)
    return call.op("div", call.number(1, x.dtype), x)


@onnx_op("Clip")
def _clip(call: Call) -> Node:
    x = call.node(0)
    for position, op in ((1, "maximum"), (2, "minimum")):
        if call.has(position):
            x = call.op(op, x, call.node(position))
    return x


@onnx_op("Gelu")
def _gelu(call: Call) -> Node:
    return call.op("gelu", call.node(0), approximate=call.attribute("approximate", "none"))


@onnx_op("IsNaN")
def _is_nan(call: Call) -> Node:
    """x != x"""
    x = call.node(0)
    return call.op("ne", x, x)


@onnx_op("Where")
def _where(call: Call) -> Node:
    return call.op("where", *call.nodes())


@onnx_op("Cast")
def _cast(call: Call) -> Node:
    wanted = int(call.attributes["to"])
    call.require(wanted in DTYPES, f"a cast to {dtype_name(wanted)}", "export the float model")
    return call.cast(call.node(0), DTYPES[wanted])


@onnx_op("CastLike")
def _cast_like(call: Call) -> Node:
    return call.cast(call.node(0), call.node(1).dtype)


@onnx_op("Identity", "Dropout")
def _same(call: Call) -> Value:
    call.require(call.outputs == 1, "the mask of a dropout", "export the model in eval mode")
    return call.value(0)


# --- reductions

_REDUCTIONS = {
    **{"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min"},
    "ReduceProd": "prod",
}


def _axes(call: Call, x: Node) -> tuple[int, ...]:
    """Axes to reduce; none given means all, unless the node says that it then does nothing."""
    rank = x.type.rank
    axes = call.ints(1, "axes")
    if not axes:
        return () if call.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
    call.require(all(-rank <= a < rank for a in axes), f"axes {axes} of {rank}")
    return tuple(sorted({a % rank for a in axes}))


def _reduced(call: Call, op: str, x: Node) -> Node:
    axes = _axes(call, x)
    return call.op(op, x, axes=axes, keepdims=bool(call.attribute("keepdims", 1))) if axes else x


@onnx_op(*_REDUCTIONS)
def _reduce(call: Call) -> Node:
    return _reduced(call, _REDUCTIONS[call.type], call.node(0))


@onnx_op("ReduceL2", "ReduceL1", "ReduceSumSquare", "ReduceLogSumExp")
def _norm(call: Call) -> Node:
    x = call.node(0)
    match call.type:
        case "ReduceL1":
            return _reduced(call, "sum", call.op("abs", x))
        case "ReduceLogSumExp":
            return call.op("log", _reduced(call, "sum", call.op("exp", x)))
    total = _reduced(call, "sum", call.op("mul", x, x))
    return total if call.type == "ReduceSumSquare" else call.op("sqrt", total)


@onnx_op("ArgMax", "ArgMin")
def _argmax(call: Call) -> Node:
    x = call.node(0)
    call.require(not call.attribute("select_last_index", 0), "the last of equal extremes")
    x = call.op("neg", x) if call.type == "ArgMin" else x
    keepdims = bool(call.attribute("keepdims", 1))
    return call.op("argmax", x, axis=call.axis(x.type.rank, 0), keepdims=keepdims)


@onnx_op("CumSum")
def _cumsum(call: Call) -> Node:
    x = call.node(0)
    (axis,) = call.dims(1, "an axis")
    call.require(isinstance(axis, int), "an axis computed from sizes")
    call.require(not call.attribute("reverse", 0), "a reversed CumSum")
    total = call.op("cumsum", x, axis=axis % x.type.rank)
    return call.op("sub", total, x) if call.attribute("exclusive", 0) else total


@onnx_op("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Node:
    """Before opset 13 all axes from `axis` on were one."""
    x = call.node(0)
    op = "softmax" if call.type == "Softmax" else "log_softmax"
    rank = x.type.rank
    axis = call.axis(rank, -1 if call.opset >= 13 else 1)
    if call.opset >= 13 or axis == rank - 1:
        return call.op(op, x, axis=axis)
    from llmc.compiler.dims import product

    flat = call.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))
    return call.reshape(call.op(op, flat, axis=1), x.shape)
