"""`differ`: a weight that differs little from another is stored as what it differs by, two thin matrices."""

from __future__ import annotations

from collections.abc import Sequence
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
from llmc.passes.match import is_of_adapter

_NEAR = 0.5  # of a weight: one that differs by more is no relation
_SAMPLE = 4096  # values that are compared first
_LEAST = 1e-30  # of a norm, to divide by


@dataclass(frozen=True)
class Differ(Pass):
    """linear(x, w2[n, k]) -> linear(x, w1, residual=linear(linear(x, v[r, k]), u[n, r])), where that is smaller.

    w1 is the weight before w2 that it differs from least, such as that of another fine-tune of the same model; u v is
    the best approximation of w2 - w1 of rank r in the Frobenius norm (Eckart and Young 1936).

    Args:
        error: the smallest r for which |w2 - w1 - u v| is at most this share of |w2|.
        skip: patterns of modules to leave out.
        least: products with fewer weights are left out.
    """

    keeps: ClassVar[Keeps] = LOSSY
    error: float = 0.01
    skip: tuple[str, ...] = ()
    least: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.error < _NEAR:
            told = f"differ: error is above 0 and below {_NEAR:g}"
            raise LlmcError(told, found=f"{self.error:g}", hint="differ{error=0.01}")

    def enters(self) -> bool:
        """Weights are compared over a whole graph."""
        return False

    def run(self, graph: Graph) -> Graph:
        """Each weight against those before it that stay whole."""
        changes: dict[Node, Make] = {}
        changed: set[Node] = set()
        reasons: dict[Node, str] = {}
        bases: dict[tuple[int, ...], list[Product]] = {}
        for product in products(graph, self.skip):
            if product.array.size < self.least:
                continue
            known = bases.setdefault(product.array.shape, [])
            made, reason = self._differing(graph, product, known)
            if reason:
                reasons[product.weight] = reason
                known.append(product)
            else:
                changed.add(product.weight)
                changes |= made
        tell_weights(graph, changed, lambda w: reasons.get(w) or left(graph, w, self.skip, self.least))
        return rebuild(graph, changes)

    def _differing(
        self, graph: Graph, product: Product, known: Sequence[Product]
    ) -> tuple[dict[Node, Make], str]:
        """What its readers become, or why they stay."""
        base = _nearest(product.array, known)
        if base is None:
            return {}, "like no weight before it"
        users = graph.users[product.weight]
        if any(_place(node, product.weight) is None for node in users):
            return {}, "read where nothing can be added"
        factors = self._factors(product, base)
        if factors is None:
            return {}, "whose difference is no smaller"
        return {node: partial(_added, node, base.weight, factors) for node in users}, ""

    def _factors(self, product: Product, base: Product) -> tuple[Node, Node] | None:
        n, k = product.array.shape
        difference = product.array.astype(np.float64) - base.array
        u, s, vt = np.linalg.svd(difference, full_matrices=False)
        rank = max(_rank_of(s, self.error * float(np.linalg.norm(product.array))), 1)
        if rank * (n + k) >= n * k:
            return None
        root = np.sqrt(s[:rank])
        up, down = u[:, :rank] * root, vt[:rank] * root[:, None]
        return _factor(up, product, ".u"), _factor(down, product, ".v")


def _nearest(array: Array, known: Sequence[Product]) -> Product | None:
    """The weight that an array differs from least, if it does by less than `_NEAR` of it."""
    best, least = None, _NEAR
    step = max(array.size // _SAMPLE, 1)
    for other in known:
        if _apart(array.reshape(-1)[::step], other.array.reshape(-1)[::step]) >= min(2 * least, 1):
            continue
        distance = _apart(array, other.array)
        if distance < least:
            best, least = other, distance
    return best


def _apart(a: Array, b: Array) -> float:
    """|a - b| / |a|"""
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), _LEAST)


def _rank_of(s: Array, most: float) -> int:
    """The fewest singular values without which no more than `most` is left."""
    rest = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0))
    return int(np.argmax(rest <= most))


def _factor(array: Array, product: Product, suffix: str) -> Node:
    return stored(np.ascontiguousarray(array, np.float32), product.weight, suffix)


def _place(node: Node, weight: Node) -> int | None:
    """Where in the epilogue of a product something may be added to it; None if there is no such place.

    What is added before, a residual, takes it in: a product has one.
    """
    if node.op != "linear" or node.inputs[1] is not weight or is_of_adapter(node):
        return None
    epilogue = node.attributes["epilogue"]
    place = int(epilogue[:1] == ("bias",))
    return None if "residual" in epilogue[place + 1 :] else place


def _added(node: Node, base: Node, factors: tuple[Node, Node], inputs: tuple[Node, ...]) -> Node:
    place = _place(node, node.inputs[1])
    assert place is not None
    (u, v), epilogue, extras = factors, node.attributes["epilogue"], [*inputs[2:]]
    thin = make("linear", (inputs[0], v), node.source)
    if epilogue[place : place + 1] == ("residual",):
        extras[place] = make("linear", (thin, u, extras[place]), node.source, epilogue=("residual",))
    else:
        extras.insert(place, make("linear", (thin, u), node.source))
        epilogue = (*epilogue[:place], "residual", *epilogue[place:])
    return make("linear", (inputs[0], base, *extras), node.source, epilogue=epilogue)
