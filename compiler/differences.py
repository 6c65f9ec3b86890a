"""How far apart outputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


def apart(a: Array, b: Array) -> float:
    """Largest difference as a share of `a`'s largest magnitude; inf where only one of them is a number.

    NaN equals NaN.
    """
    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        scale = np.abs(x[np.isfinite(x)]).max(initial=0.0) or 1.0
        differ = ~((x == y) | (np.isnan(x) & np.isnan(y)))
        found = float(np.abs(x - y)[differ].max(initial=0.0) / scale)
    return float("inf") if found != found else found


def furthest(before: Sequence[Arrays], after: Sequence[Arrays]) -> tuple[str, float]:
    """The output that both have and that differs most over all sessions, and by how much."""
    pairs = ((b, a) for b, a in zip(before, after, strict=True))
    found = [(apart(b[name], a[name]), name) for b, a in pairs for name in b if name in a]
    most, name = max(found, default=(0.0, ""))
    return name, most


def largest(found: Array, expected: Array) -> float:
    """The largest difference of numbers; what is not finite in either is left out."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(expected.astype(np.float64) - found)
    return float(gap[np.isfinite(gap)].max(initial=0.0))


def moved(before: Sequence[Arrays], after: Sequence[Arrays]) -> tuple[str, float]:
    """The output of floats that a lossy pass moved most over all sessions, as a share of its largest magnitude in any.

    inf where there were numbers only, and are no longer.
    """
    both = {name for outputs in after for name in outputs}
    names = dict.fromkeys(
        n for outputs in before for n, v in outputs.items() if v.dtype.kind == "f" and n in both
    )
    found = [(_moved(*_both(name, before, after)), name) for name in names]
    most, name = max(found, default=(0.0, ""))
    return name, most


def _both(name: str, before: Sequence[Arrays], after: Sequence[Arrays]) -> tuple[Array, Array]:
    """All values of an output."""
    pairs = [(b[name].ravel(), a[name].ravel()) for b, a in zip(before, after, strict=True) if name in b]
    return np.concatenate([b for b, _ in pairs]), np.concatenate([a for _, a in pairs])


def _moved(before: Array, after: Array) -> float:
    if np.isfinite(before).all() and not np.isfinite(after).all():
        return float("inf")
    scale = np.abs(before[np.isfinite(before)].astype(np.float64)).max(initial=0.0) or 1.0
    return largest(after, before) / float(scale)
