"""Products with weights, and what follows them. A weight that only they read is stored as ONNX multiplies it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops.elementwise import GELU_LIMIT, GELU_POLY
from llmc.compiler.ops.linear import EXTRAS
from llmc.compiler.to_onnx.elementwise import silu
from llmc.compiler.to_onnx.emitter import Emitter
from llmc.compiler.to_onnx.table import exports
from llmc.compiler.to_onnx.tensors import Array


def read_otherwise(graph: Graph) -> frozenset[str]:
    """Digests of constants that anything but a product reads: they lie in the file as they are, once."""
    return frozenset(
        i.attributes["value"].digest
        for node in graph.everywhere()
        for at, i in enumerate(node.inputs)
        if i.op == "constant" and i.type.rank == 2 and not _is_weight(node, at)
    )


def _is_weight(node: Node, at: int) -> bool:
    """Whether an operand is only ever multiplied by: those of rank 2 are, by Gemm, as they are."""
    return node.op in ("linear", "qlinear") and at == 1 and node.type.rank != 2


def turned(array: Array) -> Array:
    """[n, k] -> [k, n]"""
    return array.T


@exports("matmul")
def _matmul(e: Emitter, node: Node) -> str:
    return e.op("MatMul", *e.inputs(node))


@exports("linear")
def _linear(e: Emitter, node: Node) -> str:
    x, w, *extras = node.inputs
    steps = node.attributes["epilogue"]
    if x.type.rank == 2 and _stored(w) is not None:
        first = extras[:1] if steps[:1] == ("bias",) else []
        weight = e.cast(e.value(w), w.dtype, "f32")
        made = e.op("Gemm", e.value(x), weight, *map(e.value, first), transB=1)
        return epilogue(e, made, steps[len(first) :], extras[len(first) :])
    return epilogue(e, e.op("MatMul", e.value(x), _columns(e, w)), steps, extras)


def _columns(e: Emitter, w: Node) -> str:
    """A weight f32 or f16 [n, k] as f32 [k, n].

    A quantised one is turned behind DequantizeLinear: where the scales lie along the columns ONNX Runtime takes the
    product for one that may round its activations to 8 bits.
    """
    held = _stored(w)
    if held is not None and held.attributes["value"].digest not in e.kept:
        return e.cast(e.tensors.add(held.attributes["value"], change=turned), held.dtype, "f32")
    return e.transpose(e.cast(e.value(w), w.dtype, "f32"), (1, 0))


def _stored(w: Node) -> Node | None:
    """The constant that a weight is, perhaps of another dtype."""
    held = w.inputs[0] if w.op == "cast" else w
    return held if held.op == "constant" else None


def epilogue(e: Emitter, x: str, steps: Sequence[str], extras: Sequence[Node]) -> str:
    """What is added to a product, and applied to it, in order."""
    pending: Iterator[Node] = iter(extras)
    for step in steps:
        x = e.op("Add", x, e.value(next(pending))) if step in EXTRAS else activation(e, step, x)
    return x


def activation(e: Emitter, step: str, x: str) -> str:
    """A step of an epilogue that reads nothing else."""
    match step:
        case "gelu" | "gelu_tanh":
            return e.op("Gelu", x, approximate="tanh" if step == "gelu_tanh" else "none")
        case "gelu_poly":
            return _gelu_poly(e, x)
        case "relu6":
            return e.op("Clip", x, e.number(0, "f32"), e.number(6, "f32"))
        case "silu":
            return silu(e, x)
    return e.op(step.capitalize(), x)


def _gelu_poly(e: Emitter, x: str) -> str:
    """x (1/2 + t P(t^2)), t within the limit."""
    x = e.op("Max", x, e.number(-GELU_LIMIT, "f32"))
    t = e.op("Min", x, e.number(GELU_LIMIT, "f32"))
    square = e.op("Mul", t, t)
    total = e.number(GELU_POLY[0], "f32")
    for coefficient in GELU_POLY[1:]:
        total = e.op("Add", e.op("Mul", total, square), e.number(coefficient, "f32"))
    return e.op("Mul", x, e.op("Add", e.op("Mul", t, total), e.number(0.5, "f32")))
