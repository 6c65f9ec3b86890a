"""What stands beside the rows of images of any size: see `format.md`, `rows_at`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmc.runtime.arrays import Array


def beside(grids: Sequence[Sequence[int]], window: int = 0) -> Array:
    """i64 [rows, 6] of images of so many rows and columns each: image, window, row, column, shift, after.

    Args:
        window: rows along a side of a window; 0: the whole image is one.
    """
    parts, before, windows = [], 0, 0
    for number, (rows, columns) in enumerate(grids):
        down, across = (axis.ravel() for axis in np.indices((rows, columns)))
        edge = window or max(rows, columns)
        wide = -(-columns // edge)
        within = windows + down // edge * wide + across // edge
        shift = -before - np.arange(rows * columns)
        before += rows * columns - max(rows, columns)
        columns_of = (np.full_like(down, number), within, down, across, shift, np.full_like(down, -before))
        parts.append(np.stack(columns_of, 1))
        windows += wide * -(-rows // edge)
    return np.concatenate(parts).astype(np.int64)
