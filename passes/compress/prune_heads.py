"""`prune-heads`: whole attention heads are taken out, and the four projections around them shrink."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import ClassVar

import numpy as np

from llmc.compiler.effects import Verdict, tell
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError
from llmc.passes.compress.prune_neurons import fewer_columns, fewer_rows
from llmc.passes.compress.weights import Array, Make, linears, readers, rebuild, share_of


@dataclass(frozen=True)
class Layer:
    """One attention: the `mha`, and the `linear` that alone reads it, or some rows of it."""

    mha: Node
    out: Node

    @property
    def heads(self) -> int:
        return int(self.mha.attributes["heads"])

    def columns(self, head: int, place: int) -> slice:
        """Where head `head` lies in the output of projection `place` (0 q, 1 k, 2 v)."""
        size = int(self.mha.attributes["head_dim"])
        start = self.mha.attributes["offsets"][place] + head * size
        return slice(start, start + size)


@dataclass(frozen=True)
class PruneHeads(Pass):
    """Remove attention heads of the smallest values. It works on the graph after `fuse`, `qkv` and `fold`.

    A head's score is the Frobenius norm of W_out W_v of that head, relative to its layer's largest: how much
    the head can write. No data is needed.

    Args:
        fraction: share of heads to remove, 0 to below 1; one head always stays.
        scope: "layer" removes as many from each layer, "global" ranks the heads of all layers together.
        skip: patterns of modules (of a projection) to leave out.
    """

    name = "prune-heads"
    keeps: ClassVar[Keeps] = LOSSY
    fraction: float = 0.25
    scope: str = "layer"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        share_of("prune-heads: fraction", self.fraction)
        if self.scope not in ("global", "layer"):
            raise LlmcError("prune-heads: no such scope", found=self.scope, hint="use global or layer")

    def enters(self) -> bool:
        """Heads are ranked over a whole graph."""
        return False

    def run(self, graph: Graph) -> Graph:
        """Rank, choose, shrink."""
        chosen = self.chosen(graph)
        changes: dict[Node, Make] = {}
        for layer, keep in zip(chosen, self.kept([scores(a) for a in chosen]), strict=True):
            if len(keep) < layer.heads:
                changes.update(_shrunk(layer, keep))
        _tell(graph, {layer.mha for layer in chosen}, changes)
        return rebuild(graph, changes)

    def chosen(self, graph: Graph) -> list[Layer]:
        """The attentions that may lose heads."""
        allowed = {p.node for p in linears(graph, self.skip)}
        return [a for a in layers(graph) if {a.out, *a.mha.inputs[:3]} <= allowed]

    def kept(self, scores: list[Array]) -> list[Array]:
        """The heads that stay in each layer, ascending, by the scores of all."""
        if self.scope == "layer" or not scores:
            counts = [max(1, len(s) - round(self.fraction * len(s))) for s in scores]
            return [np.sort(np.argsort(-s, kind="stable")[:c]) for s, c in zip(scores, counts, strict=True)]
        whole = np.concatenate(scores)
        starts = np.cumsum([0, *(len(s) for s in scores)])
        best = [
            start + int(s.argmax()) for start, s in zip(starts, scores, strict=False)
        ]  # each layer's stays
        ranked = np.argsort(whole, kind="stable")
        ranked = ranked[~np.isin(ranked, best)]
        gone = np.isin(np.arange(len(whole)), ranked[: round(self.fraction * len(whole))])
        return [np.flatnonzero(~part) for part in np.split(gone, starts[1:-1])]


def _tell(graph: Graph, chosen: Collection[Node], changes: Mapping[Node, Make]) -> None:
    """What became of each attention, of which the chosen ones could have lost heads."""
    states = set(graph.states)

    def why(attention: Node) -> str:
        if attention in chosen:
            return "keeps all its heads"
        if _reads(attention.inputs[1], states):
            return "of keys and values that are kept from call to call"
        return "named by skip, or not between products with weights of its own"

    attentions = [n for n in graph.nodes if n.op in ("mha", "attention")]
    heads = (int(n.attributes.get("heads", 1)) for n in attentions)
    verdicts = (Verdict(n, h, "" if n in changes else why(n)) for n, h in zip(attentions, heads, strict=True))
    tell("attentions", verdicts)


def _reads(keys: Node, states: Collection[Node]) -> bool:
    """Whether keys are, at least in part, of a state: not through a product, which makes new ones."""
    pending, known = [keys], {keys}
    while pending:
        node = pending.pop()
        if node in states:
            return True
        if node.op != "linear":
            new = [i for i in node.inputs if i not in known]
            known.update(new)
            pending += new
    return False


def layers(graph: Graph) -> Iterator[Layer]:
    """The attentions whose projections have constant weights and no other reader."""
    for mha in graph.nodes:
        if mha.op != "mha":
            continue
        rows = _rows_of(graph, mha)
        out = list(readers(graph, rows))
        own = all(r is mha for i in set(mha.inputs[:3]) for r in readers(graph, i) if r is not i)
        kept = any(o is i for i in mha.inputs[:3] for o in graph.roots)
        if len(out) == 1 and own and not kept and _is_projection(out[0], rows) and _are_constant(mha):
            yield Layer(mha, out[0])


def _rows_of(graph: Graph, mha: Node) -> Node:
    """The attention, or its rows that alone are read, as `narrow` leaves the last one of a classifier."""
    rows = mha
    while True:
        found = list(readers(graph, rows))
        if len(found) != 1 or found[0] is rows or found[0].op != "slice":
            return rows
        if found[0].attributes["axis"] >= len(rows.shape) - 1:
            return rows
        rows = found[0]


def _is_projection(out: Node, rows: Node) -> bool:
    return out is not rows and out.op == "linear" and out.inputs[0] is rows and out.inputs[1].op == "constant"


def _are_constant(mha: Node) -> bool:
    return all(
        p.op == "linear"
        and all(i.op == "constant" for i in p.inputs[1:])
        and "residual" not in p.attributes["epilogue"]
        for p in mha.inputs[:3]
    )


def scores(layer: Layer) -> Array:
    """|W_out,h W_v,h|_F, from the traces of two small Gram matrices: |A B|_F^2 = tr(A^T A  B B^T)."""
    value = layer.mha.inputs[2].inputs[1].attributes["value"].array.astype(np.float64)
    out = layer.out.inputs[1].attributes["value"].array.astype(np.float64)
    size = int(layer.mha.attributes["head_dim"])
    squares = []
    for head in range(layer.heads):
        a, b = out[:, head * size : (head + 1) * size], value[layer.columns(head, 2)]
        squares.append(float(((a.T @ a) * (b @ b.T)).sum()))
    norms = np.sqrt(np.maximum(squares, 0))
    return np.asarray(norms / (norms.max() or 1.0))


def _shrunk(layer: Layer, keep: Array) -> Mapping[Node, Make]:
    mha = layer.mha
    rows: dict[Node, set[int]] = {p: set() for p in mha.inputs[:3]}
    for place, projection in enumerate(mha.inputs[:3]):
        for head in keep:
            at = layer.columns(int(head), place)
            rows[projection] |= set(range(at.start, at.stop))
    kept = {p: np.array(sorted(r)) for p, r in rows.items()}
    changes: dict[Node, Make] = {p: partial(fewer_rows, p, index) for p, index in kept.items()}
    offsets = tuple(
        int(np.searchsorted(kept[p], layer.columns(int(keep[0]), place).start))
        for place, p in enumerate(mha.inputs[:3])
    )
    changes[mha] = partial(_fewer_heads, mha, keep, offsets)
    size = int(mha.attributes["head_dim"])
    columns = (keep[:, None] * size + np.arange(size)).reshape(-1)
    changes[layer.out] = partial(fewer_columns, layer.out, columns)
    return changes


def _fewer_heads(mha: Node, keep: Array, offsets: tuple[int, ...], inputs: tuple[Node, ...]) -> Node:
    given = list(inputs)
    if mha.attributes["has_bias"] and given[-1].shape[1] != 1:
        given[-1] = _bias_of(given[-1], keep)
    attributes = {**mha.attributes, "heads": len(keep), "offsets": offsets}
    return make("mha", given, mha.source, **attributes)


def _bias_of(bias: Node, keep: Array) -> Node:
    """The heads `keep` of a bias `[1|b, h, s, t]`: runs of neighbours, joined."""
    runs = [[h for _, h in run] for _, run in groupby(enumerate(map(int, keep)), lambda p: p[1] - p[0])]
    parts = [make("slice", (bias,), bias.source, axis=1, start=r[0], stop=r[-1] + 1, step=1) for r in runs]
    return parts[0] if len(parts) == 1 else make("concat", parts, bias.source, axis=1)
