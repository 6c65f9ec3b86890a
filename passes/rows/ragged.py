"""`ragged`: encoders work on the tokens that exist, not on `batch x longest`.

Where nothing reads a value at padding, rows of tokens are enough: what works on each row for itself does so on
`[tokens, ...]`, and attention, whose mask leaves padding out anyway, finds its sequences by their offsets. The bits
at tokens stay as they were. `padding.py` finds the nodes, this file makes their packed forms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from llmc.compiler.dims import Bounds, dim, product, symbol, upper_bound
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, constant, make
from llmc.compiler.ops.ragged import MASKS
from llmc.compiler.pipeline import Keeps, Pass, Pipeline, close
from llmc.compiler.rewrite import note
from llmc.passes.match import is_scalar, reshaped, through_views
from llmc.passes.rows.blank import Blank
from llmc.passes.rows.padding import Padding, by_token, first_column, first_token, row_inputs

TOKENS = "tokens"  # the dim that is counted


@dataclass(frozen=True)
class Ragged(Pass):
    """Pack what is wanted at tokens only. Run it last, and `blank` before it for outputs that have token rows."""

    name = "ragged"
    keeps: ClassVar[Keeps] = close(1e-6)  # exact in llmc's kernels, not where BLAS sums by shape

    def enters(self) -> bool:
        """Padding is a matter of a graph's inputs."""
        return False

    def run(self, graph: Graph) -> Graph:
        """For the first mask that leaves an attention without use for its padding."""
        if TOKENS in graph.dims:
            return graph
        attentions = [node for node in graph.nodes if OPS[node.op].sequences is not None]
        found = tuple(masks(graph))
        for mask in found:
            padding = Padding(graph, mask)
            for node in attentions:
                note(pack_attention, node, "" if node in padding.packed else padding.reason(node))
            if any(node in padding.packed for node in attentions):
                return _Packer(graph, mask, padding).graph()
        for node in () if found else attentions:
            note(pack_attention, node, "no input says which keys are tokens")
        return graph


def pack_attention(node: Node) -> None:
    """mha(x, ...) -> unpack_rows(ragged_mha(pack(x), ...)): the name by which the journal knows it."""


def masks(graph: Graph) -> Iterator[Node]:
    """The inputs that may be a mask of tokens: those of whole numbers that an attention's keys are made from."""
    for node in Graph((), dict(_keys(graph))).nodes:
        if (
            node.op == "input"
            and node.type.rank == 2
            and node.dtype in MASKS
            and node.attributes["default"] != 0
        ):
            yield node


def _keys(graph: Graph) -> Iterator[tuple[str, Node]]:
    """The masks of keys, numbered."""
    for number, node in enumerate(graph.nodes):
        sequences = OPS[node.op].sequences
        at = None if sequences is None else sequences.keys(node)
        if at is not None:
            yield f"{number}", node.inputs[at]


def ragged_steps(graph: Graph, blank: bool) -> Pipeline:
    """The passes that make `graph` ragged; none where they would not.

    Args:
        blank: outputs that have token rows may become zeros at padding.
    """
    if Ragged().run(graph) is not graph:
        return Pipeline.of(Ragged())
    for mask in masks(graph) if blank else ():
        change = Blank(mask.attributes["name"])
        blanked = change.run(graph)
        if blanked is not graph and Ragged().run(blanked) is not blanked:
            return Pipeline.of(change, Ragged())
    return Pipeline(())


def blanked(graph: Graph, steps: Pipeline) -> Graph:
    """An imported `graph` with zeros at padding where `ragged_steps` say so: what an artifact is to compute."""
    for step in steps.steps:
        graph = step.change.run(graph) if isinstance(step.change, Blank) else graph
    return graph


