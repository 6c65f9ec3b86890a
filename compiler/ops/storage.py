"""Weights stored compressed: ops with the trait `stored` say how their values are read back, exactly.

A product whose weight is one of them decodes it on the way into its registers, if the backend has a reader for it
(targets/cpu/storage/); else the pass `unpack` makes a plain weight of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.graph import TensorType
from llmc.compiler.ops.declare import OPS, REQUIRED, op
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rules import Array, want_dtype, want_int, want_rank, want_shape
from llmc.errors import LlmcError


def stored_ops() -> frozenset[str]:
    """The ops that stand for stored weights."""
    return frozenset(name for name, op in OPS.items() if op.stored)


def packed_bytes(columns: int, bits: int) -> int:
    """Bytes of a row of `columns` numbers of `bits` bits."""
    return -(-columns * bits // 8)


def pack_indices(indices: Array, bits: int) -> Array:
    """Indices u8 `[..., columns]` as u8 `[..., packed_bytes]`; of 4 bits, the even column in the low half."""
    if bits == 8:
        return indices
    if indices.shape[-1] % 2:
        indices = np.concatenate([indices, np.zeros_like(indices[..., :1])], -1)
    return np.ascontiguousarray(indices[..., ::2] | (indices[..., 1::2] << 4))


def unpack_indices(packed: Array, columns: int, bits: int) -> Array:
    """The inverse of `pack_indices`."""
    if bits == 8:
        return packed
    halves = np.stack([packed & 15, packed >> 4], -1)
    return halves.reshape(*packed.shape[:-1], -1)[..., :columns]


def _codebook_reference(indices: Array, values: Array, columns: int, bits: int) -> Array:
    return np.asarray(np.take(values, unpack_indices(indices, columns, bits), mode="clip"))


@op("codebook", _codebook_reference, traits={"stored": True}, columns=REQUIRED, bits=8)
def _codebook(indices: TensorType, values: TensorType, columns: Any, bits: Any) -> TensorType:
    """indices u8 `[..., packed_bytes(columns, bits)]`, values f32 `[v]` -> f32 `[..., columns]`"""
    want_dtype(indices, {"u8"}, "the indices")
    want_dtype(values, F32, "the values")
    want_rank(values, 1, what="the values")
    if bits not in (4, 8) or isinstance(bits, bool):
        raise LlmcError(f"bits is {bits!r}, not 4 or 8")
    if not isinstance(values.shape[0], int) or not 1 <= values.shape[0] <= 1 << bits:
        raise LlmcError(f"{values.shape[0]} values for indices of {bits} bits")
    _want_columns(indices, "the indices", packed_bytes(want_int(columns, "columns", 1), bits))
    return TensorType("f32", (*indices.shape[:-1], columns))


def _bitmask_reference(mask: Array, values: Array, columns: int, height: int) -> Array:
    kept = np.unpackbits(mask, axis=-1, count=columns, bitorder="little").astype(bool)
    result = np.zeros((len(mask), columns, height), np.float32)
    order = (np.cumsum(kept.reshape(-1)).reshape(kept.shape) - 1)[kept]
    places = order[:, None] * height + np.arange(height)
    result[kept] = np.take(values, places, mode="clip") if values.size else 0
    return np.ascontiguousarray(result.swapaxes(1, 2)).reshape(-1, columns)


@op("bitmask", _bitmask_reference, traits={"stored": True}, columns=REQUIRED, height=1)
def _bitmask(mask: TensorType, values: TensorType, columns: Any, height: Any) -> TensorType:
    """mask u8 `[r, ceil(columns / 8)]`, values f32 `[v]`, `height` for each set bit in order -> f32 `[height r,
    columns]`: a bit stands for `height` rows of a column
    """
    want_dtype(mask, {"u8"}, "the mask")
    want_dtype(values, F32, "the values")
    want_rank(mask, 2, what="the mask")
    want_rank(values, 1, what="the values")
    _want_columns(mask, "the mask", packed_bytes(want_int(columns, "columns", 1), 1))
    return TensorType("f32", (want_int(height, "height", 1) * mask.shape[0], columns))


# N of M weights in a row that are written by places among the M: with more than half of them left, to find a value
# by its place and to multiply by it cost what two products do
N_OF_M = ((1, 8), (1, 4), (2, 8), (3, 8), (2, 4), (4, 8))


def n_of_m(array: Array) -> tuple[int, int] | None:
    """The first of `N_OF_M` that says what a matrix f32 [n, k] has at most; None if there is none."""
    there, k = array != 0, array.shape[1]
    most = {m: there.reshape(-1, m).sum(1).max(initial=1) for m in (4, 8) if k % m == 0}
    return next(((n, m) for n, m in N_OF_M if m in most and most[m] <= n), None)


_HALVES = (
    (np.stack([np.arange(256) & 15, np.arange(256) >> 4], -1) - 8).astype(np.float32).view(np.uint64)[:, 0]
)
_PIECE = 1 << 14  # bytes that are looked up at a time: what NumPy makes of indices stays in a cache


def _levels(levels: Array, columns: int, bits: int) -> Array:
    """As f32, which the caller may write to. Both halves of a byte are looked up at once: a compile decodes each weight
    in each call that it tries."""
    if bits == 8:
        return np.subtract(levels, np.float32(128), dtype=np.float32)
    flat, both = levels.reshape(-1), np.empty(levels.size, np.uint64)
    for i in range(0, flat.size, _PIECE):
        np.take(_HALVES, flat[i : i + _PIECE], out=both[i : i + _PIECE], mode="clip")
    whole = both.view(np.float32).reshape(*levels.shape[:-1], 2 * levels.shape[-1])
    return whole if whole.shape[-1] == columns else whole[..., :columns].copy()


def _blockwise_reference(
    levels: Array, scales: Array, *zeros: Array, columns: int, bits: int, block: int
) -> Array:
    whole, scales = _levels(levels, columns, bits), scales.astype(np.float32)
    blocks = columns // block * block
    around = [unpack_indices(z, scales.shape[-1], bits) - np.float32(1 << (bits - 1)) for z in zeros]
    if block >= columns:  # one scale for each row
        for zero in around:
            whole -= zero
        whole *= scales
    elif blocks == columns:
        each = whole.reshape(*whole.shape[:-1], columns // block, block)  # of one memory with it
        for zero in around:
            each -= zero[..., None]
        each *= scales[..., None]
    else:
        for zero in around:
            whole -= np.repeat(zero, block, axis=-1)[..., :columns]
        whole *= np.repeat(scales, block, axis=-1)[..., :columns]
    return whole


@op("blockwise", _blockwise_reference, traits={"stored": True}, columns=REQUIRED, bits=8, block=REQUIRED)
def _blockwise(
    levels: TensorType, scales: TensorType, *zeros: TensorType, columns: Any, bits: Any, block: Any
) -> TensorType:
    """levels u8 `[..., packed_bytes(columns, bits)]`, half of all for 0 or that of `zeros`, scales f32 or f16
    `[..., ceil(columns / block)]` -> f32 `[..., columns]`: (level - zero) times scale, one for
    `block` columns side by side. Zeros are u8, packed as levels are
    """
    want_dtype(levels, {"u8"}, "the levels")
    want_dtype(scales, {"f32", "f16"}, "the scales")
    if bits not in (4, 8) or isinstance(bits, bool):
        raise LlmcError(f"bits is {bits!r}, not 4 or 8")
    columns, block = want_int(columns, "columns", 1), want_int(block, "block", 1)
    if block % 2 and block < columns:
        raise LlmcError(f"block is {block}, not an even number or all {columns} columns")
    _want_columns(levels, "the levels", packed_bytes(columns, bits))
    want_shape(scales, (*levels.shape[:-1], -(-columns // block)), "the scales")
    if len(zeros) > 1:
        raise LlmcError(f"{len(zeros)} arrays of zero points", hint="one has those of all blocks")
    for zero in zeros:
        want_zeros(zero, scales, bits)
    return TensorType("f32", (*levels.shape[:-1], columns))


def want_zeros(zeros: TensorType, scales: TensorType, bits: int) -> None:
    """Zero points of blocks, of which each has a scale."""
    want_dtype(zeros, {"u8"}, "the zero points")
    want_shape(zeros, (*scales.shape[:-1], packed_bytes(int(scales.shape[-1]), bits)), "the zero points")


def _bfloat16_reference(halves: Array, columns: int) -> Array:
    wide = np.ascontiguousarray(halves).view("<u2").astype("<u4") << 16
    return np.asarray(wide.view("<f4").astype(np.float32, copy=False))


@op("bfloat16", _bfloat16_reference, traits={"stored": True}, columns=REQUIRED)
def _bfloat16(halves: TensorType, columns: Any) -> TensorType:
    """halves u8 `[..., 2 columns]`, little-endian -> f32 `[..., columns]`, of which they are the upper 16 bits"""
    want_dtype(halves, {"u8"}, "the halves")
    _want_columns(halves, "the halves", 2 * want_int(columns, "columns", 1))
    return TensorType("f32", (*halves.shape[:-1], columns))


def _want_columns(x: TensorType, what: str, count: int) -> None:
    if not x.rank or x.shape[-1] != count:
        raise LlmcError(f"{what} has {x} where a row takes {count} bytes")
