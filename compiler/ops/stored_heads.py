"""Keys and values that sessions keep in fewer bits: what attention reads of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.graph import TensorType
from llmc.compiler.ops.rows import row_stride, unpack_rows
from llmc.compiler.ops.rules import Array, want_dtype, want_rank, want_shape
from llmc.errors import LlmcError

STORED = (
    "f16",
    "u8",
)  # how keys and values may be stored: as halves, or a packed row (rows.py) for each head


def floats_of(x: Array, head_dim: int) -> Array:
    """What is stored of keys or values as f32: halves, or a packed row for each head."""
    if x.dtype != np.uint8:
        return x.astype(np.float32)
    q, scale = unpack_rows(x.reshape(*x.shape[:2], -1, row_stride(head_dim)), head_dim)
    return np.asarray(q.astype(np.float32) * scale).reshape(*x.shape[:2], -1)


def check_stored(
    stored: tuple[TensorType, TensorType], head_dim: int, groups: int, offsets: Any, int8: bool
) -> None:
    """Keys and values that are stored in fewer bits: heads side by side, nothing else in a row."""
    width = groups * (row_stride(head_dim) if stored[0].dtype == "u8" else head_dim)
    if int8 or not isinstance(offsets, tuple) or offsets[1:] != (0, 0):
        raise LlmcError("stored keys and values are for attention in float, and begin with their first head")
    for name, x in zip("kv", stored, strict=True):
        want_dtype(x, {stored[0].dtype}, name)
        want_rank(x, 3, what=name)
        want_shape(x, (*x.shape[:-1], width), name)
