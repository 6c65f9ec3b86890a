"""Fusion into `linear`, of what follows it."""

from __future__ import annotations

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.rewrite import Context, Decline
from llmc.passes.fuse import levels
from llmc.passes.fuse.gelu import gelu_from_erf, gelu_from_tanh
from llmc.passes.match import is_weight, reshaped

_ACTIVATIONS = ("relu", "tanh", "silu", "sigmoid")


def linear_from_matmul(node: Node) -> Node | None:
    """matmul(x, constant w[k, n]) -> linear(x, transpose(w))"""
    match node:
        case Node("matmul", (x, w)) if is_weight(w) and w.type.rank == 2 and node.dtype == "f32":
            return make("linear", (x, make("transpose", (w,), node.source, perm=(1, 0))), node.source)
        case Node("matmul", (x, Node("transpose", (w,), {"perm": (1, 0)}))) if is_weight(w):
            return make("linear", (x, w), node.source) if node.dtype == "f32" else None


def linear_of_rows(node: Node, context: Context) -> Node | None:
    """reshape(linear(reshape(x[b, s, k], [b*s, k])), [b, s, n]) -> linear(x)"""
    match node:
        case Node("reshape", (Node("linear", (Node("reshape", (x,)), *rest)) as y,)):
            rows = x.shape[:-1] == node.shape[:-1] and x.shape[-1] == y.inputs[0].shape[-1]
            plain = y.shape[-1] == node.shape[-1] and "residual" not in y.attributes["epilogue"]
            if rows and plain and context.single(y):
                return make("linear", (x, *rest), y.source, **y.attributes)


def fuse_bias(node: Node, context: Context) -> Node | Decline | None:
    """linear(x, w) + b -> linear{bias}(x, w, b)"""
    match node:
        case Node("add", (Node("linear") as y, b)) if _is_bias(y, b):
            pass
        case Node("add", (b, Node("linear") as y)) if _is_bias(y, b):
            pass
        case _:
            return None
    if not context.single(y):
        return Decline("the product is read elsewhere too", y)
    return _extended(y, "bias", reshaped(b, b.shape[-1:]))


def _is_bias(y: Node, b: Node) -> bool:
    if b.op != "constant" or "residual" in y.attributes["epilogue"]:
        return False
    return b.shape == (1,) * (b.type.rank - 1) + y.shape[-1:] and y.type.rank >= b.type.rank


def fuse_residual(node: Node, context: Context) -> Node | Decline | None:
    """linear(x, w, ...) + r -> linear{..., residual}(x, w, ..., r)"""
    match node:
        case Node("add", (a, b)):
            for y, r in ((a, b), (b, a)):
                if y.op == "linear" and y.type == r.type and context.single(y):
                    return _extended(y, "residual", r)
            product = next((n for n in (a, b) if n.op == "linear"), None)
            if product is not None and a.type == b.type:
                return Decline("the product is read elsewhere too", product)


def fuse_activation(node: Node, context: Context) -> Node | Decline | None:
    """gelu(linear(x, w, ...)) -> linear{..., gelu}(x, w, ...), and the other activations"""
    match node:
        case Node("gelu", (Node("linear") as y,), {"approximate": kind}):
            step = "gelu" if kind == "none" else "gelu_tanh"
        case Node("relu" | "tanh" | "silu" | "sigmoid" as step, (Node("linear") as y,)):
            pass
        case _:
            return None
    return _extended(y, step) if context.single(y) else Decline("the product is read elsewhere too", y)


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


RULES = (
    *levels.RULES,
    linear_from_matmul,
    linear_of_rows,
    silu_from_sigmoid,
    gelu_from_erf,
    gelu_from_tanh,
    fuse_bias,
    fuse_residual,
    fuse_activation,
)
