"""Products of levels alone, as integer ops of ONNX are, take up the scales that their sums are multiplied with."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.rewrite import Context
from llmc.passes.match import is_levels, is_scalar, reshaped
from llmc.passes.simplify.levels import levels_again, levels_reshaped, levels_turned


def scale_of_sums(node: Node, context: Context) -> Node | None:
    """f(dequantize(q, 1, z), dequantize(w, 1, ...)) * (s * t) -> f(dequantize(q, s, z), dequantize(w, t, ...))

    f is linear or conv2d, t constant, s the scale that q was quantised by.
    """
    match node:
        case Node("mul", (Node("linear" | "conv2d") as y, Node("mul", pair))) if _is_sums(y, context):
            pass
        case Node("mul", (Node("mul", pair), Node("linear" | "conv2d") as y)) if _is_sums(y, context):
            pass
        case _:
            return None
    for s, t in (pair, pair[::-1]):
        by_output = _by_output(t, y)
        if by_output is not None and all(d == 1 for d in s.shape):
            x, w = y.inputs
            inputs = (_scaled(x, reshaped(s, ())), _scaled(w, by_output))
            return make(y.op, inputs, node.source, **y.attributes)
    return None


def _is_sums(y: Node, context: Context) -> bool:
    if y.attributes["epilogue"] or not context.single(y):
        return False
    x, w = y.inputs
    return x.op == "dequantize" and is_scalar(x.inputs[1], 1) and is_levels(w) and is_scalar(w.inputs[1], 1)


def _by_output(t: Node, y: Node) -> Node | None:
    """A constant factor as the scale of the weight of `y`: one number, or one for each output."""
    if t.op != "constant":
        return None
    if all(d == 1 for d in t.shape):
        return reshaped(t, ())
    w = y.inputs[1]
    outputs, behind = w.shape[0], () if y.op == "linear" else (1, 1)
    if t.shape[-1 - len(behind) :] != (outputs, *behind) or t.shape != (*_ones(t, behind), outputs, *behind):
        return None
    return reshaped(t, (outputs, *(1,) * (w.type.rank - 1)))


def _ones(t: Node, behind: Sequence[int]) -> tuple[int, ...]:
    return (1,) * (t.type.rank - 1 - len(behind))


def _scaled(value: Node, scale: Node) -> Node:
    return value.with_inputs((value.inputs[0], scale, *value.inputs[2:]))


RULES = (levels_turned, levels_reshaped, levels_again, scale_of_sums)
