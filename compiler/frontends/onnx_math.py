"""ONNX's element-wise ops."""

from __future__ import annotations

from llmc.compiler.frontends import composed_math
from llmc.compiler.frontends.composed_rounding import nearest_even, truncated_quotient, truncated_rest
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_kinds import DTYPES, dtype_name
from llmc.compiler.frontends.onnx_levels import as_floats
from llmc.compiler.frontends.onnx_small_floats import is_small, rounded
from llmc.compiler.frontends.onnx_values import Items, Value
from llmc.compiler.graph import Node

_UNARY = {
    **{name.title(): name for name in ("neg", "abs", "floor", "ceil", "exp", "log", "sqrt", "sin")},
    **{name.title(): name for name in ("cos", "tanh", "sigmoid", "erf", "relu", "not")},
}


@onnx_op(*_UNARY)
def _unary(call: Call) -> Node:
    return call.op(_UNARY[call.type], call.node(0))


@onnx_op("Sign")
def _sign(call: Call) -> Node:
    """-1, 0 or 1; NaN stays."""
    x = call.node(0)
    sign = call.op("sign", x)
    return call.op("where", call.op("ne", x, x), x, sign) if x.dtype == "f32" else sign


@onnx_op("Round")
def _round(call: Call) -> Node:
    return nearest_even(call, call.node(0))


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


def operands(call: Call) -> tuple[Node, Node]:
    """Both, in shapes that broadcast as NumPy's do. Before opset 7 the second one was put at an axis."""
    a, b = call.node(0), call.node(1)
    if call.opset >= 7:
        return a, b
    axis = call.attribute("axis", None)
    if not call.attribute("broadcast", 0):
        call.require(a.shape == b.shape, "operands of different shapes without broadcast")
    elif axis is not None:
        axis = axis % a.type.rank
        b = call.reshape(b, (*b.shape, *(1,) * (a.type.rank - axis - b.type.rank)))
    return a, b


@onnx_op(*_BINARY)
def _binary(call: Call) -> Node:
    """ONNX broadcasts as NumPy and has equal dtypes, as the IR. Equality of bools is not xor."""
    a, b = operands(call)
    if call.type == "Equal" and a.dtype == "bool":
        return call.op("not", call.op("xor", a, b))
    return call.op(_BINARY[call.type], a, b)


@onnx_op("Div")
def _div(call: Call) -> Node:
    """Integers are divided toward zero."""
    a, b = operands(call)
    return call.op("div", a, b) if a.dtype in ("f32", "f64") else truncated_quotient(call, a, b)


@onnx_op("Mod")
def _mod(call: Call) -> Node:
    """With the divisor's sign, or, by `fmod`, the dividend's."""
    a, b = call.nodes()
    return truncated_rest(call, a, b) if call.attribute("fmod", 0) else call.op("mod", a, b)


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
    """Of the base's dtype; small constant exponents become products and roots."""
    x, exponent = operands(call)
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
    if x.dtype != "f32" and exponent.dtype != "f32":
        return composed_math.integer_power(call, x, call.cast(exponent, x.dtype))
    made = call.op("pow", call.cast(x, "f32"), call.cast(exponent, "f32"))
    return made if x.dtype == "f32" else call.cast(made, x.dtype)


@onnx_op("Reciprocal")
def _reciprocal(call: Call) -> Node:
    x = call.node(0)
    return call.op("div", call.number(1, x.dtype), x)


@onnx_op("Clip")
def _clip(call: Call) -> Node:
    """The bounds were attributes before opset 11."""
    x = call.node(0)
    for position, name, op in ((1, "min", "maximum"), (2, "max", "minimum")):
        if name in call.attributes:
            x = call.op(op, x, call.number(call.attributes[name], x.dtype))
        elif call.has(position):
            x = call.op(op, x, call.reshape(call.node(position), ()))
    return x


@onnx_op("Gelu")
def _gelu(call: Call) -> Node:
    return call.op("gelu", call.node(0), approximate=call.attribute("approximate", "none"))


