"""Weights by panels of columns: one stretch of memory each."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def pack_panels(array: Array, width: int) -> Array:
    """f32 `[n, k]` -> `[ceil(n / width), k, width]`, missing columns zero."""
    n, k = array.shape
    panels = -(-n // width)
    padded = np.zeros((panels * width, k), array.dtype)
    padded[:n] = array
    return np.ascontiguousarray(padded.reshape(panels, width, k).transpose(0, 2, 1))


def pad_columns(array: Array, width: int) -> Array:
    """`[n]` -> `[ceil(n / width) * width]`, missing elements zero."""
    return np.pad(array, (0, -len(array) % width))


def pack_halves(halves: Array, width: int) -> Array:
    """u8 `[n, 2 k]`, 16 bits each -> `[ceil(n / width), k, width]`, of f16, which has as many bits."""
    return pack_panels(np.ascontiguousarray(halves).view(np.float16), width)
