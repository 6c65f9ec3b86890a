"""Fusion into `conv2d`: padding, the scale and shift of a batch norm, residual sums and activations."""

from __future__ import annotations

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.rewrite import Context
from llmc.passes.match import is_scalar, reshaped

_BARE = ((), ("bias",))


def fold_scale(node: Node, context: Context) -> Node | None:
    """conv2d(x, w, b) * s by channel -> conv2d(x, w * s, b * s)"""
    match node:
        case Node("mul", (Node("conv2d", (x, w, *bias)) as y, s)) if _by_channel(s, y):
            pass
        case Node("mul", (s, Node("conv2d", (x, w, *bias)) as y)) if _by_channel(s, y):
            pass
        case _:
            return None
    if y.attributes["epilogue"] not in _BARE or w.op != "constant" or not context.single(y):
        return None
    o = w.shape[0]
    weight = make("mul", (w, reshaped(s, (o, 1, 1, 1))), node.source)
    shifts = [make("mul", (b, reshaped(s, (o,))), node.source) for b in bias]
    return make("conv2d", (x, weight, *shifts), y.source, **y.attributes)


def fold_shift(node: Node, context: Context) -> Node | None:
    """conv2d(x, w) + b by channel -> conv2d{bias}(x, w, b); a bias that is there is added to b"""
    match node:
        case Node("add", (Node("conv2d", (x, w, *bias)) as y, b)) if _by_channel(b, y):
            pass
        case Node("add", (b, Node("conv2d", (x, w, *bias)) as y)) if _by_channel(b, y):
            pass
        case _:
            return None
    if y.attributes["epilogue"] not in _BARE or not context.single(y):
        return None
    shift = reshaped(b, (w.shape[0],))
    shift = make("add", (bias[0], shift), node.source) if bias else shift
    return make("conv2d", (x, w, shift), y.source, **{**y.attributes, "epilogue": ("bias",)})


def _by_channel(value: Node, y: Node) -> bool:
    """A constant `[o, 1, 1]` or `[1, o, 1, 1]`."""
    shape = (1,) * (4 - value.type.rank) + value.shape
    return value.op == "constant" and shape == (1, y.shape[1], 1, 1)


def fold_padding(node: Node) -> Node | None:
    """conv2d(pad(x)) -> conv2d{padding}(x)"""
    match node:
        case Node("conv2d", (Node("pad", (x,), {"before": before, "after": after, "value": 0}), *rest), a):
            if before[:2] == after[:2] == (0, 0):
                added = (*before[2:], *after[2:])
                padding = tuple(p + q for p, q in zip(a["padding"], added, strict=True))
                return make("conv2d", (x, *rest), node.source, **{**a, "padding": padding})


def fuse_residual(node: Node, context: Context) -> Node | None:
    """conv2d(x, w, ...) + r -> conv2d{..., residual}(x, w, ..., r)"""
    match node:
        case Node("add", (a, b)):
            for y, r in ((a, b), (b, a)):
                if y.op == "conv2d" and y.type == r.type and context.single(y):
                    return _extended(y, "residual", r)


def fuse_activation(node: Node, context: Context) -> Node | None:
    """relu(conv2d(...)) -> conv2d{..., relu}(...), and relu6, silu, gelu, tanh, sigmoid"""
    match node:
        case Node("minimum", (Node("maximum", (y, low)) as inner, high)) if is_scalar(high, 6):
            step = "relu6" if is_scalar(low, 0) and context.single(inner) else ""
        case Node("gelu", (y,), {"approximate": kind}):
            step = "gelu" if kind == "none" else "gelu_tanh"
        case Node("relu" | "tanh" | "silu" | "sigmoid" as step, (y,)):
            pass
        case _:
            return None
    if y.op == "conv2d" and step and context.single(y):
        return _extended(y, step)


def _extended(y: Node, step: str, *extra: Node) -> Node:
    epilogue = (*y.attributes["epilogue"], step)
    return make("conv2d", (*y.inputs, *extra), y.source, **{**y.attributes, "epilogue": epilogue})


RULES = (fold_padding, fold_scale, fold_shift, fuse_residual, fuse_activation)
