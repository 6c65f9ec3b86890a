"""Weights by panels of columns: one stretch of memory each."""

from __future__ import annotations

from typing import Any

import numpy as np


def pack_panels(array: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """f32 `[n, k]` -> `[ceil(n / width), k, width]`, missing columns zero."""
    n, k = array.shape
    panels = -(-n // width)
    padded = np.zeros((panels * width, k), array.dtype)
    padded[:n] = array
    return np.ascontiguousarray(padded.reshape(panels, width, k).transpose(0, 2, 1))


def pad_columns(array: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """`[n]` -> `[ceil(n / width) * width]`, missing elements zero."""
    return np.pad(array, (0, -len(array) % width))
