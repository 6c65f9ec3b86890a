"""`equalise` and `correct-bias`: what rounding weights costs, made less by what surrounds them.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.effects import Verdict, tell
from llmc.compiler.given import given
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.moments import Columns, of_columns
from llmc.compiler.ops import OPS, constant, make
from llmc.compiler.pipeline import LOSSY, Keeps, Pass, close
from llmc.errors import LlmcError
from llmc.passes.columns import Site, by_channel, divided, pairs
from llmc.passes.compress.blockwise import Matrix
from llmc.passes.compress.rounding import nearest, of_least_error
from llmc.passes.match import is_of_adapter

Array = np.ndarray[Any, Any]
_SWEEPS, _EVEN = 20, 1e-3  # over chains of products; factors that are 1 but for so much
_MOST = 1e4  # of a factor
_ROUNDINGS: Mapping[str, Callable[[Array, int, int], tuple[Array, ...]]] = MappingProxyType(
    {"largest": nearest, "search": of_least_error}
)


@dataclass(frozen=True)
class Equalise(Pass):
    """Divide rows of a product by factors and multiply the columns that read them, until both are as large.

    Between products with nothing but `relu` and pools in between, convolutions too. It needs no samples.

    Args:
        skip: patterns of module paths of products whose rows are left alone.
    """

    name = "equalise"
    keeps: ClassVar[Keeps] = close(1e-4)
    skip: tuple[str, ...] = ()

    def run(self, graph: Graph) -> Graph:
        """One walk."""
        sites = [site for site in pairs(graph) if not _named(site.maker, self.skip)]
        factors = {site: f for site, f in _evened(sites).items() if np.abs(f - 1).max() > _EVEN}
        even = "as large as what reads them"
        tell("pairs of products", (Verdict(s.value, 1, "" if s in factors else even) for s in sites))
        return divided(graph, factors, ".equalised") if factors else graph


def _named(node: Node | None, skip: Sequence[str]) -> bool:
    return node is not None and any(fnmatchcase(node.source.path, pattern) for pattern in skip)


def _evened(sites: Sequence[Site]) -> Mapping[Site, Array]:
    """s_i = sqrt(r_i / c_i) of a pair, r_i and c_i the largest magnitudes of row i and of column i; pairs in turns."""
    size = {product: _size(product) for site in sites for product in (*site.products, site.maker) if product}
    factors: dict[Site, Array] = {}
    for _ in range(_SWEEPS):
        moved = 0.0
        for site in sites:
            assert site.maker is not None
            rows = size[site.maker].max(1)
            columns = np.maximum.reduce([size[p].max(1 if by_channel(p) else 0) for p in site.products])
            both = (rows > 0) & (columns > 0)
            step = np.sqrt(np.divide(rows, columns, out=np.ones_like(rows), where=both))
            step = np.clip(step, 1 / _MOST, _MOST)
            size[site.maker] /= step[:, None]
            for product in site.products:
                size[product] *= np.expand_dims(step, int(by_channel(product)))
            factors[site] = factors.get(site, np.ones_like(step)) * step
            moved = max(moved, float(np.abs(step - 1).max(initial=0)))
        if moved < _EVEN:
            break
    return factors


def _size(product: Node) -> Array:
    """Magnitudes f64 `[n, k]`, of a convolution the largest of its taps."""
    array = np.abs(product.inputs[1].attributes["value"].array, dtype=np.float64)
    return np.asarray(array.reshape(*array.shape[:2], -1).max(2))


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Add to biases what rounded weights lack on average: b -> b + (w - q) E[x], the mean of what they read on samples.

    Run it before the pass that rounds, with what that does as options. Products get a bias if they have none.

    Args:
        bits: of the levels to come.
        block: columns that share a scale; 0: a whole row, as `quantize` has it.
        rounding: "largest" or "search", as the `scales` of `blockwise`.
        skip: patterns of module paths of products to leave alone.
        min_columns: products with fewer output columns stay as they are.
    """

    name = "correct-bias"
    keeps: ClassVar[Keeps] = LOSSY
    wants_samples: ClassVar[bool] = True
    bits: int = 8
    block: int = 0
    rounding: str = "largest"
    skip: tuple[str, ...] = ()
    min_columns: int = 16

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise LlmcError("correct-bias: bits is 4 or 8", found=str(self.bits))
        if self.block < 0 or self.block % 2:
            raise LlmcError("correct-bias: block is an even number, or 0", found=str(self.block))
        if self.rounding not in _ROUNDINGS:
            hint = f"use {' or '.join(_ROUNDINGS)}"
            raise LlmcError(f"correct-bias: no rounding {self.rounding!r}", hint=hint)

    def enters(self) -> bool:
        """Samples show nothing of what is inside a body."""
        return False

    def run(self, graph: Graph) -> Graph:
        """One walk over the samples."""
        products = {n: n.inputs[0] for n in graph.nodes if n.op == "linear"}
        chosen = {n: x for n, x in products.items() if not self._left(n)}
        seen = of_columns(graph, list(chosen.values()), given()) if chosen else {}
        tell("products", (Verdict(n, 1, self._left(n)) for n in products))
        return graph.rebuild(lambda b, n: self._corrected(n, seen[chosen[b]]) if b in chosen else n)

    def _left(self, node: Node) -> str:
        """Why a product stays as it is; empty if it does not."""
        w, *extras = node.inputs[1:]
        fixed = all(e.op == "constant" for e in extras[: "bias" in node.attributes["epilogue"]])
        if w.op != "constant" or w.dtype != "f32" or not fixed or "bias" in node.attributes["epilogue"][1:]:
            return "whose weight or bias is computed, or stored otherwise"
        if is_of_adapter(node):
            return "of an adapter"
        if int(w.shape[0]) < self.min_columns:
            return f"with fewer than {self.min_columns} output columns"
        return "named by skip" if _named(node, self.skip) else ""

    def _corrected(self, node: Node, seen: Columns) -> Node:
        """linear(x, w, b) -> linear(x, w, b + (w - q) E[x])"""
        x, weight, *extras = node.inputs
        value, steps = weight.attributes["value"], node.attributes["epilogue"]
        block = min(self.block, value.array.shape[1]) or value.array.shape[1]
        levels, scales = _ROUNDINGS[self.rounding](value.array, self.bits, block)
        rounded = Matrix(weight, value.array, self.bits, block).stored(levels, scales)
        parts = (part.attributes["value"].array for part in rounded.inputs)
        off = value.array - OPS[rounded.op].reference(*parts, **rounded.attributes)
        lacking = np.einsum("nk,k->n", off, seen.sums / max(1, seen.rows)).astype(np.float32)
        if steps[:1] == ("bias",):
            lacking, extras = lacking + extras[0].attributes["value"].array, extras[1:]
        bias = constant(Weight(lacking, f"{value.name}.bias"), source=weight.source)
        steps = ("bias", *(s for s in steps if s != "bias"))
        return make("linear", (x, weight, bias, *extras), node.source, epilogue=steps)
