"""`int16`, `int8-blocks`: products of floats with stored weights of 8 or 4 bits become products of integers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmc.compiler.effects import Verdict, tell
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.int16 import LONGEST, fits, longest_block
from llmc.compiler.pipeline import LOSSY, Keeps, Pipeline
from llmc.compiler.rewrite import Decline, RewritePass, Rule
from llmc.passes.match import weight


def product_by_row(node: Node) -> Node | Decline | None:
    """linear(x, blockwise(l, s)) -> int16_linear(int16_rows(x), l, s), of 8 bits and one scale for each row"""
    match node:
        case Node("linear", (x, Node("blockwise", (levels, scales, *zeros), b), *extras)) if b["bits"] == 8:
            pass
        case _:
            return None
    if b["block"] < b["columns"] or zeros:
        return None
    s = weight(scales)
    if levels.op != "constant" or s is None:
        return Decline("the weight is computed")
    if not b["columns"] < LONGEST:
        return Decline(f"sums of {b['columns']} products may not fit 32 bits")
    scale = constant(Weight(s.array.reshape(-1).astype(np.float32), s.name), source=scales.source)
    rows = make("int16_rows", (x,), x.source)
    return make("int16_linear", (rows, levels, scale, *extras), node.source, **node.attributes)


def product_by_block(node: Node) -> Node | Decline | None:
    """linear(x, blockwise(l, s)) -> int16_blockwise(int16_rows(x), l, s)"""
    return _by_block(node, "int16")


def product_by_block_of_bytes(node: Node) -> Node | Decline | None:
    """linear(x, blockwise(l, s)) -> int8_blockwise(int8_rows(x), l, s)"""
    made = _by_block(node, "int8")
    if made is None and node.op == "linear" and node.inputs[1].op == "blockwise":
        return Decline("one scale for each row: `int16` is for such weights")
    return made


def _by_block(node: Node, levels_of_rows: str) -> Node | Decline | None:
    match node:
        case Node("linear", (x, Node("blockwise", (levels, *by_block), b), *extras)):
            pass
        case _:
            return None
    zeros = len(by_block) > 1
    if b["bits"] == 8 and b["block"] >= b["columns"] and not zeros:
        return None
    if any(part.op != "constant" for part in (levels, *by_block)):
        return Decline("the weight is computed")
    if not fits(b["columns"], b["bits"], b["block"]):
        most = longest_block(b["bits"])
        return Decline(f"blocks of {b['block']} are no multiple of 16 up to {most}, nor rows of at most that")
    rows = make(f"{levels_of_rows}_rows", (x,), x.source, block=b["block"])
    inputs = (rows, levels, *by_block, *extras)
    return make(f"{levels_of_rows}_blockwise", inputs, node.source, **b, has_zeros=zeros, **node.attributes)


@dataclass(frozen=True)
class Int16(RewritePass):
    """Round the activations of products with stored weights of 8 or 4 bits to 16 bits, by token, and sum exactly.

    What a value loses is at most 1.6e-5 of the largest of its token.
    """

    name = "int16"
    keeps: ClassVar[Keeps] = LOSSY
    rules: ClassVar[tuple[Rule, ...]] = (product_by_row, product_by_block)

    def run(self, graph: Graph) -> Graph:
        """Apply the rules, and tell of every product with such weights."""
        products = [n for n in graph.nodes if n.op == "linear" and n.inputs[1].op == "blockwise"]
        tell("products with stored weights", (Verdict(n, 1, self._left(n)) for n in products))
        return super().run(graph)

    def _left(self, node: Node) -> str:
        """Why a product keeps its activations; empty if it does not."""
        found = (rule(node) for rule in self.rules)
        return next((made.reason for made in found if isinstance(made, Decline)), "")


@dataclass(frozen=True)
class Int8Blocks(Int16):
    """Round the activations of products with weights in blocks to int8, with a scale for each block, and sum exactly.

    What a value loses is at most 0.4 % of the largest of its block.
    """

    name = "int8-blocks"
    rules = (product_by_block_of_bytes,)


def with_kernels(pipeline: Pipeline, integer_rows: Collection[str]) -> Pipeline:
    """`pipeline` but for the passes that round rows to integers for which there are no kernels: rows stay float.

    Args:
        integer_rows: those there are kernels for, as `Backend.integer_rows` has them.
    """
    kept = [s for s in pipeline.steps if not isinstance(s.change, Int16) or s.change.name in integer_rows]
    return pipeline if len(kept) == len(pipeline.steps) else Pipeline(tuple(kept))
