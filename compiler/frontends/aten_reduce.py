"""ATen's rarer reductions, written out in those of the IR."""

from __future__ import annotations

import math
from typing import Any

from llmc.compiler.dims import dim, product
from llmc.compiler.frontends.aten import Call, Result, aten
from llmc.compiler.graph import Node


def _keepdims(call: Call) -> bool:
    return bool(call.get("keepdim", False))


def _over(call: Call, op: str, x: Node, keepdims: bool | None = None) -> Node:
    """A reduction over the axes `dim`, all if none are given."""
    axes = call.axes(call.get("dim"), x.type.rank)
    kept = _keepdims(call) if keepdims is None else keepdims
    return call.op(op, x, axes=axes, keepdims=kept) if x.type.rank else x


@aten("argmax.default", "argmin.default")
def _argmax(call: Call) -> Node:
    """The first of equals; without an axis that of all elements in a row."""
    x = call["self"]
    if x.dtype == "bool" or ("argmin" in str(call.target) and x.dtype not in ("f32", "f16")):
        x = call.cast(x, "i64")
    x = call.op("neg", x) if "argmin" in str(call.target) else x
    if call.get("dim") is None or not x.type.rank:
        flat = call.reshape(x, (product(x.shape),))
        return call.reshape(call.op("argmax", flat, axis=0), call.shape)
    return call.op("argmax", x, axis=call.axis(call["dim"], x.type.rank), keepdims=_keepdims(call))


@aten("aminmax.default")
def _aminmax(call: Call) -> tuple[Node, ...]:
    return tuple(_over(call, op, call["self"]) for op in ("min", "max"))


@aten("prod.default", "prod.dim_int")
def _prod(call: Call) -> Node:
    return _over(call, "prod", call.cast(call["self"], call.dtype))


@aten("count_nonzero.default", "count_nonzero.dim_IntList")
def _count_nonzero(call: Call) -> Node:
    return _over(call, "sum", call.cast(call.cast(call["self"], "bool"), "i64"))


@aten("logsumexp.default", "special_logsumexp.default")
def _logsumexp(call: Call) -> Node:
    """max + log(sum(exp(x - max))); a maximum that is infinite is left out, so that infinities stay."""
    x = call.cast(call["self"], call.dtype)
    if not x.type.rank:
        return x
    top = _over(call, "max", x, keepdims=True)
    size = call.op("abs", top)
    finite = call.op("lt", size, call.scalar(math.inf, x.dtype))
    top = call.op("where", finite, top, call.scalar(0, x.dtype))
    total = _over(call, "sum", call.op("exp", call.op("sub", x, top)), keepdims=True)
    return call.reshape(call.op("add", call.op("log", total), top), call.shape)


@aten("var_mean.correction", "std_mean.correction", "var_mean.dim", "std_mean.dim")
def _variance_mean(call: Call) -> tuple[Node, ...]:
    result, mean = _moments(call)
    return result, call.reshape(mean, call.shape)


@aten(*(f"{name}.{kind}" for name in ("var", "std") for kind in ("correction", "dim", "default")))
def _variance(call: Call) -> Node:
    return _moments(call)[0]


def _moments(call: Call) -> tuple[Node, Node]:
    """sum((x - mean)^2) / (n - correction) or its root, and the mean with its axes kept."""
    x = call["self"]
    mean = _over(call, "mean", x, keepdims=True)
    centred = call.op("sub", x, mean)
    total = _over(call, "sum", call.op("mul", centred, centred))
    result = call.op("div", total, _freedom(call, x))
    return call.op("sqrt", result) if "std" in str(call.target) else result, mean


def _freedom(call: Call, x: Node) -> Node:
    """How many elements there are, less the correction; not below 0."""
    correction = float(call.get("correction", int(call.get("unbiased", True))))
    count = product(x.shape[a] for a in call.axes(call.get("dim"), x.type.rank))
    if isinstance(count, int):
        return call.scalar(max(count - correction, 0.0), x.dtype)
    less = call.op("sub", call.scalar(count, x.dtype), call.scalar(correction, x.dtype))
    return call.op("maximum", less, call.scalar(0.0, x.dtype))


