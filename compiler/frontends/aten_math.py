"""ATen's element-wise ops and reductions."""

from __future__ import annotations

from typing import Any

from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.composed_rounding import truncated_quotient
from llmc.compiler.graph import Node

# --- one input

_UNARY = {
    **{name: name for name in ("neg", "abs", "sign", "floor", "ceil", "exp", "log", "sqrt", "rsqrt")},
    **{name: name for name in ("sin", "cos", "tanh", "sigmoid", "erf", "relu", "silu")},
    "sgn": "sign",
}


def _unary(op: str) -> None:
    @aten(f"{op}.default")
    def convert(call: Call) -> Node:
        """Integers are promoted to the result's dtype first, as in sqrt(2)."""
        return call.op(_UNARY[op], call.cast(call["self"], call.dtype))


for _name in _UNARY:
    _unary(_name)


@aten("gelu.default")
def _gelu(call: Call) -> Node:
    return call.op("gelu", call["self"], approximate=call.get("approximate", "none"))


@aten("bitwise_not.default", "logical_not.default")
def _not(call: Call) -> Node:
    """The bits of an integer turned over: -1 - x."""
    x = call["self"]
    if "logical" in str(call.target) or x.dtype == "bool":
        return call.op("not", call.cast(x, "bool"))
    full = call.scalar(255 if x.dtype == "u8" else -1, x.dtype)
    return call.op("sub", full, x)


@aten("reciprocal.default")
def _reciprocal(call: Call) -> Node:
    return call.op("div", call.scalar(1.0, call.dtype), call.cast(call["self"], call.dtype))


@aten("square.default")
def _square(call: Call) -> Node:
    return call.op("mul", call["self"], call["self"])


@aten("leaky_relu.default")
def _leaky_relu(call: Call) -> Node:
    x = call["self"]
    zero, slope = call.scalar(0, x.dtype), call.scalar(call["negative_slope"], x.dtype)
    return call.op("where", call.op("gt", x, zero), x, call.op("mul", x, slope))


@aten(
    "hardtanh.default",
    "clamp.default",
    "clamp.Tensor",
    "clamp_min.default",
    "clamp_max.default",
    "relu6.default",
)
def _clamp(call: Call) -> Node:
    low = call.get("min", call.get("min_val"))
    high = call.get("max", call.get("max_val"))
    if "relu6" in str(call.target):
        low, high = 0, 6
    x = call.cast(call["self"], call.dtype)
    if low is not None:
        x = call.op("maximum", x, call.scalar(low, x.dtype))
    return x if high is None else call.op("minimum", x, call.scalar(high, x.dtype))


# --- two inputs

_BINARY = {
    "mul.Tensor": "mul",
    "mul.Scalar": "mul",
    "multiply.Tensor": "mul",
    "maximum.default": "maximum",
    "minimum.default": "minimum",
    "max.other": "maximum",
    "min.other": "minimum",
    "floor_divide.default": "floordiv",
    "remainder.Tensor": "mod",
    "remainder.Scalar": "mod",
    **{f"{op}.{kind}": op for op in ("eq", "ne", "lt", "le", "gt", "ge") for kind in ("Tensor", "Scalar")},
}


def _binary(overload: str, op: str) -> None:
    @aten(overload)
    def convert(call: Call) -> Node:
        """Products of bools are conjunctions; everything else is the op of that name."""
        a, b = call.tensors("self", "other")
        return call.op("and" if (op, a.dtype) == ("mul", "bool") else op, a, b)


for _overload, _op in _BINARY.items():
    _binary(_overload, _op)


@aten("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Tensor", "rsub.Scalar")
def _add(call: Call) -> Node:
    """self + alpha * other; rsub is other - alpha * self."""
    name = str(call.target)
    a, b = call.tensors("self", "other")
    a, b = (b, a) if "rsub" in name else (a, b)
    if a.dtype == "bool":
        a, b = call.cast(a, call.dtype), call.cast(b, call.dtype)
        return call.op("or", a, b)
    alpha = call.get("alpha", 1)
    b = b if alpha == 1 else call.op("mul", b, call.scalar(alpha, b.dtype))
    return call.op("sub" if "sub" in name else "add", a, b)


@aten("div.Tensor", "div.Scalar", "true_divide.Tensor", "div.Tensor_mode", "div.Scalar_mode")
def _div(call: Call) -> Node:
    """Plain division is in floats; a rounding_mode keeps integers."""
    a, b = (call.cast(x, call.dtype) for x in call.tensors("self", "other"))
    mode = call.get("rounding_mode")
    if mode == "trunc":
        return truncated_quotient(call, a, b)
    return call.op("floordiv" if mode == "floor" else "div", a, b)


