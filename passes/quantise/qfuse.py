"""`qfuse`: one kernel for each product or convolution on int8, and each product with half-precision weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.rows import pack_rows, row_stride
from llmc.compiler.pipeline import Keeps
from llmc.compiler.rewrite import RewritePass
from llmc.passes.quantise.integer import integer_convolution, integer_product, rows_by_channel


def half_product(node: Node) -> Node | None:
    """linear(x, cast(w as half), ...) -> linear(x, w as half, ...)"""
    match node:
        case Node("linear", (x, Node("cast", (w,)), *extras)) if w.op == "constant" and w.dtype == "f16":
            return make("linear", (x, w, *extras), node.source, **node.attributes)


def _narrow(table: Node) -> Node | None:
    """The constant that `table` is made of: packed rows, or half precision."""
    match table:
        case Node("dequantize", (q, s)) if q.op == s.op == "constant" and s.shape == (*q.shape[:-1], 1):
            rows = pack_rows(
                q.attributes["value"].array, s.attributes["value"].array, row_stride(q.shape[-1])
            )
            name = f"{q.attributes['value'].name}.rows"
            return constant(Weight(rows, name), source=table.source)
        case Node("cast", (half,)) if half.op == "constant" and half.dtype == "f16":
            return half


def narrow_embedding(node: Node) -> Node | None:
    """embedding(dequantize(q, s), i) -> dequantize_rows(embedding(rows, i)); half precision likewise"""
    if node.op != "embedding" or node.inputs[0].type.rank != 2 or node.dtype != "f32":
        return None
    table = _narrow(node.inputs[0])
    if table is None:
        return None
    picked = make("embedding", (table, node.inputs[1]), node.source)
    if table.dtype == "f16":
        return make("cast", (picked,), node.source, dtype="f32")
    return make("dequantize_rows", (picked,), node.source, size=int(node.shape[-1]))


def narrow_embed_norm(node: Node) -> Node | None:
    """embed_norm(dequantize(q, s), i, ...) -> embed_norm(rows, i, ...); half precision likewise"""
    if node.op != "embed_norm":
        return None
    inputs = list(node.inputs)
    for at in range(0, 2 * node.attributes["tables"], 2):
        inputs[at] = _narrow(inputs[at]) or inputs[at]
    same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
    return None if same else node.with_inputs(inputs)


@dataclass(frozen=True)
class Qfuse(RewritePass):
    """Fuse dequantised operands into integer products, and narrow tables and weights into what reads them.

    Sums of products become exact, so the answers move by the float rounding that is saved.
    """

    name = "qfuse"
    keeps: ClassVar[Keeps] = Keeps("close", 1e-4)
    rules = (
        integer_product,
        integer_convolution,
        rows_by_channel,
        half_product,
        narrow_embedding,
        narrow_embed_norm,
    )
