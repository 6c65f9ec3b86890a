"""`gptq`: weights as `blockwise` stores them, rounded so that products keep their answers on samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.given import given
from llmc.compiler.graph import Graph, Node
from llmc.compiler.moments import Moments, of_inputs
from llmc.errors import LlmcError
from llmc.passes.compress.blockwise import Blockwise
from llmc.passes.compress.rounding import compensated
from llmc.passes.compress.tables import tables

Array = np.ndarray[Any, Any]
_OWN = 0.1  # of a table: of SmolLM2-135M 0 and 1 lose more
_UNSURE = 0.1  # of sqrt(k / n), by which moments of k columns of n independent rows differ from the true ones
_LEAST = 64  # columns for each row that is seen, at most


@dataclass(frozen=True)
class Gptq(Blockwise):
    """`blockwise`, with the errors of a weight's columns made up for by later columns (Frantar et al. 2022).

    What products read is seen on `--calib`, in one walk, or more if its moments take much memory. Scales are those of
    least square error, columns weighed by what they read. Tables that only look-ups read are rounded by themselves.

    Args:
        damp: at least this share of their mean is added to the diagonal of the second moments: of k columns seen in n
            rows, a tenth of sqrt(k / n) if that is more, as by so much of their size they may be off.
    """

    name = "gptq"
    wants_samples: ClassVar[bool] = True
    bits: int = 4
    block: int = 32
    scales: str = "search"
    damp: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damp <= 1:
            raise LlmcError("gptq: damp is above 0 and at most 1", found=f"{self.damp:g}")

    def enters(self) -> bool:
        """Samples show nothing of what is inside a body."""
        return False

    def run(self, graph: Graph) -> Graph:
        """One weight after the other, as soon as all that its products read has been seen."""
        matrices, looked_up, made = self.matrices(graph), set(tables(graph)), {}
        for weight, moments in seen(graph, matrices):
            matrix = matrices[weight]
            products = _for_rows_too(moments.products) if weight in looked_up else moments.products
            damp = damping(moments, self.damp)
            rounded = compensated(matrix.array, products, matrix.bits, matrix.block, damp, matrix.zeros)
            made[weight] = matrix.stored(*rounded)
        made |= {w: self.rounded(m) for w, m in matrices.items() if w not in made}
        return self.with_stored(graph, made)


def damping(moments: Moments, least: float = 0.01) -> float:
    """The share of their mean that is added to the diagonal of second moments."""
    return max(least, _UNSURE * math.sqrt(len(moments.top) / moments.rows))


def _for_rows_too(products: Array) -> Array:
    """Second moments of a product whose weight look-ups read too: of a row itself each value counts alike."""
    own = np.eye(len(products), dtype=np.float32)
    return np.asarray(products / (np.diag(products).mean() or 1) + np.float32(_OWN) * own)


def seen(graph: Graph, weights: Collection[Node]) -> Iterator[tuple[Node, Moments]]:
    """Each of `weights` that products read, with the moments of what they multiply with it.

    Raises:
        LlmcError: too few rows were seen to say anything, or there are no samples, or a value is not finite.
    """
    waiting: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "linear" and node.inputs[1] in weights:
            waiting.setdefault(node.inputs[1], []).append(node.inputs[0])
    sites = list(dict.fromkeys(site for of_weight in waiting.values() for site in of_weight))
    parts: dict[Node, Moments] = {}
    for site, moments in of_inputs(graph, sites, given()):
        for weight in [w for w, of_weight in waiting.items() if site in of_weight]:
            waiting[weight].remove(site)
            known = parts.get(weight)
            if known is None and not waiting[weight]:
                want_enough(weight, moments)
                yield weight, moments
                continue
            parts.setdefault(weight, Moments(len(moments.top))).merge(moments)
            if not waiting[weight]:
                want_enough(weight, parts[weight])
                yield weight, parts.pop(weight)


def want_enough(weight: Node, moments: Moments) -> None:
    """Refuse moments that say nothing of what `weight` multiplies: of too few rows, or whose squares overflow."""
    columns = len(moments.top)
    if _LEAST * moments.rows < columns:
        raise LlmcError(
            "there are too few samples",
            at=str(weight.source),
            found=f"{moments.rows} rows for {columns} columns",
            hint=f"give more samples: {-(-columns // _LEAST)} rows are the least, better {columns} and more",
        )
    if not np.isfinite(moments.products).all():
        raise LlmcError(
            "what the layer reads is too large to round by: squares of its values are beyond float32",
            at=str(weight.source),
            found=f"values up to {moments.top.max():.3g} in the samples",
            hint="are the weights of the layers before it what was trained? Divide them, or leave --calib out",
        )
