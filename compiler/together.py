"""Which calls of a function serve several sessions at once, and which serve each session by itself.

In one run of several sessions the rows of all their tokens lie one after the other. A call that works on each row for
itself runs once on all of them: a product reads its weights once. Any other call runs for each session, on that
session's rows, sizes and states, by the same kernel as if the session were alone. So a session's bits do not depend on
its company, and no kernel needs to know of sessions.

A value is in one of three places: `rows` lie side by side; what is `common` is there once, the same for all; all else
each session has for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import sympy

from llmc.compiler.calls import Call, Operand
from llmc.compiler.counted import counted_dims
from llmc.compiler.dims import Dim, dim, dim_names, symbol
from llmc.compiler.graph import Graph, Node, Results
from llmc.compiler.ops import OPS
from llmc.compiler.plan_states import LEAVES, held
from llmc.compiler.slots import root
from llmc.compiler.verify_dims import symbols_in, symbols_of


class Together:
    """The analysis of one function."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._common: dict[Node, bool] = {}
        for node in graph.nodes:
            self._common[node] = self._is_common(node)

    # --- whether it can be done

    @cached_property
    def refusal(self) -> str:
        """Why the function runs for one session at a time; empty if it serves several."""
        return next(self._refusals(), "")

    def _refusals(self) -> Iterator[str]:
        graph = self.graph
        if not graph.states:
            yield "it keeps no state, and a batch does the same"
        if counted_dims(graph):
            yield "its rows are counted from a mask"
        for node in graph.nodes:
            if node.bodies:
                yield f"{node.op} {node.source} has a body of its own".replace("  ", " ")
        for node in graph.inputs:
            if not self.rows(node):
                yield f"input {node.attributes['name']} has no rows side by side, its shape is {node.type}"
        for name, node in graph.outputs.items():
            source = held(node)
            if not self.rows(node) or not (source.op in LEAVES or self.rows(source)):
                yield f"output {name} has no rows side by side, its shape is {node.type}"

    # --- where values are

    @cached_property
    def row_dims(self) -> frozenset[str]:
        """The dims that each session brings its own of, call by call: those of inputs that no state has."""
        states = {name for node in self.graph.states for d in node.shape for name in dim_names(d)}
        return frozenset(n for node in self.graph.inputs for d in node.shape for n in dim_names(d)) - states

    def rows(self, node: Node) -> str:
        """The dim along which the rows of all sessions lie: the first axis, but for those of size 1. Else empty."""
        return "" if isinstance(node.type, Results) else self._row_axis(node)[1]

    def _row_axis(self, node: Node) -> tuple[int, str]:
        shape = node.shape
        axis = next((i for i, d in enumerate(shape) if d != 1), len(shape))
        if axis == len(shape) or not isinstance(shape[axis], sympy.Symbol):
            return axis, ""
        fixed = all(isinstance(d, int) for d in shape[axis + 1 :])
        name = str(shape[axis])
        return axis, name if fixed and name in self.row_dims else ""

    def common(self, node: Node) -> bool:
        """Whether a value is the same for all sessions, whatever they bring."""
        return self._common[node]

    def own(self, node: Node) -> bool:
        """Whether each session has a value for itself, in memory that is neither a row of all nor shared by all."""
        return not (self.rows(node) or self.common(node))

    def _is_common(self, node: Node) -> bool:
        if node.op in ("input", "state") or node.bodies or symbols_of(node):
            return False
        return all(self._common[x] for x in node.inputs)

    # --- what is computed for all at once

    def serves_all(self, call: Call) -> bool:
        """Whether a call runs once for the rows of all sessions; else it runs for each session."""
        written = call.operands[-1]
        assert isinstance(written, Node)
        known = self.rows(written)
        if not (self.common(written) or (known and self.rows(root(written)) == known)):
            return False
        if not _names((*call.scalars, call.items)) <= {known}:
            return False
        reads = call.operands[:-1]
        return all(self._lies(x, known) for x in reads) and self._row_wise(written, set(reads), known)

    def _lies(self, operand: Operand, rows: str) -> bool:
        """Whether an operand is common, or has its rows as the result has."""
        if not isinstance(operand, Node) or self.common(operand):
            return True
        return self.rows(operand) == self.rows(root(operand)) == rows

    def _row_wise(self, node: Node, reads: set[Operand], rows: str) -> bool:
        """Whether `node` and all between it and what is read work on each row for itself."""
        if self.common(node):
            return True
        if not (self._is_view(node, rows) or self.works_by_row(node, rows)):
            return False
        return all(x in reads or self._row_wise(x, reads, rows) for x in node.inputs)

    def _is_view(self, node: Node, rows: str) -> bool:
        """Whether rows of a node are those of its input in another shape."""
        return (
            OPS[node.op].view and node.op != "append" and self.rows(node) == self.rows(node.inputs[0]) == rows
        )

    def works_by_row(self, node: Node, rows: str) -> bool:
        """Whether a node computes each row from that row of its inputs and from what is common."""
        op = OPS[node.op]
        reads_sizes = bool(symbols_in(tuple(node.attributes.values()))) and not op.moves
        if op.rows is None or reads_sizes or self.rows(node) != rows:
            return False
        axis = self._row_axis(node)[0]
        read = op.rows.positions(node)
        if not read or (axis > 1 and not op.elementwise):
            return False
        whole = (x for at, x in enumerate(node.inputs) if at not in read)
        return all(map(self.common, whole)) and all(
            self._aligned(node.inputs[at], axis - op.rows.missing(node, at), rows, op.rows.broadcast)
            for at in read
        )

    def _aligned(self, x: Node, axis: int, rows: str, broadcast: bool) -> bool:
        """Whether an operand has its rows along this axis, or one row for all."""
        if self.common(x):
            return broadcast and (axis < 0 or x.shape[axis] == 1)
        return self._row_axis(x) == (axis, rows)


def _names(values: tuple[Any, ...]) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for value in values:
        found |= dim_names(value)
    return found


def row_bytes(nbytes: Dim, rows: str) -> Dim:
    """Bytes of one row of a value whose bytes are a multiple of the dim `rows`."""
    return dim(nbytes / symbol(rows))
