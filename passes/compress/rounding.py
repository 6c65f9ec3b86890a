"""Matrices as whole numbers and scales: to the nearest, with scales of least error, or so that products keep sums.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", is the last:
columns are rounded one after the other, and what each loses is made up for by those to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
_HALVES = (6.2e-5, 65504.0)  # what half precision holds with all its digits
_TOGETHER = 128  # columns whose errors reach the later ones in one product
_PIECE = 1 << 22  # values that are worked on at a time
_SHRUNK = np.linspace(1.0, 0.7, 13, dtype=np.float32)  # shares of the scale that holds the largest value


def levels_range(bits: int) -> tuple[int, int]:
    """8 bits are symmetric; of 4 bits all 16 are used."""
    return (-127, 127) if bits == 8 else (-8, 7)


def nearest(array: Array, bits: int, block: int) -> tuple[Array, Array]:
    """f32 `[n, k]` -> levels u8 `[n, k]` and scales `[n, ceil(k / block)]`.

    8 bits are symmetric, -127 to 127. Of 4 bits, the value that is farthest from 0 becomes the lowest level, -8, of
    which there is no counterpart: that uses all 16. Scales of 4 bits are half precision where that holds them.
    """
    scales = _largest(_in_blocks(array, block), bits)
    return _as_stored(_levels(array, scales, bits, block), bits), scales


def of_least_error(array: Array, bits: int, block: int, weights: Array | None = None) -> tuple[Array, Array]:
    """As `nearest`, each scale the one of some that has the least sum of square errors, columns counting by `weights`.

    Values far from the others are cut off where that helps the rest (Banner et al. 2019, "Post training 4-bit
    quantization of convolutional networks for rapid-deployment", does so by analysis).
    """
    each = np.ones(array.shape[1], np.float32) if weights is None else weights
    piece = max(1, _PIECE // array.shape[1])
    parts = [_searched(array[i : i + piece], bits, block, each) for i in range(0, len(array), piece)]
    scales = np.concatenate(parts)
    scales = _halves(scales) if bits == 4 else scales
    return _as_stored(_levels(array, scales, bits, block), bits), scales


def compensated(array: Array, products: Array, bits: int, block: int, damp: float) -> tuple[Array, Array]:
    """As `of_least_error`, rounded for rows x of which `products` f32 `[k, k]` is the sum of x x^T.

    With H = that sum and `damp` times the mean of its diagonal on it, H^-1 = U^T U and U upper triangular, the error
    e = (w_i - q_i) / U_ii of column i changes the columns j > i by -e U_ij. Columns go by their size in H, the largest
    first, and have the scales of where they lie.

    Raises:
        LlmcError: H is singular.
    """
    size = np.diag(products).astype(np.float64)
    order = np.argsort(-size, kind="stable")
    upper = _inverse_factor(products, order, damp * size.mean())
    known = size + (damp * size.mean() or 1)
    _, scales = of_least_error(array, bits, block, known.astype(np.float32))
    levels = np.empty(array.shape, np.int8)
    piece = max(1, _PIECE // array.shape[1])
    for i in range(0, len(array), piece):
        levels[i : i + piece] = _rows_compensated(
            array[i : i + piece], scales[i : i + piece], upper, order, bits, block
        )
    return _as_stored(levels, bits), scales


def _inverse_factor(products: Array, order: Array, damp: float) -> Array:
    """U f32 `[k, k]`, upper triangular, with U^T U the inverse of H in the order of columns."""
    h = products[np.ix_(order, order)].astype(np.float64)
    h[np.diag_indices(len(h))] += damp + (np.diag(h) == 0)
    try:
        return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32))
    except np.linalg.LinAlgError:
        raise LlmcError(
            "the second moments of what a product reads have no inverse",
            hint="give more samples, or a larger damp",
        ) from None


def _rows_compensated(
    array: Array, scales: Array, upper: Array, order: Array, bits: int, block: int
) -> Array:
    low, high = levels_range(bits)
    step = _steps(scales)
    rest, levels = np.asfortranarray(array[:, order]), np.empty(array.shape, np.int8, "F")
    for start in range(0, len(order), _TOGETHER):
        part, stop = rest[:, start : start + _TOGETHER], min(start + _TOGETHER, len(order))
        errors = np.empty_like(part)
        for i, column in enumerate(order[start:stop]):
            s, own = step[:, column // block], upper[start + i, start + i : stop]
            level = np.clip(np.rint(part[:, i] / s), low, high)
            levels[:, column] = level
            errors[:, i] = (part[:, i] - level * s) / own[0]
            part[:, i + 1 :] -= errors[:, i, None] * own[1:]
        rest[:, stop:] -= errors @ upper[start:stop, stop:]
    return levels


def _in_blocks(array: Array, block: int) -> Array:
    """f32 `[n, k]` -> `[n, ceil(k / block), block]`, filled up with zeros."""
    return np.pad(array, ((0, 0), (0, -array.shape[1] % block))).reshape(len(array), -1, block)


def _largest(blocks: Array, bits: int) -> Array:
    """The scales that hold the largest values."""
    if bits == 8:
        return np.asarray(np.abs(blocks).max(2) / np.float32(127))
    return _halves(_farthest(blocks) / np.float32(-8))


def _farthest(blocks: Array) -> Array:
    return np.asarray(np.take_along_axis(blocks, np.abs(blocks).argmax(2)[..., None], 2)[..., 0])


def _searched(array: Array, bits: int, block: int, weights: Array) -> Array:
    """f32 scales of least error, of the largest and some smaller ones; of 4 bits, with either sign."""
    blocks, each = _in_blocks(array, block), _in_blocks(weights[None], block)
    best, least = _largest(blocks, bits).astype(np.float32), np.full(blocks.shape[:2], np.inf, np.float32)
    for scales in _candidates(blocks, bits):
        error = _error(blocks, scales, bits, each)
        better = error < least
        best, least = np.where(better, scales, best), np.where(better, error, least)
    return best


def _candidates(blocks: Array, bits: int) -> Iterator[Array]:
    if bits == 8:
        yield from (_largest(blocks, 8) * share for share in _SHRUNK[:5])
        return
    far = _farthest(blocks) / np.float32(-8)
    for share in _SHRUNK:
        yield _largest(blocks, 4).astype(np.float32) if share == 1 else _rounded_half(far * share)
        yield _rounded_half(far * -share * np.float32(8 / 7))


def _rounded_half(scales: Array) -> Array:
    """As half precision will hold them, where it does."""
    small = (np.abs(scales) >= _HALVES[0]) & (np.abs(scales) <= _HALVES[1])
    with np.errstate(over="ignore"):
        return np.asarray(np.where(small, scales.astype(np.float16).astype(np.float32), scales))


def _error(blocks: Array, scales: Array, bits: int, each: Array) -> Array:
    """The square error `[n, blocks]` of rounding to the nearest."""
    step = _steps(scales)[..., None]
    off = np.clip(np.rint(blocks / step), *levels_range(bits))
    off *= step
    off -= blocks
    off *= off
    off *= each
    return np.asarray(off.sum(2))


def _steps(scales: Array) -> Array:
    return np.asarray(np.where(scales == 0, 1, scales).astype(np.float32))


def _levels(array: Array, scales: Array, bits: int, block: int) -> Array:
    """Levels `[n, k]` of rounding to the nearest."""
    step = _steps(scales)[..., None]
    whole = np.clip(np.rint(_in_blocks(array, block) / step), *levels_range(bits))
    return whole.reshape(len(array), -1)[:, : array.shape[1]]


def _as_stored(levels: Array, bits: int) -> Array:
    """As u8, half of all for 0."""
    return (levels.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)


def _halves(scales: Array) -> Array:
    """Scales in half precision, if that loses no more than digits."""
    size = np.abs(scales[scales != 0])
    fits = not size.size or (size.min() >= _HALVES[0] and size.max() <= _HALVES[1])
    return scales.astype(np.float16 if fits else np.float32)
