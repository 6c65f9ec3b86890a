"""Packed rows: int8 values and their f32 scale in one piece; `quantise.py` says how they lie."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ZERO = 128  # the byte that means 0
_UNIT = 16  # rows start where 16-byte loads do


def scale_offset(k: int) -> int:
    """Where the scale of a row of k values lies, in bytes."""
    return -(-k // _UNIT) * _UNIT


def row_stride(k: int) -> int:
    """Bytes of a packed row of k values."""
    return -(-(scale_offset(k) + _UNIT) // 64) * 64


def pack_rows(q: Array, scale: Array) -> Array:
    """i8 `[..., k]` and f32 `[..., 1]` -> u8 `[..., row_stride(k)]`."""
    k = q.shape[-1]
    rows = np.zeros((*q.shape[:-1], row_stride(k)), np.uint8)
    rows[..., : scale_offset(k)] = ZERO
    rows[..., :k] = q.view(np.uint8) ^ ZERO
    scales = np.ascontiguousarray(scale, "<f4").view(np.uint8)
    rows[..., scale_offset(k) : scale_offset(k) + 4] = scales
    return rows


def unpack_rows(rows: Array, k: int) -> tuple[Array, Array]:
    """u8 `[..., row_stride(k)]` -> i8 `[..., k]`, f32 `[..., 1]`."""
    at = scale_offset(k)
    scale = np.ascontiguousarray(rows[..., at : at + 4]).view("<f4").astype(np.float32)
    return (rows[..., :k] ^ np.uint8(ZERO)).view(np.int8), scale
