"""`prune`: the weights of smallest magnitude become zero, and zeros are not stored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmc.compiler.effects import tell_weights
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.ops.storage import packed_bytes
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError, LlmcWarning
from llmc.passes.compress.weights import Array, Product, left, products, replaced, share_of, stored

DEFAULT = 0.3
_NOTHING = 0.01  # of a product's weights
_PATTERNS, _SCOPES = ("unstructured", "2:4"), ("global", "layer")


@dataclass(frozen=True)
class Prune(Pass):
    """Set weights of products to zero by magnitude; a `bitmask` stores the others and one bit for each.

    Embedding tables, biases and norms stay as they are.

    Args:
        sparsity: share of zeros, 0 to below 1; default 0.3, and 0.5 is what the pattern 2:4 means.
        pattern: "unstructured", or "2:4": of each 4 weights in a row the 2 largest stay.
        scope: "global" ranks the weights of all products together, "layer" each product's by themselves.
        skip: patterns of modules to leave out, such as `classifier*`.
        least: products with fewer weights are left out.
    """

    keeps: ClassVar[Keeps] = LOSSY
    sparsity: float | None = None
    pattern: str = "unstructured"
    scope: str = "global"
    skip: tuple[str, ...] = ()
    least: int = 4096

    def __post_init__(self) -> None:
        if self.pattern not in _PATTERNS:
            raise LlmcError("prune: no such pattern", found=self.pattern, hint='use unstructured or "2:4"')
        if self.scope not in _SCOPES:
            raise LlmcError("prune: no such scope", found=self.scope, hint="use global or layer")
        if self.sparsity is not None:
            share_of("prune: sparsity", self.sparsity)
        if self.pattern == "2:4" and self.sparsity not in (None, 0.5):
            raise LlmcError("prune: the pattern 2:4 is a sparsity of 0.5", found=f"{self.sparsity:g}")

    def enters(self) -> bool:
        """Weights are ranked over a whole graph."""
        return False

    def run(self, graph: Graph) -> Graph:
        """Choose the zeros, then the smaller way to store each weight."""
        chosen = self.chosen(graph)
        masks = self.masks(chosen)
        warn_of_emptied(chosen, masks)
        made = {p.weight: stored_sparse(p, k) for p, k in zip(chosen, masks, strict=True) if not k.all()}
        tell_weights(graph, made, lambda weight: self._left(graph, weight))
        return replaced(graph, made)

    def chosen(self, graph: Graph) -> list[Product]:
        """The products that lose weights."""
        return [p for p in products(graph, self.skip) if self._wanted(graph, p)]

    def masks(self, chosen: list[Product]) -> list[Array]:
        """Of each of these, bool [n, k]: True where a weight stays."""
        return [_two_of_four(p) for p in chosen] if self.pattern == "2:4" else self._largest(chosen)

    def _left(self, graph: Graph, weight: Node) -> str:
        """Why a weight stays as it is; empty if no product reads it."""
        if not any(n.op == "linear" and n.inputs[1] is weight for n in graph.users[weight]):
            return ""
        if any(n.op != "linear" for n in graph.users[weight]):
            return "looked up as well"
        return left(graph, weight, self.skip, self.least) or "none of whose values is among the smallest"

    def _wanted(self, graph: Graph, product: Product) -> bool:
        """Large enough, and read by products only: a table that is looked up as well stays."""
        users = graph.users[product.weight]
        in_products = all(u.op == "linear" and u.inputs[0] is not product.weight for u in users)
        return in_products and product.array.size >= self.least

    def _largest(self, chosen: list[Product]) -> list[Array]:
        share = DEFAULT if self.sparsity is None else self.sparsity
        if self.scope == "layer":
            return [_keep_largest(np.abs(p.array).reshape(-1), share).reshape(p.array.shape) for p in chosen]
        if not chosen:
            return []
        keep = _keep_largest(np.concatenate([np.abs(p.array).reshape(-1) for p in chosen]), share)
        ends = np.cumsum([p.array.size for p in chosen])[:-1]
        return [k.reshape(p.array.shape) for k, p in zip(np.split(keep, ends), chosen, strict=True)]


def warn_of_emptied(chosen: Sequence[Product], masks: Sequence[Array]) -> None:
    """Warn of products that keep next to nothing, as those of small weights do that are ranked with others."""
    few = [
        p.node.source.path or p.place for p, keep in zip(chosen, masks, strict=True) if keep.mean() < _NOTHING
    ]
    if few:
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        told = f"prune keeps less than {_NOTHING:.0%} of the weights of {', '.join(few[:3])}{more}"
        hint = f'scope="layer" ranks each product by itself, skip=["{few[0]}"] leaves one out'
        warnings.warn(LlmcWarning(f"{told}; {hint}"), stacklevel=2)


def _keep_largest(magnitudes: Array, share: float) -> Array:
    """False at the round(share * n) smallest; of equals the first go first."""
    keep = np.ones(magnitudes.size, bool)
    keep[np.argsort(magnitudes, kind="stable")[: round(share * magnitudes.size)]] = False
    return keep


def _two_of_four(product: Product) -> Array:
    n, k = product.array.shape
    if k % 4:
        raise LlmcError(
            "prune: the pattern 2:4 needs rows of a multiple of 4 weights",
            at=product.place,
            found=f"a weight of [{n}, {k}]",
            hint=f'leave it out: skip=["{product.node.source.path}"]',
        )
    groups = np.abs(product.array).reshape(n, k // 4, 4)
    keep = np.zeros(groups.shape, bool)
    np.put_along_axis(keep, np.argsort(-groups, -1, kind="stable")[..., :2], True, -1)
    return keep.reshape(n, k)


def stored_sparse(product: Product, keep: Array) -> Node:
    """The weight where `keep`, zero elsewhere: as a bitmask, or whole where that is smaller."""
    array, columns = product.array, product.array.shape[1]
    mask = np.packbits(keep, -1, bitorder="little")
    if packed_bytes(columns, 1) * len(array) + 4 * int(keep.sum()) >= array.nbytes:
        return stored(np.where(keep, array, np.float32(0)), product.weight)
    parts = (stored(mask, product.weight, ".mask"), stored(array[keep], product.weight, ".values"))
    return make("bitmask", parts, product.weight.source, columns=columns)
