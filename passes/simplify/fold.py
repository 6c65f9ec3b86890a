"""`fold`: what depends on constants only is computed now."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from llmc.compiler.graph import DTYPES, Graph, Node, Results, Weight
from llmc.compiler.ops import OPS, constant
from llmc.compiler.pipeline import Pass
from llmc.compiler.rewrite import Decline, rewrite
from llmc.errors import LlmcError

# A number repeated needs no memory; a weight once compressed or quantised stays so.
KEPT = frozenset({"constant", "input", "state", "expand", "full", "dequantize"})


@dataclass(frozen=True)
class Fold(Pass):
    """Replace nodes whose inputs are all constant by their value, computed by the op's NumPy reference.

    Args:
        limit: bytes; a larger result is kept only if it is no larger than the constants it replaces.
    """

    name = "fold"
    limit: int = 65536

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise LlmcError("fold: limit must not be negative", found=str(self.limit))

    def run(self, graph: Graph) -> Graph:
        """One walk folds all: operands come first."""
        return rewrite(graph, (self.fold_constants, self.fold_repeated_weight))

    def fold_constants(self, node: Node) -> Node | Decline | None:
        """f(constants) -> constant"""
        if node.op in KEPT or OPS[node.op].stored or isinstance(node.type, Results):
            return None
        if any(i.op != "constant" for i in node.inputs):
            return None
        if not all(isinstance(d, int) for d in node.shape) or _names_dims(node):
            return None
        size = math.prod(node.shape) * DTYPES[node.dtype].itemsize
        if size > max(self.limit, sum(i.attributes["value"].array.nbytes for i in node.inputs)):
            return Decline(f"the result would take {size} bytes")
        return constant(Weight(_value(node), _name(node)), source=node.source)

    def fold_repeated_weight(self, node: Node) -> Node | None:
        """conv2d(x, expand(constant)) -> conv2d(x, constant): its kernels are made for weights that are there"""
        if node.op != "conv2d" or node.inputs[1].op not in ("expand", "full"):
            return None
        x, weight, *others = node.inputs
        known = all(i.op == "constant" for i in weight.inputs) and all(
            isinstance(d, int) for d in weight.shape
        )
        if not known:
            return None
        made = constant(Weight(_value(weight), _name(weight)), source=weight.source)
        return node.with_inputs((x, made, *others))


def _names_dims(node: Node) -> bool:
    """Whether an attribute holds a symbolic dim though the shape does not, as in `dim(seq)`."""
    values = [node.attributes.get(k) for k in ("value", "start", "stop")]
    return any(getattr(v, "free_symbols", None) for v in values)


def _value(node: Node) -> np.ndarray[Any, Any]:
    declared = OPS[node.op]
    attributes = dict(node.attributes) | ({"sizes": {}} if declared.symbolic else {})
    arrays = [i.attributes["value"].array for i in node.inputs]
    result = declared.reference(*arrays, **attributes)
    return np.ascontiguousarray(np.asarray(result, DTYPES[node.dtype])).reshape(node.shape)


def _name(node: Node) -> str:
    """The common folder of the operands' names and the op: `encoder.layer.0.attention.self.concat`."""
    names = [i.attributes["value"].name for i in node.inputs]
    words = zip(*(name.split(".") for name in names if name), strict=False)
    common = takewhile(lambda column: len(set(column)) == 1, words)
    return ".".join([*(column[0] for column in common), node.op])
