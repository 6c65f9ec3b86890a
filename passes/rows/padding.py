"""What a graph computes at padding, and who reads it: the analysis behind `ragged`.

A value is `wanted` if its entries at padding reach an output or anything that mixes places. It is not wanted by
what has a known value at padding whatever it reads there: `x * mask`, `where(mask, x, 0)`, keys of an attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.ops import OPS
from llmc.compiler.ops.elementwise import chain_value
from llmc.compiler.ops.linear import EXTRAS
from llmc.compiler.ops.rules import same_dim

Known = np.ndarray[Any, Any] | None  # the one value at all padding, or not known

ELEMENTWISE = frozenset({"quantize", "dequantize"} | {name for name, op in OPS.items() if op.elementwise})
_FIRST = frozenset({0})
_ROWS: Mapping[str, frozenset[int]] = MappingProxyType(
    {
        **dict.fromkeys(("layer_norm", "rms_norm", "row_scale", "quantize_rows", "dequantize_rows"), _FIRST),
        "add_norm": frozenset({0, 1}),
        "embedding": frozenset({1}),
    }
)


def by_token(node: Node, mask: Node) -> bool:
    """Whether the first two axes of `node` are those of the mask."""
    return node.shape[:2] == mask.shape


def first_column(node: Node) -> bool:
    """Whether `node` is the first place of every row: `x[:, :1]`."""
    match node:
        case Node("slice", _, {"axis": 1, "start": start, "stop": stop}):
            return same_dim(start, 0) and same_dim(stop, 1)
    return False


def row_inputs(node: Node) -> frozenset[int]:
    """Positions of the inputs that `node`, of the form `[batch, seq, ...]`, reads row by row; none if it mixes rows."""
    if node.op in ELEMENTWISE:
        return frozenset(range(len(node.inputs)))
    match node:
        case Node("linear" | "qlinear", _, {"epilogue": steps}):
            extras = [s for s in steps if s in EXTRAS]
            first = len(node.inputs) - len(extras)
            return frozenset({0} | {first + i for i, s in enumerate(extras) if s == "residual"})
        case Node("embed_norm", _, {"tables": tables}):
            return frozenset(range(1, 2 * tables, 2))
        case Node("softmax" | "log_softmax" | "slice", _, {"axis": axis}):
            return _FIRST if axis >= 2 else frozenset()
        case Node("reshape" | "expand", (x,)):
            return _FIRST if x.shape[:2] == node.shape[:2] else frozenset()
        case Node("sum" | "mean" | "max" | "min", _, {"axes": axes}):
            return _FIRST if min(axes) >= 2 else frozenset()
        case Node("mha", _, {"has_keys": True}):
            return frozenset(range(4))  # a bias is of queries and keys
    return _ROWS.get(node.op, frozenset())


class Padding:
    """The analysis of one graph for one mask, an input `[batch, seq]` that is 0 at padding.

    Attributes:
        packed: the nodes `[batch, seq, ...]` that work row by row, or are an attention without use for padding,
            and that nobody wants at padding.
    """

    def __init__(self, graph: Graph, mask: Node) -> None:
        self.graph, self.mask = graph, mask
        self._known: dict[Node, Known] = {}
        for node in graph.nodes:
            self._known[node] = self._value(node)
        self._wanted = self._find_wanted()
        self.packed = frozenset(
            n for n in graph.nodes if by_token(n, mask) and self._by_rows(n) and n not in self._wanted
        )

    def reason(self, node: Node) -> str:
        """Why an attention is not packed."""
        return self._refusal(node) or f"its rows at padding are read by {self._wanted.get(node, 'nothing')}"

    # --- who reads padding

    def _find_wanted(self) -> dict[Node, str]:
        """node -> who wants it at padding."""
        wanted = {node: f"state {name}" for name, node in self.graph.updates.items()}
        wanted.update((node, f"output {name}") for name, node in self.graph.outputs.items())
        for node in reversed(self.graph.nodes):
            by_rows = row_inputs(node) if by_token(node, self.mask) and self._by_rows(node) else frozenset()
            ignored = self._known[node] is not None or first_column(node)
            for position, read in enumerate(node.inputs):
                crossed = node.op in ELEMENTWISE and read.type.rank != node.type.rank  # batch against seq
                if crossed or not (ignored or position in by_rows):
                    wanted.setdefault(read, f"{node.op} {node.source}".rstrip())
                elif node in wanted and not ignored:
                    wanted.setdefault(read, wanted[node])
        return wanted

    def _by_rows(self, node: Node) -> bool:
        if not row_inputs(node):
            return False
        return node.op != "mha" or not self._refusal(node)

    def _refusal(self, node: Node) -> str:
        """Why an `mha` cannot be packed, whoever reads it."""
        a = node.attributes
        if a["causal"]:
            return "it is causal"
        if not a["has_keys"]:
            return "it has no mask of keys"
        if not all(by_token(i, self.mask) for i in node.inputs[:4]):
            return "queries and keys are not those of the mask"
        keys = self._known[node.inputs[3]]
        if keys is None or bool(keys):
            return f"padding by {self.mask.attributes['name']} is not masked"
        return ""

    # --- values at padding

    def _value(self, node: Node) -> Known:
        """The value of a node at every place where the mask is 0, if it is one and known."""
        if node is self.mask:
            return np.zeros((), DTYPES[node.dtype])
        if node.op == "constant":
            array = node.attributes["value"].array
            return array.reshape(()) if array.size == 1 else None
        if not by_token(node, self.mask):
            return (
                self._known[node.inputs[0]] if node.op in ("reshape", "expand") and self._one(node) else None
            )
        if node.op in ("reshape", "expand"):
            return (
                self._known[node.inputs[0]]
                if by_token(node.inputs[0], self.mask) or self._one(node)
                else None
            )
        if not OPS[node.op].elementwise:
            return None
        inputs = [self._known[i] if self._aligned(i, node) else None for i in node.inputs]
        if node.op != "chain":
            return _evaluate(node.op, inputs, node.attributes)
        results: list[Known] = []
        for name, refs, attributes in node.attributes["body"]:
            arguments = [chain_value(r, inputs, results) for r in refs]
            results.append(_evaluate(name, arguments, OPS[name].complete(dict(attributes))))
        return results[-1]

    def _one(self, node: Node) -> bool:
        """Whether a view is of one number."""
        while node.op in ("reshape", "expand"):
            node = node.inputs[0]
        return node.op == "constant"

    def _aligned(self, x: Node, node: Node) -> bool:
        """Whether the batch and seq of `x` are those of `node`, or it is a constant."""
        return self._one(x) or (x.type.rank == node.type.rank and by_token(x, self.mask))


def _evaluate(op: str, arguments: list[Known], attributes: Any) -> Known:
    """The value of an element-wise op where some operands are not known. What is not known is finite."""
    match op, arguments:
        case "mul" | "and", (a, b) if (a is not None and not a) or (b is not None and not b):
            return a if a is not None and not a else b
        case "or", (a, b) if (a is not None and a) or (b is not None and b):
            return np.ones((), np.bool_)
        case "where", (c, a, b) if c is not None:
            return a if c else b
    if any(a is None for a in arguments):
        return None
    return np.asarray(OPS[op].reference(*arguments, **attributes)).reshape(())
