"""Where ONNX's Resize looks along an axis, and how much it takes of each element: in numbers, where all are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmc.compiler.frontends.composed import Array

KINDS = frozenset(
    {
        *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"),
        *("tf_half_pixel_for_nn", "tf_crop_and_resize"),
    }
)


@dataclass(frozen=True)
class Filter:
    """How much of an element is taken that is some way off.

    Args:
        mode: "nearest", "linear" or "cubic".
        rounding: of "nearest", which of two.
        cubic: the coefficient of Keys' kernel.
        smooth: whether elements of a smaller image are wider ones of the larger.
        inside: whether what lies beyond the edge is left out; else the edge lies there.
        beyond: of a crop that reaches beyond the image, what lies there.
    """

    mode: str
    rounding: str
    cubic: float
    smooth: bool
    inside: bool
    beyond: float

    @property
    def reach(self) -> int:
        """How far an element is seen where nothing is smoothed."""
        return 2 if self.mode == "cubic" else 1

    def weights(self, away: Array) -> Array:
        d = np.abs(away)
        return keys(d, self.cubic) if self.mode == "cubic" else np.maximum(1 - d, 0)


def keys(d: Array, a: float) -> Array:
    """Keys' cubic kernel (1981)."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@dataclass(frozen=True)
class Places:
    """`out` elements along an axis of `size`.

    Args:
        scale: of the sizes, as it is given.
        kind: how an index becomes a coordinate.
        crop: where the part begins and ends that is resized, as parts of the whole.
    """

    size: int
    out: int
    scale: float
    kind: str
    crop: tuple[float, float]

    def coordinates(self) -> Array:
        i, wide = np.arange(self.out, dtype=np.float64), self.scale * self.size
        match self.kind:
            case "align_corners":
                return i * ((self.size - 1) / (wide - 1) if wide != 1 else 0.0)
            case "asymmetric":
                return i / self.scale
            case "tf_half_pixel_for_nn":
                return (i + 0.5) / self.scale
            case "tf_crop_and_resize":
                return self._cropped(i, wide)
            case "pytorch_half_pixel" if self.out == 1:
                return np.zeros(1)
        middle = self.size / 2 * (1 - self.out / wide) if self.kind == "half_pixel_symmetric" else 0.0
        return middle + (i + 0.5) / self.scale - 0.5

    def _cropped(self, i: Array, wide: float) -> Array:
        (start, stop), last = self.crop, self.size - 1
        step = (stop - start) * last / (wide - 1) if wide != 1 else 0.0
        first = start * last if wide != 1 else (start + stop) / 2 * last
        return first + i * step

    def outside(self) -> Array:
        """Which of the elements of a crop lie beyond the image."""
        x = self.coordinates()
        return (
            (x < 0) | (x > self.size - 1) if self.kind == "tf_crop_and_resize" else np.zeros(self.out, bool)
        )

    def rounded(self, how: str) -> Array:
        """The nearest element."""
        x = self.coordinates()
        half = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(how, 0.0)
        up = how in ("ceil", "round_prefer_floor")
        return np.clip(np.ceil(x + half) if up else np.floor(x + half), 0, self.size - 1).astype(np.int64)

    def matrix(self, taken: Filter) -> Array:
        """`[out, size]`: what part of each element is in the result."""
        x = self.coordinates()
        if taken.mode == "nearest":
            return np.eye(self.size)[self.rounded(taken.rounding)]
        narrow = min(self.scale, 1.0) if taken.smooth else 1.0
        reach = int(np.ceil(taken.reach / narrow)) + 1
        taps = np.floor(x)[:, None] + np.arange(-reach, reach + 1)
        parts = taken.weights((taps - x[:, None]) * narrow)
        if taken.inside:
            parts = np.where((taps >= 0) & (taps < self.size), parts, 0.0)
        if taken.inside or taken.smooth:
            parts = parts / parts.sum(1, keepdims=True)
        matrix = np.zeros((self.out, self.size))
        rows = np.broadcast_to(np.arange(self.out)[:, None], taps.shape)
        np.add.at(matrix, (rows, np.clip(taps, 0, self.size - 1).astype(int)), parts)
        return matrix
