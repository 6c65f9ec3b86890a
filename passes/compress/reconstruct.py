"""`wanda` and `reconstruct`: zeros chosen, and what they cost made up for, by samples of what products read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.graph import Graph
from llmc.compiler.moments import Moments
from llmc.errors import LlmcError
from llmc.passes.compress.gptq import seen
from llmc.passes.compress.prune import Pattern, Prune
from llmc.passes.compress.rounding import inverse
from llmc.passes.compress.weights import Product

Array = np.ndarray[Any, Any]
ROUNDS = 8  # in which zeros become more: with 4 MiniLM's products lose a tenth more, with 16 a hundredth less
_STEPS, _LAST = 8, 20  # of conjugate gradients in a round, and in the last
_PIECE = 1 << 22  # values that are worked on at a time


@dataclass(frozen=True)
class Wanda(Prune):
    """`prune` by what products read on `--calib`: the least |w_ij| * |x_j| become zero, |x_j| the norm of a column.

    Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models". Weights that stay are as they
    were. Each product's weights are ranked by themselves.
    """

    name = "wanda"
    wants_samples: ClassVar[bool] = True
    scope: str = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope != "layer":
            raise LlmcError(f"{self.name}: weights are ranked layer by layer", found=f"scope={self.scope!r}")

    def run(self, graph: Graph) -> Graph:
        """One weight after the other, as soon as all that its products read has been seen."""
        chosen = {p.weight: p for p in self.chosen(graph)}
        Pattern.parse(self.pattern).check(list(chosen.values()))  # of all, before samples are run
        found = []
        for weight, moments in seen(graph, list(chosen)):
            array = self.thinned(chosen[weight], moments)
            found.append((replace(chosen[weight], array=array), array != 0))
        return self.with_zeros(graph, found)

    def thinned(self, product: Product, moments: Moments) -> Array:
        """The weight f32 `[n, k]` with its zeros."""
        norms = np.sqrt(np.diag(moments.products))
        return np.where(self.kept(product, product.array * norms), product.array, np.float32(0))

    def kept(self, product: Product, importance: Array) -> Array:
        """Bool `[n, k]`: True where a weight of such importance stays."""
        (keep,) = self.masks([replace(product, array=importance)])
        return keep


@dataclass(frozen=True)
class Reconstruct(Wanda):
    """`prune` by what products read on `--calib`, the other weights changed so that products keep their answers.

    In rounds: those weights become zero whose removal costs least, w_ij^2 / (H^-1)_jj with H the second moments of what
    is read (Hassibi and Stork 1993, "Second order derivatives for network pruning"; Frantar and Alistarh 2023,
    "SparseGPT", which goes by columns instead), some more in each round; then what stays has the values v of the least
    loss (v - w) H (v - w)^T (Meng et al. 2024, "ALPS", by conjugate gradients as here).

    Args:
        damp: this share of their mean is added to the diagonal of the second moments; more where fewer rows than
            columns were seen.
    """

    name = "reconstruct"
    damp: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damp <= 1:
            raise LlmcError("reconstruct: damp is above 0 and at most 1", found=f"{self.damp:g}")

    def thinned(self, product: Product, moments: Moments) -> Array:
        """The weight f32 `[n, k]` with its zeros, and what stays changed."""
        products = moments.products
        damp = self.damp * max(1.0, len(products) / moments.rows)
        h = products + np.eye(len(products), dtype=np.float32) * (damp * np.diag(products).mean() or 1)
        cost = 1 / np.sqrt(np.diag(inverse(h))).astype(np.float32)
        array, found = product.array, product.array
        for number in range(1, ROUNDS + 1):
            importance = np.abs(found) * cost
            keep = self.kept(product, importance)
            if number < ROUNDS:  # by a cubic curve, as Zhu and Gupta 2017 have it
                keep = _fewer(importance, keep, 1 - (1 - number / ROUNDS) ** 3)
            steps = _STEPS if number < ROUNDS else _LAST
            found = fitted(array, np.where(keep, found, np.float32(0)), keep, h, steps)
        return found


def _fewer(importance: Array, keep: Array, share: float) -> Array:
    """A mask that drops the least important of what `keep` drops, this share of them."""
    dropped = importance[~keep]
    count = round(share * dropped.size)
    if not count:
        return np.ones_like(keep)
    return np.asarray(keep | (importance > np.partition(dropped, count - 1)[count - 1]))


def fitted(array: Array, start: Array, keep: Array, h: Array, steps: int) -> Array:
    """Values v f32 `[n, k]`, zero but where `keep`, of small loss (v - w) H (v - w)^T: no row more than `start`'s."""
    piece = max(1, _PIECE // array.shape[1])
    parts = [slice(i, i + piece) for i in range(0, len(array), piece)]
    return np.concatenate([_descended(array[p], start[p], keep[p], h, steps) for p in parts])


def _descended(array: Array, start: Array, keep: Array, h: Array, steps: int) -> Array:
    """Conjugate gradients of all rows side by side, each on what it keeps, preconditioned by the diagonal of H."""
    keep, scale = keep.astype(np.float32), 1 / np.diag(h)
    v, rest = start.copy(), ((array - start) @ h) * keep
    turn = rest * scale
    size = (rest * turn).sum(1)
    for _ in range(steps):
        turned = (turn @ h) * keep
        step = _ratio(size, (turn * turned).sum(1))[:, None]
        v += step * turn
        rest -= step * turned
        before, size = size, (rest * rest * scale).sum(1)
        turn = rest * scale + _ratio(size, before)[:, None] * turn
    better = _loss(v - array, h) < _loss(start - array, h)
    return np.asarray(np.where(better[:, None], v, start))


def _ratio(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _loss(off: Array, h: Array) -> Array:
    return np.asarray(((off @ h) * off).sum(1))
