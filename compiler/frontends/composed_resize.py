"""Interpolation along one axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmc.compiler.frontends.composed import Array, taken
from llmc.compiler.frontends.parts import Maker
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant


def nearest(m: Maker, x: Node, axis: int, places: Array) -> Node:
    """y[..., i, ...] = x[..., places[i], ...]; a whole number of copies of each is an expand."""
    size, out = x.shape[axis], len(places)
    if np.array_equal(places, np.arange(out)) and out == size:
        return x
    if isinstance(size, int) and out % size == 0 and np.array_equal(places, np.arange(out) // (out // size)):
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        single = m.reshape(x, (*before, size, 1, *after))
        wide = m.op("expand", single, shape=(*before, size, out // size, *after))
        return m.reshape(wide, (*before, out, *after))
    return taken(m, x, constant(np.asarray(places, np.int64), source=m.source), axis)


@dataclass(frozen=True)
class Places:
    """Where ONNX's Resize looks for each of `out` elements along an axis of `size`.

    Args:
        scale: of the sizes, as it is given.
        kind: how an index becomes a coordinate.
        cubic: the coefficient of Keys' kernel.
    """

    size: int
    out: int
    scale: float
    kind: str
    cubic: float

    @property
    def known(self) -> bool:
        return self.kind in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")

    def coordinates(self) -> Array:
        i = np.arange(self.out, dtype=np.float64)
        match self.kind:
            case "align_corners":
                return i * ((self.size - 1) / (self.out - 1) if self.out > 1 else 0.0)
            case "asymmetric":
                return i / self.scale
            case "pytorch_half_pixel" if self.out == 1:
                return np.zeros(1)
        return (i + 0.5) / self.scale - 0.5

    def rounded(self, how: str) -> Array:
        """The nearest element."""
        x = self.coordinates()
        half = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(how, 0.0)
        up = how in ("ceil", "round_prefer_floor")
        return np.clip(np.ceil(x + half) if up else np.floor(x + half), 0, self.size - 1).astype(np.int64)

    def matrix(self, cubic: bool) -> Array:
        """`[out, size]`: what part of each element is in the result; beyond the edge lies the edge."""
        x = self.coordinates()
        matrix, first = np.zeros((self.out, self.size)), np.floor(x)
        for tap in (-1, 0, 1, 2) if cubic else (0, 1):
            away = np.abs(x - (first + tap))
            part = self._keys(away) if cubic else np.maximum(1 - away, 0)
            np.add.at(matrix, (np.arange(self.out), np.clip(first + tap, 0, self.size - 1).astype(int)), part)
        return matrix

    def _keys(self, d: Array) -> Array:
        """Keys' cubic kernel (1981)."""
        a = self.cubic
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
