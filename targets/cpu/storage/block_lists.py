"""Weights of which blocks of outputs are zero, as products that skip them read them (`products/sparse.py`): lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from llmc.targets.tir.emit import LANES

LISTS = 4  # of a panel
HEAD = 1 + 2 * LISTS  # of a panel: its first step, the length of each list, the block row that each is

Array = np.ndarray[Any, Any]


def _sorted(array: Array, height: int) -> tuple[Array, Array, Array]:
    """Of a matrix f32 [n, k]: the block rows by panels `[p, LISTS]`, longest first, -1 where there is none; how long
    they are; and whether a block is there, bool [rows, k]."""
    there = (array.reshape(-1, height, array.shape[1]) != 0).any(1)
    counts = there.sum(1)
    order = np.argsort(-counts, kind="stable")
    padded = np.pad(order, (0, -len(order) % LISTS), constant_values=-1).reshape(-1, LISTS)
    return padded, np.where(padded < 0, 0, counts[padded]), there


def heads(array: Array, *, height: int) -> Array:
    """i32 [p + 1, HEAD]; a missing list has the length 0 and the block row -1."""
    rows, counts, _ = _sorted(array, height)
    starts = np.concatenate([[0], np.cumsum(counts[:, 0])])[:, None]
    numbers = np.concatenate([counts, rows], 1)
    return np.concatenate([starts, np.pad(numbers, ((0, 1), (0, 0)))], 1).astype(np.int32)


def _steps(array: Array, height: int) -> Iterator[tuple[Array, Array]]:
    """Of each panel the inputs of its blocks [steps, LISTS] and their weights [steps, LISTS, height]."""
    rows, counts, there = _sorted(array, height)
    by_row = array.reshape(-1, height, array.shape[1])
    for row, count in zip(rows, counts, strict=True):
        inputs = np.zeros((count[0], LISTS), "<u2")
        weights = np.zeros((count[0], LISTS, height), np.float32)
        for i in range(LISTS):
            if not count[i]:
                continue
            found = np.flatnonzero(there[row[i]])
            inputs[:, i] = np.pad(found, (0, count[0] - count[i]), mode="edge")
            weights[: count[i], i] = by_row[row[i]][:, found].T
        yield inputs, weights


def places(array: Array, *, height: int) -> Array:
    """The input that each block reads, 16 bits as bytes."""
    found = [inputs.reshape(-1) for inputs, _ in _steps(array, height)]
    return np.concatenate([*found, np.zeros(LISTS, "<u2")]).view(np.uint8)


def blocks(array: Array, *, height: int) -> Array:
    """Their weights."""
    return np.concatenate([*(w.reshape(-1) for _, w in _steps(array, height)), np.zeros(LANES, np.float32)])
