"""Fusion of a root-mean-square norm written out in elementary ops (Zhang and Sennrich 2019)."""

from __future__ import annotations

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.rewrite import Miss
from llmc.passes.match import scalar


def rms_norm(node: Node) -> Node | Miss | None:
    """weight * (x * rsqrt(mean(x * x) + eps)) -> rms_norm(x, weight)"""
    if node.op != "mul":
        return None
    match node:
        case Node("mul", (Node("constant") as weight, Node("mul") as scaled)) if weight.type.rank == 1:
            pass
        case Node("mul", (Node("mul") as scaled, Node("constant") as weight)) if weight.type.rank == 1:
            pass
        case _:
            return Miss(node, "is no product with one number for each column", 1)
    for x, factor in (scaled.inputs, scaled.inputs[::-1]):
        eps = _rms_eps(factor, x)
        if eps is not None and weight.shape == x.shape[-1:] and node.type == x.type:
            return make("rms_norm", (x, weight), node.source, eps=eps)


def _rms_eps(node: Node, x: Node) -> float | None:
    """eps of rsqrt(mean(x * x) + eps), or of 1 / sqrt of it"""
    match node:
        case Node("rsqrt", (Node("add", (mean, eps)),)):
            pass
        case Node("div", (one, Node("sqrt", (Node("add", (mean, eps)),)))) if scalar(one) == 1:
            pass
        case _:
            return None
    match mean:
        case Node("mean", (square,), {"axes": axes, "keepdims": True}) if axes == (x.type.rank - 1,):
            if scalar(eps) is not None and _is_square(square, x):
                return float(scalar(eps))


def _is_square(node: Node, x: Node) -> bool:
    if node.op == "pow":
        return node.inputs[0] is x and scalar(node.inputs[1]) == 2
    return node.op == "mul" and node.inputs[0] is node.inputs[1] is x


RULES = (rms_norm,)