class _Packer:
    """Rewrites one graph; every node is made once. To the ops it is their `Packing`."""

    def __init__(self, graph: Graph, mask: Node, padding: Padding) -> None:
        self.before, self.mask, self.padding = graph, mask, padding
        self.batch, self.seq = mask.shape
        self.whole: dict[Node, Node] = {}  # node -> its value at every place
        self.packed: dict[Node, Node] = {}  # node -> its rows of tokens

    def graph(self) -> Graph:
        """The graph with every node of `padding.packed` as rows."""
        for node in self.before.nodes:
            if node in self.padding.packed:
                self.packed[node] = self._packed(node)
            else:
                self.whole[node] = self._rebuilt(node)
        most = upper_bound(dim(self.batch * self.seq), self.before.dims)
        dims = {**self.before.dims, TOKENS: Bounds(1, most)}
        return replace(self.before.exchanged(self.padded), dims=dims)

    # --- where rows are

    @cached_property
    def index(self) -> Node:
        """i64[tokens]: the place of each token."""
        return make("pack_index", (self.mask,), tokens=symbol(TOKENS))

    @cached_property
    def offsets(self) -> Node:
        """i64[batch + 1]: the first token of each row."""
        return make("pack_offsets", (self.mask,))

    @cached_property
    def starts(self) -> Node:
        """i64[batch]: the same without the last."""
        return make("slice", (self.offsets,), axis=0, start=0, stop=self.batch)

    @cached_property
    def places(self) -> Node:
        """i64[batch, seq]: the token of each place."""
        return make("pack_places", (self.mask,))

    @cached_property
    def columns(self) -> Node:
        """i64[tokens]: the position of each token in its row."""
        size = self.seq
        length = constant(np.int64(size)) if isinstance(size, int) else make("dim", (), value=size)
        return make("mod", (self.index, length))

    # --- whole values

    def padded(self, node: Node) -> Node:
        if node not in self.whole:
            self.whole[node] = make("unpack_rows", (self.packed[node], self.places), node.source)
        return self.whole[node]

    def _rebuilt(self, node: Node) -> Node:
        """A node that stays as it is, on inputs that may have become rows."""
        packed = self.padding.packed
        if first_column(node) and node.inputs[0] in packed:  # kept whatever the mask says
            picked = make("embedding", (self.packed[node.inputs[0]], self.starts), node.source)
            return reshaped(picked, node.shape)
        first = first_token(node, self.mask)
        if first is not None and node.inputs[0] in packed:
            return self._first(node, self.padded(first))
        match node:
            case Node("where", (flags, x, zero)) if x in packed and is_scalar(zero, 0):
                if node.shape == x.shape and self._are_tokens(flags):
                    return self.padded(x)  # has its zeros already
        inputs = tuple(map(self.padded, node.inputs))
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        return node if same else node.with_inputs(inputs)

    def _first(self, node: Node, place: Node) -> Node:
        """What lies at the first token of each row: its first row, or the second if padding is before it."""
        place = reshaped(place, (self.batch,))
        behind = make("cast", (make("ne", (place, constant(np.int64(0)))),), dtype="i64")
        rows = make("add", (self.starts, behind))
        return reshaped(make("embedding", (self.packed[node.inputs[0]], rows), node.source), node.shape)

    def _are_tokens(self, flags: Node) -> bool:
        """Whether `flags` is the mask itself, as bool."""
        source = through_views(flags)
        return source is self.mask or (source.op == "cast" and through_views(source.inputs[0]) is self.mask)

    # --- rows

    def _packed(self, node: Node) -> Node:
        """The rows of a node."""
        declared = OPS[node.op]
        if declared.sequences is not None:
            return declared.sequences.packed(node, self)
        assert declared.rows is not None
        read = row_inputs(node)
        inputs = [
            self._aligned(x, declared.rows.missing(node, at)) if at in read else self.padded(x)
            for at, x in enumerate(node.inputs)
        ]
        return make(node.op, inputs, node.source, **declared.rows.attributes(node, (symbol(TOKENS),)))

    def _aligned(self, x: Node, missing: int) -> Node:
        """The rows of an operand that broadcasts, with `missing` axes before its own, to batch and seq first."""
        if missing >= 2:
            return self.padded(x)
        if not missing and by_token(x, self.mask):
            return self.rows(x)
        whole, shape = self.padded(x), (1,) * missing + x.shape
        if shape[:2] == (1, 1):
            return reshaped(whole, shape[1:])
        if shape[:2] == (1, self.seq):
            return _picked(reshaped(whole, shape[1:]), self.columns)
        wide = make("expand", (whole,), whole.source, shape=(*self.mask.shape, *shape[2:]))
        return _picked(reshaped(wide, (product(self.mask.shape), *shape[2:])), self.index)

    def rows(self, x: Node) -> Node:
        """The rows of tokens of a node `[batch, seq, ...]`."""
        if x not in self.packed:
            flat = reshaped(self.whole[x], (product(self.mask.shape), *x.shape[2:]))
            self.packed[x] = _picked(flat, self.index)
        return self.packed[x]


def _picked(table: Node, index: Node) -> Node:
    """Rows of a table."""
    if table.type.rank == 1:
        return make("gather", (table, index), table.source, axis=0)
    return make("embedding", (table, index), table.source)
