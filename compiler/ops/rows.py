"""Packed rows: int8 values and their f32 scale in one piece; `quantise.py` says how they lie."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ZERO = 128  # the byte that means 0
_UNIT = 16  # values end where 16-byte loads do
_LINE = 64  # bytes of a cache line


def scale_offset(k: int) -> int:
    """Where the scale of a row of k values lies, in bytes."""
    return -(-k // _UNIT) * _UNIT


def row_stride(k: int) -> int:
    """Bytes of a packed row of k values in a table."""
    return scale_offset(k) + _UNIT


def line_stride(k: int) -> int:
    """Bytes of a packed row of k values that a product reads: each starts a cache line."""
    return -(-row_stride(k) // _LINE) * _LINE


def pack_rows(q: Array, scale: Array, stride: int) -> Array:
    """i8 `[..., k]` and f32 `[..., 1]` -> u8 `[..., stride]`."""
    k = q.shape[-1]
    rows = np.zeros((*q.shape[:-1], stride), np.uint8)
    rows[..., : scale_offset(k)] = ZERO
    rows[..., :k] = q.view(np.uint8) ^ ZERO
    scales = np.ascontiguousarray(scale, "<f4").view(np.uint8)
    rows[..., scale_offset(k) : scale_offset(k) + 4] = scales
    return rows


def unpack_rows(rows: Array, k: int) -> tuple[Array, Array]:
    """u8 `[..., row_stride(k)]`, or longer rows, -> i8 `[..., k]`, f32 `[..., 1]`."""
    at = scale_offset(k)
    scale = np.ascontiguousarray(rows[..., at : at + 4]).view("<f4").astype(np.float32)
    return (rows[..., :k] ^ np.uint8(ZERO)).view(np.int8), scale
