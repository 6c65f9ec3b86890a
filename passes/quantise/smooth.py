"""`smooth`: what products read of a norm, without columns that are far larger than the others.

One scale has to serve all columns of an activation, so a few large ones cost all others their levels. The weight and
bias of the norm are divided by a factor for each such column, and the columns of the products' weights multiplied by
it: Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"; Wei et
al. 2022, "Outlier Suppression", for norms whose values go elsewhere too, as in BERT, where they are multiplied back.
Factors are powers of two here, so that the float model keeps its bits, and are few, so that a pipeline's text has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.effects import Verdict, tell
from llmc.compiler.given import Given, given
from llmc.compiler.graph import Graph, Node
from llmc.compiler.moments import Columns, of_columns
from llmc.compiler.pipeline import Keeps, Pass, close
from llmc.errors import LlmcError
from llmc.passes.columns import NORMS, Site, divided, of_norm, weights_of

_LEVELS = 127.0
_STEPS = 12  # limits that are tried, each a root of two below the one before
_GAIN = 0.9  # of the noise, at most, where factors are worth it
_MOST = 16  # of an exponent

Array = np.ndarray[Any, Any]
Factors = Mapping[int, int]  # column -> the exponent of two of its factor


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide the large columns of norms by powers of two, and multiply the weights that read them by these.

    What else reads the norm gets its values multiplied back.

    Args:
        skip: patterns of module paths of norms to leave alone.
        factors: for each norm, in the order of the graph, the columns that are divided and the exponents of two, such
            as "17:3 30:1"; none: those of the least noise on samples.
    """

    name = "smooth"
    keeps: ClassVar[Keeps] = close(1e-6)
    skip: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in self.factors:
            _parsed(text)

    @property
    def wants_samples(self) -> bool:  # type: ignore[override]
        """Factors that are given need none."""
        return not self.factors

    def enters(self) -> bool:
        """Samples show nothing of what is inside a body."""
        return False

    def norms(self, graph: Graph) -> tuple[Node, ...]:
        """The norms whose columns can be divided."""
        return tuple(node for node in graph.nodes if node.op in NORMS and not self._left(graph, node))

    def found(self, graph: Graph, known: Given) -> tuple[str, ...]:
        """`factors` of the least noise on samples."""
        norms = self.norms(graph)
        seen = of_columns(graph, norms, known)
        return tuple(_text(_least_noise(seen[norm], weights_of(_site(graph, norm)))) for norm in norms)

    def run(self, graph: Graph) -> Graph:
        """One walk."""
        norms = self.norms(graph)
        texts = self.factors or self.found(graph, given())
        if len(texts) != len(norms):
            raise LlmcError(
                f"smooth: {len(texts)} factors are given for {len(norms)} norms",
                hint="leave them out, with --calib",
            )
        chosen = {norm: parsed for norm, text in zip(norms, texts, strict=True) if (parsed := _parsed(text))}
        for norm, factors in chosen.items():
            _want_columns(norm, factors)
        tell("norms", self._verdicts(graph, chosen))
        sites = {_site(graph, norm): _factors(norm, factors) for norm, factors in chosen.items()}
        return divided(graph, sites, ".smooth") if sites else graph

    def _verdicts(self, graph: Graph, chosen: Mapping[Node, Factors]) -> Iterator[Verdict]:
        for node in graph.nodes:
            if node.op in NORMS:
                even = "" if node in chosen else "whose columns are even enough"
                yield Verdict(node, 1, self._left(graph, node) or even)

    def _left(self, graph: Graph, norm: Node) -> str:
        """Why a norm stays as it is; empty if it can be changed."""
        if any(fnmatchcase(norm.source.path, pattern) for pattern in self.skip):
            return "named by skip"
        found = of_norm(graph, norm)
        return found if isinstance(found, str) else ""


def _site(graph: Graph, norm: Node) -> Site:
    """Of a norm that can be changed."""
    found = of_norm(graph, norm)
    assert isinstance(found, Site)
    return found


def _least_noise(seen: Columns, weights: Array) -> Factors:
    """Columns beyond a limit are divided until they are not: the largest limit that is near the least noise.

    A level is off by a twelfth of its square on average. Of activations one scale serves all columns, and what a column
    is off by counts by the weights that multiply it; of weights a scale serves a row, and counts by what it multiplies.
    """
    if not seen.top.max(initial=0):
        return {}
    by_weight, by_value = np.square(weights, dtype=np.float64).sum(0), seen.squares / max(1, seen.rows)
    size = np.abs(weights)

    def noise(exponents: Array) -> float:
        factors = np.exp2(exponents)
        of_values = (seen.top / factors).max() ** 2 * (by_weight * factors**2).sum()
        of_weights = np.square((size * factors).max(1)).sum() * (by_value / factors**2).sum()
        return float(of_values + of_weights)

    limits = [float(seen.top.max()) * 2 ** (-step / 2) for step in range(1, _STEPS + 1)]
    tried = [_exponents(seen.top, limit) for limit in limits]
    noises = [noise(exponents) for exponents in tried]
    if min(noises) > _GAIN * noise(np.zeros(len(seen.top))):
        return {}
    best = next(e for e, lost in zip(tried, noises, strict=True) if lost <= min(noises) / _GAIN)
    return {int(column): int(best[column]) for column in np.flatnonzero(best)}


def _exponents(top: Array, limit: float) -> Array:
    """Those by which columns come below a limit, less what most columns have: a factor of all changes nothing."""
    exponents = np.ceil(np.log2(np.maximum(top, np.float32(1e-30)) / limit))
    return np.asarray(np.clip(exponents - max(0, np.median(exponents)), 0, _MOST))


def _factors(norm: Node, exponents: Factors) -> Array:
    """f32 `[k]`."""
    factors = np.ones(int(norm.shape[-1]), np.float32)
    factors[list(exponents)] = np.exp2(np.array(list(exponents.values()), np.float32))
    return factors


def _want_columns(norm: Node, factors: Factors) -> None:
    columns = int(norm.shape[-1])
    if (most := max(factors)) >= columns:
        raise LlmcError(
            "smooth: a norm has no such column", at=str(norm.source), found=f"{most} of {columns}"
        )


def _text(factors: Factors) -> str:
    return " ".join(f"{column}:{exponent}" for column, exponent in factors.items())


def _parsed(text: str) -> Factors:
    """Of "17:3 30:1".

    Raises:
        LlmcError: it is not written so.
    """
    pairs: Sequence[Sequence[str]] = [part.split(":") for part in text.split()]
    if any(len(pair) != 2 or not all(p.isascii() and p.isdigit() for p in pair) for pair in pairs):
        raise LlmcError(
            "smooth: factors are columns and exponents of two", found=text, hint='as in "17:3 30:1"'
        )
    found = {int(column): int(exponent) for column, exponent in pairs}
    if any(not 0 < exponent <= _MOST for exponent in found.values()):
        raise LlmcError(f"smooth: an exponent is from 1 to {_MOST}", found=text)
    return found
