"""`awq`: columns that products read much of take more of their weights' levels, before these are rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.effects import Verdict, tell
from llmc.compiler.given import given
from llmc.compiler.graph import Graph, Node
from llmc.compiler.moments import Moments, of_inputs
from llmc.compiler.ops import OPS
from llmc.compiler.pipeline import Keeps, Pass, close
from llmc.errors import LlmcError
from llmc.passes.columns import NORMS, Site, divided, gates, of_norm, weights_of
from llmc.passes.compress.blockwise import Matrix
from llmc.passes.compress.gptq import damping, want_enough
from llmc.passes.compress.rounding import compensated, nearest, of_least_error

Array = np.ndarray[Any, Any]
Round = Callable[[Array, Array, int, int, float], tuple[Array, ...]]
ROUNDINGS: Mapping[str, Round] = MappingProxyType(
    {
        "largest": lambda w, h, bits, block, damp: nearest(w, bits, block),
        "search": lambda w, h, bits, block, damp: of_least_error(w, bits, block),
        "gptq": compensated,
    }
)
_POWERS = (0.15, 0.3, 0.45, 0.6)  # of the size of columns that are tried
_ROWS = 96  # of a weight by which powers are judged
_GAIN, _GAIN_OF_OP = 0.95, 0.8  # of the loss at most; where what else reads a norm takes an op more
_LEAST = 1e-3  # of the largest column: a smaller one counts as large as that


@dataclass(frozen=True)
class Awq(Pass):
    """Multiply columns of weights by a power of the size of what they read, which is divided by it (Lin et al. 2023).

    Run it before `blockwise` or `gptq`. Of each value the power is the one by which its products lose least when they
    are rounded, on samples; the division goes into a norm's weight, or a product's rows in front of a gate.

    Args:
        bits: of the levels to come.
        block: columns that share a scale.
        rounding: how: "largest", "search" as the `scales` of `blockwise`, or "gptq".
        skip: patterns of module paths of products whose inputs are left alone.
    """

    name = "awq"
    keeps: ClassVar[Keeps] = close(1e-4)
    wants_samples: ClassVar[bool] = True
    bits: int = 4
    block: int = 32
    rounding: str = "gptq"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise LlmcError("awq: bits is 4 or 8", found=str(self.bits))
        if self.block < 0 or self.block % 2:
            raise LlmcError("awq: block is an even number, or 0 for a whole row", found=str(self.block))
        if self.rounding not in ROUNDINGS:
            raise LlmcError(f"awq: no rounding {self.rounding!r}", hint=f"use {', '.join(ROUNDINGS)}")

    def enters(self) -> bool:
        """Samples show nothing of what is inside a body."""
        return False

    def run(self, graph: Graph) -> Graph:
        """One walk over the samples, or more if moments take much memory."""
        sites = {site.value: site for site in self._sites(graph)}
        factors: dict[Site, Array] = {}
        for value, moments in of_inputs(graph, list(sites), given()) if sites else ():
            found = self._factors(graph, sites[value], moments)
            if found is not None:
                factors[sites[value]] = found
        changed = {site.value for site in factors}
        even = "whose columns are even enough"
        tell("inputs of products", (Verdict(v, 1, "" if v in changed else even) for v in sites))
        return divided(graph, factors, ".awq") if factors else graph

    def _sites(self, graph: Graph) -> Iterator[Site]:
        norms = (of_norm(graph, node) for node in graph.nodes if node.op in NORMS)
        for site in (*(s for s in norms if isinstance(s, Site)), *gates(graph)):
            paths = [product.source.path for product in site.products]
            if not any(fnmatchcase(path, pattern) for path in paths for pattern in self.skip):
                yield site

    def _factors(self, graph: Graph, site: Site, moments: Moments) -> Array | None:
        """f32 `[k]` of the least loss; None if there is little to gain."""
        weight = site.products[0].inputs[1]
        want_enough(weight, moments)
        weights, h = weights_of(site), moments.products
        if not (h.any() and np.isfinite(weights).all()):
            return None
        weights = weights[:: max(1, len(weights) // _ROWS)]
        size = np.sqrt(np.diag(h))
        size = np.maximum(size, _LEAST * size.max())
        tried = [_even(size**power) for power in _POWERS]
        damp = damping(moments)
        losses = [self._loss(weight, weights * f, h / np.outer(f, f), damp) for f in tried]
        alone = all(user in site.products for user in graph.users[site.value])
        limit = _GAIN if alone and site.value not in graph.roots else _GAIN_OF_OP
        least = int(np.argmin(losses))
        return tried[least] if losses[least] < limit * self._loss(weight, weights, h, damp) else None

    def _loss(self, weight: Node, weights: Array, h: Array, damp: float) -> float:
        """sum (q - w) H (q - w)^T over rows of weights."""
        block = min(self.block, weights.shape[1]) or weights.shape[1]
        rounded = ROUNDINGS[self.rounding](weights, h, self.bits, block, damp)
        stored = Matrix(weight, weights, self.bits, block).stored(*rounded)
        parts = (part.attributes["value"].array for part in stored.inputs)
        off = OPS[stored.op].reference(*parts, **stored.attributes) - weights
        return float(np.einsum("nk,nk->", off @ h, off, dtype=np.float64))


def _even(size: Array) -> Array:
    """Factors f32 of which the largest is as far above 1 as the least is below."""
    return np.asarray(size / np.sqrt(size.max() * size.min()), np.float32)