@aten("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def _pow(call: Call) -> Node:
    """Small constant exponents become products and roots, as PyTorch computes them."""
    exponent = call["exponent"]
    if isinstance(call["self"], Node):
        x = call.cast(call["self"], call.dtype)
        match exponent:
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
    return call.op("pow", *call.tensors("self", "exponent"))


@aten(
    *(
        f"{prefix}_{op}.{kind}"
        for prefix in ("bitwise",)
        for op in ("and", "or", "xor")
        for kind in ("Tensor", "Scalar")
    ),
    *(f"__{op}__.{kind}" for op in ("and", "or", "xor") for kind in ("Tensor", "Scalar")),
    *(f"logical_{op}.default" for op in ("and", "or", "xor")),
)
def _logic(call: Call) -> Node:
    name = str(call.target).split(".")[1].strip("_").split("_")[-1]
    a, b = call.tensors("self", "other")
    if "logical" not in str(call.target) and a.dtype != "bool":
        return call.op(f"bit{name}", a, b)
    return call.op(name, call.cast(a, "bool"), call.cast(b, "bool"))


# --- three inputs


@aten("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def _where(call: Call) -> Node:
    a, b = call.tensors("self", "other")
    return call.op(
        "where", call.cast(call["condition"], "bool"), call.cast(a, call.dtype), call.cast(b, call.dtype)
    )


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(call: Call) -> Node:
    x = call["self"]
    return call.op("where", call["mask"], call.scalar(call["value"], x.dtype), x)


# --- reductions


def _keepdims(call: Call) -> bool:
    return bool(call.get("keepdim", False))


def _reduce(call: Call, op: str, x: Node) -> Node:
    axes = call.axes(call.get("dim"), x.type.rank)
    return call.op(op, x, axes=axes, keepdims=_keepdims(call)) if x.type.rank else x


@aten("sum.dim_IntList", "sum.default", "mean.dim", "mean.default")
def _sum(call: Call) -> Node:
    return _reduce(call, "mean" if "mean" in str(call.target) else "sum", call.cast(call["self"], call.dtype))


@aten("amax.default", "max.default", "amin.default", "min.default")
def _max(call: Call) -> Node:
    return _reduce(call, "max" if "max" in str(call.target) else "min", call["self"])


@aten("max.dim", "min.dim")
def _max_dim(call: Call) -> tuple[Node, ...]:
    """Values and the index of the first extreme."""
    x = call["self"]
    low = "min" in str(call.target)
    axis = call.axis(call["dim"], x.type.rank)
    values = call.op("min" if low else "max", x, axes=(axis,), keepdims=_keepdims(call))
    return values, call.op("argmax", call.op("neg", x) if low else x, axis=axis, keepdims=_keepdims(call))


@aten("any.default", "any.dim", "any.dims", "all.default", "all.dim", "all.dims")
def _any(call: Call) -> Node:
    return _reduce(call, "any" if "any" in str(call.target) else "all", call.cast(call["self"], "bool"))


@aten("cumsum.default")
def _cumsum(call: Call) -> Node:
    return call.op("cumsum", call.cast(call["self"], call.dtype), axis=call.axis(call["dim"]))


@aten("softmax.int", "_softmax.default", "log_softmax.int", "_log_softmax.default")
def _softmax(call: Call) -> Node:
    op = "log_softmax" if "log_softmax" in str(call.target) else "softmax"
    return call.op(op, call.cast(call["self"], call.dtype), axis=call.axis(call["dim"]))


# --- ops that change nothing at inference


@aten(
    *(
        "alias.default",
        "clone.default",
        "contiguous.default",
        "detach.default",
        "detach_.default",
        "lift_fresh.default",
    ),
    *("lift_fresh_copy.default", "positive.default"),
)
def _same(call: Call) -> Any:
    return call["self"]


@aten("dropout.default", "feature_dropout.default")
def _dropout(call: Call) -> Any:
    call.require(not call["train"], "dropout in training mode", "call model.eval() before export")
    return call.get("input", call.get("self"))


@aten("to.device", "to.dtype", "to.dtype_layout", "to.other", "_to_copy.default", "type_as.default")
def _to(call: Call) -> Node:
    return call.cast(call["self"], call.dtype)
