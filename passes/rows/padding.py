"""What a graph computes at padding, and who reads it: the analysis behind `ragged`.

A value is `wanted` if its entries at padding reach an output or anything that mixes places. It is not wanted by
what has a known value at padding whatever it reads there: `x * mask`, `where(mask, x, 0)`, keys of an attention.
But what makes the value known is wanted unless it is zero: `where(mask == 0, -1e9, x)` reads its condition.
"""

from __future__ import annotations

import numpy as np

from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.ops import OPS
from llmc.compiler.ops.rules import same_dim
from llmc.compiler.ops.traits import Known


def by_token(node: Node, mask: Node) -> bool:
    """Whether the first two axes of `node` are those of the mask."""
    return node.shape[:2] == mask.shape


def first_column(node: Node) -> bool:
    """Whether `node` is the first place of every row: `x[:, :1]`."""
    match node:
        case Node("slice", _, {"axis": 1, "start": start, "stop": stop}):
            return same_dim(start, 0) and same_dim(stop, 1)
    return False


def first_token(node: Node, mask: Node) -> Node | None:
    """The place i64[batch] of each row's first token, if `node` is what lies there: always a place that is kept.

    gather(x, expand(argmax(mask))) on axis 1; a row without tokens gives its first place.
    """
    match node:
        case Node("gather", (x, index), {"axis": 1}) if by_token(x, mask) and same_dim(index.shape[1], 1):
            while index.op in ("reshape", "expand"):
                index = index.inputs[0]
            match index:
                case Node("argmax", (flags,), {"axis": 1}) if _is_mask(flags, mask):
                    return index
    return None


def _is_mask(flags: Node, mask: Node) -> bool:
    """Whether `flags` is a mask that holds 0 and 1, perhaps cast."""
    while flags.op in ("reshape", "cast"):
        flags = flags.inputs[0]
    return flags is mask and (mask.attributes["low"], mask.attributes["high"]) == (0, 1)


def row_inputs(node: Node) -> frozenset[int]:
    """Positions of the inputs that `node`, of the form `[batch, seq, ...]`, reads row by row; none if it mixes rows."""
    rows = OPS[node.op].rows
    return frozenset() if rows is None else rows.positions(node)


def missing_axes(node: Node, position: int) -> int:
    """How many axes are before the first of an operand of `row_inputs` when it is broadcast."""
    rows = OPS[node.op].rows
    return 0 if rows is None else rows.missing(node, position)


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
            n for n in graph.nodes if by_token(n, mask) and self._read(n) and n not in self._wanted
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
            read = self._read(node) if by_token(node, self.mask) else frozenset()
            ignored = self._known[node] is not None or self._picks(node)
            whole = node in wanted or not read
            for position, x in enumerate(node.inputs):
                crossed = position in read and missing_axes(node, position)  # batch against seq
                told = whole and ignored and self._not_zero(x)
                if crossed or told or not (ignored or position in read):
                    wanted.setdefault(x, f"{node.op} {node.source}".rstrip())
                elif node in wanted and not ignored:
                    wanted.setdefault(x, wanted[node])
        return wanted

    def _picks(self, node: Node) -> bool:
        """Whether `node` is one place of each row, and one that is kept."""
        return first_column(node) or first_token(node, self.mask) is not None

    def _not_zero(self, x: Node) -> bool:
        """Whether what is known of `x` at padding is lost on its way through rows, which come back as zeros."""
        known = self._known[x]
        return known is not None and bool(known)

    def _read(self, node: Node) -> frozenset[int]:
        """Positions of the operands of which `node` reads nothing at padding but for its own rows there."""
        sequences = OPS[node.op].sequences
        if sequences is None:
            return row_inputs(node)
        return frozenset() if self._refusal(node) else frozenset(sequences.inputs)

    def _refusal(self, node: Node) -> str:
        """Why a node that works on sequences cannot be packed, whoever reads it."""
        sequences = OPS[node.op].sequences
        assert sequences is not None
        if refusal := sequences.refusal(node):
            return refusal
        mask = sequences.keys(node)
        if mask is None:
            return "it has no mask of keys"
        if not all(by_token(node.inputs[at], self.mask) for at in sequences.inputs):
            return "queries and keys are not those of the mask"
        keys = self._known[node.inputs[mask]]
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
        op = OPS[node.op]
        if op.moves and (self._one(node) or self._keeps_rows(node)):
            return self._known[node.inputs[0]]
        if not op.elementwise or not by_token(node, self.mask):
            return None
        inputs = [self._known[i] if self._aligned(i, node) else None for i in node.inputs]
        return op.known(inputs, node.attributes)

    def _keeps_rows(self, node: Node) -> bool:
        """Whether each row of `node` is made of that row of its input."""
        return by_token(node, self.mask) and 0 in row_inputs(node)

    def _one(self, node: Node) -> bool:
        """Whether a node is one number, or that moved."""
        while OPS[node.op].moves:
            node = node.inputs[0]
        return node.op == "constant"

    def _aligned(self, x: Node, node: Node) -> bool:
        """Whether the batch and seq of `x` are those of `node`, or it is a constant."""
        return self._one(x) or (x.type.rank == node.type.rank and by_token(x, self.mask))