@onnx_op("IsNaN")
def _is_nan(call: Call) -> Node:
    """x != x"""
    x = call.node(0)
    return call.op("ne", x, x)


@onnx_op("IsInf")
def _is_inf(call: Call) -> Node:
    x, infinity = call.node(0), float("inf")
    signs = [s for s, name in ((1, "detect_positive"), (-1, "detect_negative")) if call.attribute(name, 1)]
    if not signs:
        return call.op("and", call.op("ne", x, x), call.op("eq", x, x))
    found = [call.op("eq", x, call.number(sign * infinity, "f32")) for sign in signs]
    return found[0] if len(found) == 1 else call.op("or", *found)


@onnx_op("Where")
def _where(call: Call) -> Node:
    return call.op("where", *call.nodes())


@onnx_op("Cast")
def _cast(call: Call) -> Node:
    """Before opset 6 the type was a text."""
    wanted = call.attributes["to"]
    wanted = next((k for k in DTYPES if dtype_name(k) == wanted), 0) if isinstance(wanted, str) else wanted
    return _converted(call, call.node(0), int(wanted))


@onnx_op("CastLike")
def _cast_like(call: Call) -> Node:
    call.value(1)
    return _converted(call, call.node(0), call.kinds[1])


def _converted(call: Call, x: Node, kind: int) -> Node:
    """Floats of 8 bits and fewer are rounded; wider ones stay what they are."""
    call.require(kind in DTYPES, f"a cast to {dtype_name(kind)}")
    if is_small(kind):
        return rounded(call, call.cast(x, "f32"), kind)
    call.attribute("saturate", 1)
    call.attribute("round_mode", "up")
    floats = as_floats(x) if DTYPES[kind] == "f32" else None
    return call.cast(x, DTYPES[kind]) if floats is None else floats


@onnx_op("Identity")
def _same(call: Call) -> Value:
    return call.value(0)


@onnx_op("Dropout")
def _dropout(call: Call) -> Value | tuple[Value, ...]:
    """What it is when a model is used: x, and a mask of all of it."""
    training = call.numbers(2, "training_mode").item() if call.has(2) else False
    if call.opset < 7:
        training = not call.attribute("is_test", 0)
    none = not training or not call.float(1, "ratio", 0.5)
    call.require(none, "dropout in training mode", "export the model in eval mode")
    call.without_meaning("seed", "ratio")  # of what is not drawn
    call.inputs.read.add(1)
    x = call.value(0)
    assert not isinstance(x, Items)
    if call.outputs == 1:
        return x
    return x, call.expand(call.number(True, "bool"), call.node(0).shape)


@onnx_op("BitShift")
def _bit_shift(call: Call) -> Node:
    """Products with and quotients by powers of two; of as many bits as there are only the sign is left."""
    x, count = call.nodes()
    two = composed_math.integer_power(call, call.number(2, "i64"), call.cast(count, "i64"))
    direction = call.attributes["direction"]
    wide = call.cast(x, "i64")
    if direction == "LEFT":
        return call.cast(call.op("mul", wide, two), x.dtype)
    call.require(dtype_name(call.kinds[0]) != "UINT64", "a shift of 64 bits to the right")
    bits, zero = call.cast(count, "i64"), call.number(0, "i64")
    gone = call.op("or", call.op("ge", bits, call.number(63, "i64")), call.op("lt", bits, zero))
    sign = call.op("where", call.op("lt", wide, zero), call.number(-1, "i64"), zero)
    whole = call.op("floordiv", wide, call.op("maximum", two, call.number(1, "i64")))
    return call.cast(call.op("where", gone, sign, whole), x.dtype)


@onnx_op("BitCast")
def _bit_cast(call: Call) -> Node:
    """Between integers of as many bits: the same number modulo what they hold."""
    before, after = dtype_name(call.kinds[0]), dtype_name(int(call.attributes["to"]))
    alike = before.removeprefix("U") == after.removeprefix("U") and "INT" in before and "64" not in before
    call.require(alike or before == after, f"the bits of {before} as {after}")
    return call.cast(call.node(0), DTYPES[int(call.attributes["to"])])
