"""Images of any size for models of images and text: tiles of one size (Idefics3), or patches of a grid (Qwen2-VL).

Sizes are rounded, and images resized, as transformers' processors on Pillow do it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime.arrays import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST = 4096  # of a side that is cut into tiles
_NARROWEST = 200  # how many times longer the longer side of a grid may be


@dataclass(frozen=True)
class TileSteps:
    """How an image is cut.

    Args:
        longest: its longer side, once resized.
        edge: the sides of a tile.
        split: whether it is cut; else it becomes one tile.
    """

    longest: int
    edge: int
    split: bool


@dataclass(frozen=True)
class GridSteps:
    """How an image becomes patches.

    Args:
        patch: sides of a patch; frames: how often it is repeated.
        merge: patches along a side of those that make one row.
        least, most: pixels of a resized image.
        window: rows along a side of a window of attention; 0: none.
        enlarged: whether an image with a side of less than a row is made larger first (GLM-4V).
    """

    patch: int
    merge: int
    frames: int
    least: int
    most: int
    window: int
    enlarged: bool = False


def tiles(image: Image, steps: TileSteps, resample: int) -> tuple[list[Image], tuple[int, int]]:
    """The tiles of an image, the whole one last, and how many rows and columns they make; 0, 0: it is one tile."""
    edge = steps.edge
    if not steps.split:
        height, width = _longest(image.height, image.width, steps.longest)
        return [image.resize((width, height), resample).resize((edge, edge), resample)], (0, 0)
    image = image.resize(_longest(image.height, image.width, steps.longest)[::-1], resample)
    image = image.resize(_multiple(image.height, image.width, edge)[::-1], resample)
    rows, columns = image.height // edge, image.width // edge
    if rows == columns == 1:
        return [image], (0, 0)
    found = [
        image.crop((x * edge, y * edge, (x + 1) * edge, (y + 1) * edge))
        for y in range(rows)
        for x in range(columns)
    ]
    return [*found, image.resize((edge, edge), resample)], (rows, columns)


def _longest(height: int, width: int, longest: int) -> tuple[int, int]:
    """The longer side as given, the other one even."""
    ratio = width / height
    if width >= height:
        height, width = int(longest / ratio), longest
        height += height % 2
    else:
        height, width = longest, int(longest * ratio)
        width += width % 2
    return _bounded(max(height, 1), max(width, 1))


def _bounded(height: int, width: int) -> tuple[int, int]:
    ratio = width / height
    if width >= height and width > _LONGEST:
        return max(int(_LONGEST / ratio), 1), _LONGEST
    if height > width and height > _LONGEST:
        return _LONGEST, max(int(_LONGEST * ratio), 1)
    return height, width


def _multiple(height: int, width: int, edge: int) -> tuple[int, int]:
    """Both sides as multiples of `edge`, the longer one first."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / edge) * edge
        return math.ceil(int(width / ratio) / edge) * edge, width
    height = math.ceil(height / edge) * edge
    return height, math.ceil(int(height * ratio) / edge) * edge


def grid_size(height: int, width: int, steps: GridSteps) -> tuple[int, int]:
    """Height and width that an image is resized to.

    Raises:
        LlmcError: it is too narrow.
    """
    factor = steps.patch * steps.merge
    if steps.enlarged and min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > _NARROWEST:
        raise LlmcError(
            "the image is too long and narrow",
            found=f"{width}x{height} pixels, one side may be {_NARROWEST} times the other",
        )
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if tall * wide > steps.most:
        scale = math.sqrt(height * width / steps.most)
        return tuple(max(factor, math.floor(n / scale / factor) * factor) for n in (height, width))  # type: ignore[return-value]  # two
    if tall * wide < steps.least:
        scale = math.sqrt(steps.least / (height * width))
        return tuple(math.ceil(n * scale / factor) * factor for n in (height, width))  # type: ignore[return-value]  # two
    return tall, wide


def patched(planes: Array, steps: GridSteps) -> tuple[Array, tuple[int, int]]:
    """f32 [rows, merge * merge, patch] of planes [channels, height, width], and the rows and columns of the grid."""
    layers, height, width = planes.shape
    side = steps.patch * steps.merge
    down, across = height // side, width // side
    cut = planes.reshape(layers, down, steps.merge, steps.patch, across, steps.merge, steps.patch)
    cut = cut.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    shape = (*cut.shape[:5], steps.frames, *cut.shape[6:])
    return np.broadcast_to(cut, shape).reshape(down * across, steps.merge**2, -1), (down, across)


def beside(grids: Sequence[Sequence[int]], window: int = 0) -> Array:
    """i64 [rows, 6] of images of so many rows and columns each: image, window, row, column, shift, after.

    Args:
        window: rows along a side of a window; 0: the whole image is one.
    """
    parts, before, windows = list[Array](), 0, 0
    for number, (rows, columns) in enumerate(grids):
        down, across = (axis.ravel() for axis in np.indices((rows, columns)))
        edge = window or max(rows, columns)
        wide = -(-columns // edge)
        within = windows + down // edge * wide + across // edge
        shift = -before - np.arange(rows * columns)
        before += rows * columns - max(rows, columns)
        found: list[Any] = [
            np.full_like(down, number),
            within,
            down,
            across,
            shift,
            np.full_like(down, -before),
        ]
        parts.append(np.stack(found, 1))
        windows += wide * -(-rows // edge)
    return np.concatenate(parts).astype(np.int64)