@aten("linalg_norm.default")
def _norm(call: Call) -> Result:
    """Of all elements if neither order nor axes are given."""
    axes = call.get("dim") or range(call["self"].type.rank)
    call.require(
        call.get("ord") is None or len(axes) == 1,
        "a norm of matrices of that order",
        "torch.linalg.vector_norm",
    )
    return _vector_norm(call)


@aten("linalg_vector_norm.default", "norm.ScalarOpt_dim", "norm.Scalar", "frobenius_norm.dim")
def _vector_norm(call: Call) -> Node:
    """sum(|x|^p)^(1/p), and its limits."""
    x = call.cast(call["self"], call.dtype)
    order = float(call.get("ord", call.get("p", 2)))
    size = call.op("abs", x)
    if math.isinf(order):
        return _over(call, "max" if order > 0 else "min", size)
    match order:
        case 0:
            return _over(call, "sum", call.cast(call.cast(x, "bool"), x.dtype))
        case 1:
            return _over(call, "sum", size)
        case 2:
            return call.op("sqrt", _over(call, "sum", call.op("mul", x, x)))
    total = _over(call, "sum", call.op("pow", size, call.scalar(order, x.dtype)))
    return call.op("pow", total, call.scalar(1 / order, x.dtype))


@aten("diff.default")
def _diff(call: Call) -> Node:
    """Each element less the one before it, n times."""
    x: Node = call["self"]
    call.require(call.get("prepend") is None and call.get("append") is None, "diff with more values")
    axis = call.axis(call.get("dim", -1), x.type.rank)
    for _ in range(call.get("n", 1)):
        size = x.shape[axis]
        after = call.op("slice", x, axis=axis, start=1, stop=size)
        x = call.op("sub", after, call.op("slice", x, axis=axis, start=0, stop=dim(size - 1)))
    return x


@aten("isin.Tensor_Tensor", "isin.Tensor_Scalar")
def _isin(call: Call) -> Node:
    """Every element is compared with every test element."""
    x, tests = call["elements"], call.get("test_elements", call.get("test_element"))
    if not isinstance(tests, Node):
        found = call.op("eq", x, call.scalar(tests, x.dtype))
    else:
        row = call.reshape(call.cast(tests, x.dtype), (product(tests.shape),))
        equal = call.op("eq", call.reshape(x, (*x.shape, 1)), row)
        found = call.op("any", equal, axes=(x.type.rank,))
    return call.op("not", found) if call.get("invert", False) else found


# --- of special values


@aten("isnan.default", "isinf.default", "isfinite.default", "isposinf.default", "isneginf.default")
def _is_special(call: Call) -> Node:
    x = call["self"]
    name = str(call.target).split(".")[1]
    if x.dtype not in ("f32", "f16"):
        return call.op("full", shape=x.shape, value=name == "isfinite", dtype="bool")
    infinite = call.scalar(-math.inf if name == "isneginf" else math.inf, x.dtype)
    match name:
        case "isnan":
            return call.op("ne", x, x)
        case "isfinite":
            return call.op("lt", call.op("abs", x), infinite)
    return call.op("eq", call.op("abs", x) if name == "isinf" else x, infinite)


@aten("nan_to_num.default")
def _nan_to_num(call: Call) -> Node:
    x: Any = call["self"]
    if x.dtype not in ("f32", "f16"):
        return x  # type: ignore[no-any-return]
    most = 3.4028234663852886e38 if x.dtype == "f32" else 65504.0
    high, low = call.get("posinf", most), call.get("neginf", -most)
    for special, value in ((math.inf, high), (-math.inf, low)):
        found = call.op("eq", x, call.scalar(special, x.dtype))
        x = call.op("where", found, call.scalar(value, x.dtype), x)
    missing = call.op("ne", x, x)
    return call.op("where", missing, call.scalar(call.get("nan", 0.0), x.dtype), x)
