"""How large a tensor's values get, from a stream of them, in constant memory.

`Magnitudes` keeps the largest magnitude and a histogram whose range doubles when a value is beyond it. From it the
limit of an int8 range is chosen: the largest value, a percentile, or the least loss of information (Migacz 2017,
"8-bit inference with TensorRT").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

BINS = 4096
LEVELS = 128  # of a magnitude in int8: 0 to 127
PERCENTILE = 99.99
_STEP = 32  # bins between two limits that the entropy method compares

Array = np.ndarray[Any, Any]


class Magnitudes:
    """Of all values seen so far: the largest magnitude `top`, and `counts` of magnitudes in 0..`limit`."""

    kind: ClassVar[str] = "magnitudes"

    def __init__(self) -> None:
        self.top = 0.0
        self.limit = 0.0
        self.counts = np.zeros(BINS, np.int64)

    def add(self, values: Array) -> None:
        """Take finite values into account."""
        magnitudes = np.abs(values, dtype=np.float64).ravel()
        self.top = max(self.top, float(magnitudes.max(initial=0.0)))
        if not self.top:
            self.counts[0] += magnitudes.size
            return
        self._grow()
        at = np.minimum((magnitudes * (BINS / self.limit)).astype(np.int64), BINS - 1)
        self.counts += np.bincount(at, minlength=BINS)

    def _grow(self) -> None:
        """Double the range, two bins becoming one, until it holds `top`."""
        self.limit = self.limit or self.top
        while self.limit < self.top:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([pairs, np.zeros(BINS // 2, np.int64)])
            self.limit *= 2

    def merge(self, other: Magnitudes) -> None:
        """Take in what `other` has seen: `top` and how many there are exactly, where they lie to a bin of either."""
        if not (self.top and other.top):  # zeros have no range yet
            zeros, known = (other, self) if self.top else (self, other)
            counts = known.counts + zeros.counts
            self.top, self.limit, self.counts = known.top, known.limit, counts
            return
        self.top = max(self.top, other.top)
        self._grow()
        self.counts += _rebinned(other.counts, other.limit, self.limit)

    def empty(self) -> Magnitudes:
        """One that has seen nothing."""
        return Magnitudes()

    def parts(self) -> dict[str, Array]:
        """All there is, to be kept in a file."""
        return {"top": np.array(self.top), "limit": np.array(self.limit), "counts": self.counts}

    def take(self, parts: Mapping[str, Array]) -> None:
        """Become what `parts` was called of."""
        self.top, self.limit = float(parts["top"]), float(parts["limit"])
        self.counts = np.array(parts["counts"])


def _rebinned(counts: Array, limit: float, wanted: float) -> Array:
    """Counts i64 `[BINS]` of magnitudes in 0..`limit` as those in 0..`wanted`, which holds all of them.

    The values of a bin count as evenly spread in it, but for bin 0, which has the zeros and stays bin 0.
    """
    edges = np.arange(BINS + 1)
    below = np.concatenate([[0], np.cumsum(counts)])
    found = np.rint(np.interp(edges * (wanted / limit), edges, below))
    found[1:] = np.maximum(found[1:], counts[0])
    found[-1] = below[-1]
    return np.asarray(np.diff(found), np.int64)


def widest(seen: Magnitudes) -> float:
    """The largest magnitude."""
    return seen.top


def percentile(seen: Magnitudes) -> float:
    """The magnitude that 99.99 % of the values do not exceed, to a bin."""
    total = np.cumsum(seen.counts)
    bins = int(np.searchsorted(total, total[-1] * (PERCENTILE / 100))) + 1
    return min(seen.top, seen.limit * bins / BINS)


def entropy(seen: Magnitudes) -> float:
    """The limit at which values clipped and rounded to int8 are distributed most like the values themselves.

    Bin 0 counts as bin 1 does: zeros keep their value whatever the limit and would outweigh the others.
    """
    if not seen.top:
        return 0.0
    counts = seen.counts.astype(np.float64)
    counts[0] = counts[1]
    limits = range(LEVELS, BINS + 1, _STEP)
    best = min(limits, key=lambda bins: _divergence(counts, bins))
    return min(seen.top, seen.limit * best / BINS)


def _divergence(counts: Array, bins: int) -> float:
    """Kullback-Leibler divergence of the first `bins` bins in 128 levels from the values, clipped ones at the end."""
    clipped = counts[:bins].copy()
    held = clipped > 0
    clipped[-1] += counts[bins:].sum()
    if not held.any():
        return float("inf")
    starts = np.arange(LEVELS) * bins // LEVELS
    totals = np.add.reduceat(counts[:bins], starts)
    sharing = np.maximum(np.add.reduceat(held.astype(np.float64), starts), 1)
    level = np.repeat(np.arange(LEVELS), np.diff([*starts, bins]))
    spread = np.where(held, (totals / sharing)[level], 0.0)
    p, q = clipped / clipped.sum(), spread / spread.sum()
    both = (p > 0) & (q > 0)
    lost = float(p[(p > 0) & (q == 0)].sum())  # clipped values where there were none: as far off as can be
    return float(np.sum(p[both] * np.log(p[both] / q[both]))) + 50 * lost


METHODS: Mapping[str, Callable[[Magnitudes], float]] = MappingProxyType(
    {"minmax": widest, "percentile": percentile, "entropy": entropy}
)
