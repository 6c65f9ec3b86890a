"""`narrow`: what is read at some places of a sequence only is computed there only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from llmc.compiler.dims import Dim
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, make
from llmc.compiler.ops.rules import same_dim
from llmc.compiler.pipeline import Keeps, Pass, close
from llmc.compiler.rewrite import note
from llmc.passes.rows.padding import row_inputs

_ROWS = frozenset({"linear", "layer_norm", "rms_norm", "add_norm"})


class Span(NamedTuple):
    """Places start..stop of axis 1."""

    start: Dim
    stop: Dim


@dataclass(frozen=True)
class Narrow(Pass):
    """Compute only the places that are read: slice(f(x)) -> f(slice(x)), where f works on each place for itself.

    A classifier that reads the first token needs the feed-forward block of its last layer there alone. Attention stops
    it. Run it after `fuse`.
    """

    name = "narrow"
    keeps: ClassVar[Keeps] = close(1e-6)  # exact in llmc's kernels, not where BLAS sums by shape

    def run(self, graph: Graph) -> Graph:
        """For all spans at once."""
        spans = _spans(graph)
        if not any(node.op == "linear" for node in spans):
            return graph  # nothing to gain
        for node in spans:
            note(slice_early, node, "")
        return _Narrower(graph, spans).graph()


def slice_early(node: Node) -> None:
    """slice(f(x)) -> f(slice(x)): the name by which the journal knows it."""


def _spans(graph: Graph) -> Mapping[Node, Span]:
    """The nodes that are read at one span only, and can be computed there alone."""
    spans: dict[Node, Span] = {}
    kept = set(graph.roots)
    for node in reversed(graph.nodes):
        if node in kept or not _by_places(node):
            continue
        read = {_span_of(reader, node, spans) for reader in graph.users[node]}
        if len(read) == 1 and (span := read.pop()) is not None:
            spans[node] = span
    return spans


def _by_places(node: Node) -> bool:
    """Whether each place of axis 1 is computed from that place of the inputs."""
    return node.type.rank >= 3 and (node.op in _ROWS or OPS[node.op].elementwise)


def _span_of(reader: Node, node: Node, spans: Mapping[Node, Span]) -> Span | None:
    """Where `reader` reads `node`; None: everywhere, or it cannot be said."""
    match reader:
        case Node("slice", _, {"axis": 1, "start": start, "stop": stop}):
            return Span(start, stop)
    # of other rank, an operand that broadcasts has its places on another axis
    if reader not in spans or reader.type.rank != node.type.rank or reader.shape[:2] != node.shape[:2]:
        return None
    rows = row_inputs(reader)
    by_place = all(at in rows for at, read in enumerate(reader.inputs) if read is node)
    return spans[reader] if by_place else None


class _Narrower:
    """Rewrites one graph; every node is made once."""

    def __init__(self, graph: Graph, spans: Mapping[Node, Span]) -> None:
        self.before, self.spans = graph, spans
        self.whole: dict[Node, Node] = {}  # node -> its value at every place
        self.narrow: dict[
            tuple[Node, int, Span], Node
        ] = {}  # (node, axis of its places, span) -> its value there

    def graph(self) -> Graph:
        """The graph with every node of `spans` at its span."""
        for node in self.before.nodes:
            if node not in self.spans:
                self.whole[node] = self._rebuilt(node)
        return self.before.exchanged(self.whole.__getitem__)

    def _rebuilt(self, node: Node) -> Node:
        if node.op == "slice" and node.inputs[0] in self.spans:
            return self._at(node.inputs[0], 1, self.spans[node.inputs[0]])
        inputs = tuple(self.whole[i] for i in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        return node if same else node.with_inputs(inputs)

    def _at(self, node: Node, axis: int, span: Span) -> Node:
        """`node` at a span of its axis."""
        if (node, axis, span) not in self.narrow:
            made = self._computed(node) if node in self.spans else self._sliced(node, axis, span)
            self.narrow[node, axis, span] = made
        return self.narrow[node, axis, span]

    def _sliced(self, node: Node, axis: int, span: Span) -> Node:
        return make("slice", (self.whole[node],), node.source, axis=axis, start=span.start, stop=span.stop)

    def _computed(self, node: Node) -> Node:
        rows = row_inputs(node)
        inputs = [self._operand(node, x) if at in rows else self.whole[x] for at, x in enumerate(node.inputs)]
        return make(node.op, inputs, node.source, **node.attributes)

    def _operand(self, node: Node, x: Node) -> Node:
        """An operand that may broadcast: at the span if it has the places, else as it is."""
        axis = 1 - (node.type.rank - x.type.rank)
        if axis < 0 or not same_dim(x.shape[axis], node.shape[1]):
            return self.whole[x]
        return self._at(x, axis, self.spans[node])
