"""Fusion into `linear`: weights out of plain products, and what follows a product into its epilogue."""

from __future__ import annotations

import math

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.rewrite import Context, Decline
from llmc.passes.match import is_scalar, reshaped, scalar

_ACTIVATIONS = ("relu", "tanh", "silu", "sigmoid")


def linear_from_matmul(node: Node) -> Node | None:
    """matmul(x, constant w[k, n]) -> linear(x, transpose(w))"""
    match node:
        case Node("matmul", (x, w)) if w.op == "constant" and w.type.rank == 2 and node.dtype == "f32":
            return make("linear", (x, make("transpose", (w,), node.source, perm=(1, 0))), node.source)
        case Node("matmul", (x, Node("transpose", (w,), {"perm": (1, 0)}))) if w.op == "constant":
            return make("linear", (x, w), node.source) if node.dtype == "f32" else None


def linear_of_rows(node: Node, context: Context) -> Node | None:
    """reshape(linear(reshape(x[b, s, k], [b*s, k])), [b, s, n]) -> linear(x)"""
    match node:
        case Node("reshape", (Node("linear", (Node("reshape", (x,)), *rest)) as y,)):
            rows = x.shape[:-1] == node.shape[:-1] and x.shape[-1] == y.inputs[0].shape[-1]
            plain = y.shape[-1] == node.shape[-1] and "residual" not in y.attributes["epilogue"]
            if rows and plain and context.single(y):
                return make("linear", (x, *rest), y.source, **y.attributes)


def fuse_bias(node: Node, context: Context) -> Node | None:
    """linear(x, w) + b -> linear{bias}(x, w, b)"""
    match node:
        case Node("add", (y, b)) if _is_bias(y, b):
            pass
        case Node("add", (b, y)) if _is_bias(y, b):
            pass
        case _:
            return None
    if context.single(y):
        return _extended(y, "bias", reshaped(b, b.shape[-1:]))


def _is_bias(y: Node, b: Node) -> bool:
    if y.op != "linear" or b.op != "constant" or "residual" in y.attributes["epilogue"]:
        return False
    return b.shape == (1,) * (b.type.rank - 1) + y.shape[-1:] and y.type.rank >= b.type.rank


def fuse_residual(node: Node, context: Context) -> Node | Decline | None:
    """linear(x, w, ...) + r -> linear{..., residual}(x, w, ..., r)"""
    match node:
        case Node("add", (a, b)):
            for y, r in ((a, b), (b, a)):
                if y.op == "linear" and y.type == r.type and context.single(y):
                    return _extended(y, "residual", r)
            if "linear" in (a.op, b.op) and a.type == b.type:
                return Decline("the product is read elsewhere too")


def fuse_activation(node: Node, context: Context) -> Node | Decline | None:
    """gelu(linear(x, w, ...)) -> linear{..., gelu}(x, w, ...), and the other activations"""
    match node:
        case Node("gelu", (Node("linear") as y,), {"approximate": kind}):
            step = "gelu" if kind == "none" else "gelu_tanh"
        case Node("relu" | "tanh" | "silu" | "sigmoid" as step, (Node("linear") as y,)):
            pass
        case _:
            return None
    return _extended(y, step) if context.single(y) else Decline("the product is read elsewhere too")


def _extended(y: Node, step: str, *extra: Node) -> Node:
    epilogue = (*y.attributes["epilogue"], step)
    return make("linear", (*y.inputs, *extra), y.source, epilogue=epilogue)


def silu_from_sigmoid(node: Node) -> Node | None:
    """x * sigmoid(x) -> silu(x)"""
    match node:
        case Node("mul", (x, Node("sigmoid", (y,)))) if x is y:
            return make("silu", (x,), node.source)
        case Node("mul", (Node("sigmoid", (y,)), x)) if x is y:
            return make("silu", (x,), node.source)


def gelu_from_erf(node: Node) -> Node | None:
    """x * 0.5 * (1 + erf(x / sqrt 2)) -> gelu(x)"""
    found = _half_times(node)
    if found is None:
        return None
    x, (argument, op) = found
    if op == "erf" and _scaled(argument, x, math.sqrt(0.5)):
        return make("gelu", (x,), node.source)


def gelu_from_tanh(node: Node) -> Node | None:
    """0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))) -> gelu{tanh}(x)"""
    found = _half_times(node)
    if found is None:
        return None
    x, (argument, op) = found
    if op != "tanh" or argument.op != "mul":
        return None
    for inner, c in (argument.inputs, argument.inputs[::-1]):
        if _near(c, math.sqrt(2 / math.pi)) and inner.op == "add" and _is_cubic(inner, x):
            return make("gelu", (x,), node.source, approximate="tanh")


def _half_times(node: Node) -> tuple[Node, tuple[Node, str]] | None:
    """x, (argument, op) of `x * 0.5 * (1 + op(argument))` in any order of the factors."""
    leaves = _factors(node, 3)
    halves = [f for f in leaves if is_scalar(f, 0.5)]
    sums = [(f, s) for f in leaves if (s := _one_plus(f)) is not None]
    if len(leaves) != 3 or len(halves) != 1 or len(sums) != 1:
        return None
    x = next(f for f in leaves if f is not halves[0] and f is not sums[0][0])
    return (x, sums[0][1]) if x.type == node.type == sums[0][1][0].type else None


def _factors(node: Node, limit: int) -> list[Node]:
    if node.op != "mul" or limit < 2:
        return [node]
    left, right = node.inputs
    return [*_factors(left, limit - 1), *_factors(right, limit - 1)]


def _one_plus(node: Node) -> tuple[Node, str] | None:
    match node:
        case Node("add", (a, b)):
            for one, f in ((a, b), (b, a)):
                if is_scalar(one, 1) and f.op in ("erf", "tanh"):
                    return f.inputs[0], f.op


def _near(node: Node, value: float) -> bool:
    found = scalar(node)
    return found is not None and math.isclose(float(found), value, rel_tol=1e-6)


def _scaled(node: Node, x: Node, factor: float) -> bool:
    match node:
        case Node("mul", (a, c)):
            return (a is x and _near(c, factor)) or (c is x and _near(a, factor))
        case Node("div", (a, c)):
            return a is x and _near(c, 1 / factor)
    return False


def _is_cubic(node: Node, x: Node) -> bool:
    """x + 0.044715 * x**3"""
    a, b = node.inputs
    cubic = b if a is x else a if b is x else None
    if cubic is None or cubic.op != "mul":
        return False
    factors = [f for f in _factors(cubic, 4) if not _near(f, 0.044715)]
    match factors:
        case [Node("pow", (y, three))]:
            return y is x and is_scalar(three, 3)
    return len(factors) == 3 and all(f is x for f in factors)


RULES = (
    linear_from_matmul,
    linear_of_rows,
    silu_from_sigmoid,
    gelu_from_erf,
    gelu_from_tanh,
    fuse_bias,
    fuse_residual,
    fuse_activation,
)
