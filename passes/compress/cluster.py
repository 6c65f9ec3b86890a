"""`share`: the values of a weight are replaced by a few that they share, stored as indices and a codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmc.compiler.effects import tell_weights
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.ops.storage import pack_indices
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError
from llmc.passes.compress.tables import changes, tables
from llmc.passes.compress.weights import Array, left, products, rebuild, stored, values

ROUNDS = 40  # of Lloyd's iteration; it has mostly settled after 20
_BINS = 4096


@dataclass(frozen=True)
class Share(Pass):
    """Cluster each weight to `clusters` values by one-dimensional k-means, deterministically.

    Up to 16 clusters are stored as 4-bit indices, more as bytes. Exact zeros, as `prune` leaves them, stay.

    Args:
        clusters: values of each weight, 2 to 256.
        tables: whether embedding tables are clustered too, not only the weights of products.
        skip: patterns of modules to leave out.
        least: weights with fewer elements are left out: a codebook would not pay.
    """

    keeps: ClassVar[Keeps] = LOSSY
    clusters: int = 256
    tables: bool = True
    skip: tuple[str, ...] = ()
    least: int = 4096

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= 256:
            raise LlmcError("share: clusters is from 2 to 256", found=str(self.clusters))

    def enters(self) -> bool:
        """Weights are chosen over a whole graph."""
        return False

    def run(self, graph: Graph) -> Graph:
        """Cluster every weight once, then let each reader decode it."""
        reasons: dict[Node, str] = {}
        books: dict[Node, Node] = {}
        for weight, array in self.found(graph).items():
            if self.gains(array):
                books[weight] = self._stored(weight, array)
            else:
                reasons[weight] = f"below {self.least} values"
        tell_weights(graph, books, lambda w: reasons.get(w) or left(graph, w, self.skip))
        return rebuild(graph, changes(graph, books))

    def gains(self, array: Array) -> bool:
        """Whether a weight is large enough."""
        return array.size >= self.least

    def found(self, graph: Graph) -> dict[Node, Array]:
        """The weights that may be clustered, and their values."""
        looked_up = dict.fromkeys(tables(graph) if self.tables else ())
        wanted = products(graph, self.skip, decode=True)
        found = {p.weight: p.array for p in wanted if p.weight.op != "codebook"}
        for table in looked_up:
            array = values(table)
            if table.op == "constant" and array is not None and array.dtype == np.float32:
                found.setdefault(table, array)
        return found

    def _stored(self, weight: Node, array: Array) -> Node:
        """The `codebook` node that stands for a weight; of no more values than clusters it has just these."""
        distinct, counts = np.unique(array, return_counts=True)
        centres, place_of = cluster(distinct, counts, self.clusters)
        indices = place_of[np.searchsorted(distinct, array)].astype(np.uint8)
        bits = 4 if self.clusters <= 16 else 8
        packed = stored(pack_indices(indices, bits), weight, ".indices")
        book = stored(centres, weight, ".values")
        return make("codebook", (packed, book), weight.source, columns=array.shape[1], bits=bits)


def cluster(distinct: Array, counts: Array, clusters: int) -> tuple[Array, Array]:
    """K-means of f32 values, ascending and all different, that occur `counts` times.

    In one dimension a cluster is an interval, so prefix sums give each mean at once. The start is spread by
    the cube root of the density, which is optimal in the limit of many clusters (Panter and Dite 1951).

    Returns:
        f32 centres, ascending, and for each value the index of its centre. If zero is a value that occurs as
        often as none else, it is a centre. No more values than clusters are their own centres.
    """
    if len(distinct) <= clusters:
        return distinct.astype(np.float32), np.arange(len(distinct))
    values64, weight = distinct.astype(np.float64), counts.astype(np.float64)
    mass = np.concatenate([[0.0], np.cumsum(weight)])
    moment = np.concatenate([[0.0], np.cumsum(weight * values64)])
    centres = _spread(values64, weight, clusters)
    pinned = bool(counts.max() > 1 and distinct[counts.argmax()] == 0)
    for _ in range(ROUNDS):
        cuts = np.searchsorted(values64, (centres[1:] + centres[:-1]) / 2, side="right")
        cuts = np.concatenate([[0], cuts, [len(values64)]])
        inside = np.diff(mass[cuts])
        means = np.where(inside > 0, np.diff(moment[cuts]) / np.maximum(inside, 1.0), centres)
        moved = _pin(means) if pinned else means
        if np.array_equal(moved, centres):
            break
        centres = moved
    rounded = np.sort(centres).astype(np.float32)
    middles = (rounded[1:].astype(np.float64) + rounded[:-1]) / 2
    return rounded, np.searchsorted(middles, values64, side="left")


def _spread(values64: Array, weight: Array, clusters: int) -> Array:
    """First centres: equal shares of the integral of density ** (1/3)."""
    density, edges = np.histogram(values64, _BINS, weights=weight)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    targets = (np.arange(clusters) + 0.5) / clusters * share[-1]
    return np.asarray(np.interp(targets, share, edges))


def _pin(centres: Array) -> Array:
    pinned = centres.copy()
    pinned[np.abs(pinned).argmin()] = 0.0
    return pinned
