"""`split`: products of float32 in parts of 8 bits, for processors that multiply tiles of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np

from llmc.compiler.effects import tell_weights, weights
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.split import LONGEST, split_weights
from llmc.compiler.pipeline import Keeps, Pass
from llmc.errors import LlmcError
from llmc.passes.match import weight

SMALLEST = 32  # values of a row, and columns: with fewer there is nothing to gain


@dataclass(frozen=True)
class Split(Pass):
    """Multiply by constant weights in three parts of 8 bits: linear(x, w) -> split_linear(split_rows(x), w, scale)

    Sums are exact in int32 and errors are those of a float32 sum, relative to the largest values of a row and a column
    (`compiler/ops/split.py`). Weights that are not finite stay as they are, and so do small products.

    Args:
        skip: patterns of module paths to leave alone, such as "encoder.layer.0.*".
        min_columns: products with fewer output columns, or shorter rows, stay as they are.
    """

    name = "split"
    keeps: ClassVar[Keeps] = Keeps("close", 1e-4)
    skip: tuple[str, ...] = ()
    min_columns: int = SMALLEST

    def __post_init__(self) -> None:
        if self.min_columns < 1:
            raise LlmcError("split: min_columns must be positive", found=str(self.min_columns))

    def run(self, graph: Graph) -> Graph:
        """One walk; equal weights and equal rows are split once."""
        made: dict[Node, Node] = {}

        def rows(x: Node) -> Node:
            if x not in made:
                made[x] = make("split_rows", (x,), x.source)
            return made[x]

        def change(node: Node) -> Node:
            return _in_parts(node, rows(node.inputs[0])) if self._wanted(node) else node

        users = graph.users
        reasons = {w: self._left(n) for w in weights(graph) for n in users[w] if _is_product(n, w)}
        tell_weights(graph, {w for w, reason in reasons.items() if not reason}, lambda w: reasons.get(w, ""))
        return graph.replace(change)

    def _wanted(self, node: Node) -> bool:
        return node.op == "linear" and not self._left(node)

    def _left(self, node: Node) -> str:
        """Why a product stays as it is; empty if it does not."""
        value = weight(node.inputs[1])
        if value is None or value.array.dtype != np.float32:
            return f"stored as {node.inputs[1].op} {node.inputs[1].dtype}"
        n, k = value.array.shape
        if min(n, k) < self.min_columns:
            return f"with fewer than {self.min_columns} rows or columns"
        if k > LONGEST:
            return f"with rows of more than {LONGEST} values"
        if any(fnmatchcase(node.source.path, pattern) for pattern in self.skip):
            return "named by skip"
        return "" if np.isfinite(value.array).all() else "not finite"


def _is_product(node: Node, weight: Node) -> bool:
    return node.op == "linear" and node.inputs[1] is weight


def _in_parts(node: Node, rows: Node) -> Node:
    _, w, *extras = node.inputs
    value = weight(w)
    assert value is not None
    parts, scale = split_weights(value.array)
    pair = (Weight(parts, f"{value.name}.parts"), Weight(scale, f"{value.name}.scale"))
    operands = (constant(p, source=w.source) for p in pair)
    return make("split_linear", (rows, *operands, *extras), node.source, **node.attributes)
