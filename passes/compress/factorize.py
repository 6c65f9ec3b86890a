"""`factorize`: a weight becomes the product of two thin ones, by its singular value decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from llmc.compiler.effects import tell_weights
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError
from llmc.passes.compress.weights import Array, Make, Product, left, products, rebuild, stored

DEFAULT = 0.9  # of the energy


@dataclass(frozen=True)
class Factorize(Pass):
    """linear(x, w[n, k]) -> linear(linear(x, v[r, k]), u[n, r]) where r * (n + k) < n * k.

    The best approximation of rank r in the Frobenius norm (Eckart and Young 1936).

    Args:
        rank: r of every product; or
        energy: the smallest r that keeps this share of the squared singular values, above 0 to 1; default 0.9.
        skip: patterns of modules to leave out.
        least: products with fewer weights are left out.
    """

    keeps: ClassVar[Keeps] = LOSSY
    rank: int | None = None
    energy: float | None = None
    skip: tuple[str, ...] = ()
    least: int = 4096

    def __post_init__(self) -> None:
        if self.rank is not None and self.energy is not None:
            raise LlmcError("factorize takes rank or energy, not both", hint="factorize{energy=0.9}")
        if self.rank is not None and self.rank < 1:
            raise LlmcError("factorize: rank must be at least 1", found=str(self.rank))
        if self.energy is not None and not 0 < self.energy <= 1:
            raise LlmcError("factorize: energy is above 0 and at most 1", found=f"{self.energy:g}")

    def enters(self) -> bool:
        """Products are chosen over a whole graph."""
        return False

    def run(self, graph: Graph) -> Graph:
        """Factor each weight that shrinks by it."""
        changes: dict[Node, Make] = {}
        wanted = [p for p in products(graph, self.skip) if p.array.size >= self.least]
        changed = set()
        for product in wanted:
            if (factors := self._factors(product)) is not None:
                changed.add(product.weight)
                changes |= {
                    n: partial(_two, n, factors)
                    for n in graph.users[product.weight]
                    if n.op == "linear" and n.inputs[1] is product.weight
                }
        no_gain = dict.fromkeys((p.weight for p in wanted), "whose two factors would be no smaller")
        tell_weights(graph, changed, lambda w: no_gain.get(w) or left(graph, w, self.skip, self.least))
        return rebuild(graph, changes)

    def _factors(self, product: Product) -> tuple[Node, Node] | None:
        n, k = product.array.shape
        if self.rank is not None and self.rank * (n + k) >= n * k:
            return None
        u, s, vt = np.linalg.svd(product.array.astype(np.float64), full_matrices=False)
        rank = self.rank or _rank_of(s, self.energy or DEFAULT)
        if rank * (n + k) >= n * k:
            return None
        root = np.sqrt(s[:rank])
        left, right = u[:, :rank] * root, vt[:rank] * root[:, None]
        return _factor(left, product, ".u"), _factor(right, product, ".v")


def _factor(array: Array, product: Product, suffix: str) -> Node:
    return stored(np.ascontiguousarray(array, np.float32), product.weight, suffix)


def _rank_of(s: Array, energy: float) -> int:
    share = np.cumsum(s**2) / max(float((s**2).sum()), np.finfo(float).tiny)
    return int(np.searchsorted(share, energy - 1e-12)) + 1


def _two(node: Node, factors: tuple[Node, Node], inputs: tuple[Node, ...]) -> Node:
    u, v = factors
    inner = make("linear", (inputs[0], v), node.source)
    return make("linear", (inner, u, *inputs[2:]), node.source, **node.attributes)
