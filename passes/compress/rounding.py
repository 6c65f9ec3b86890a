"""Matrices as whole numbers and scales: to the nearest, with scales of least error, or so that products keep sums.

The last is Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers":
columns are rounded one after the other, and what each loses is made up for by those to come. Scales are fitted and
levels improved by coordinate descent afterwards, which takes a tenth off what is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
HALVES = (6.2e-5, 65504.0)  # what half precision holds with all its digits
_TOGETHER = 64  # columns whose errors reach the later ones in one product
_PIECE = 1 << 22  # values that are worked on at a time
_SWEEPS = 1  # of coordinate descent: another gains a hundredth of what is lost
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

    GPTQ first: with H = that sum and `damp` times the mean of its diagonal on it, H^-1 = U^T U and U upper triangular,
    the error e = (w_i - q_i) / U_ii of column i changes the columns j > i by -e U_ij. Columns go by their size in H,
    the largest first, and have the scales of where they lie. Then, in turns, scales are those of the least loss
    (q - w) H (q - w)^T for the levels, and each column has the levels of the least loss for all others.

    Raises:
        LlmcError: H is singular.
    """
    h = products + np.eye(len(products), dtype=np.float32) * (damp * np.diag(products).mean() or 1)
    order = np.argsort(-np.diag(h), kind="stable")
    upper = _inverse_factor(h, order)
    _, scales = of_least_error(array, bits, block, np.diag(h))
    scales = scales.astype(np.float32)
    levels = np.empty(array.shape, np.int8)
    piece = max(1, _PIECE // max(array.shape[1], scales.shape[1] ** 2))
    for i in range(0, len(array), piece):
        w, s = array[i : i + piece], scales[i : i + piece]
        found = _made_up_for(w, s, upper, order, bits, block)
        for _ in range(_SWEEPS):
            s[:] = _fitted(found, w, s, h, bits, block)
            found = _descended(found, w, s, h, bits, block)
        s[:] = _fitted(found, w, s, h, bits, block)
        levels[i : i + piece], s[:] = _better(found, s, w, h, bits, block)
    return _as_stored(levels, bits), _halves(scales) if bits == 4 else scales


def _better(
    levels: Array, scales: Array, array: Array, h: Array, bits: int, block: int
) -> tuple[Array, Array]:
    """Row by row what loses less: these, or levels to the nearest; one value beyond all others can make it those."""
    plain = _largest(_in_blocks(array, block), bits).astype(np.float32)
    rounded = _levels(array, plain, bits, block)
    losses = []
    for q, s in ((levels, scales), (rounded, plain)):
        off = q * np.repeat(s, block, 1)[:, : array.shape[1]] - array
        losses.append(((off @ h) * off).sum(1))
    kept = (losses[0] <= losses[1])[:, None]
    return np.where(kept, levels, rounded), np.where(kept, scales, plain)


def _inverse_factor(h: Array, order: Array) -> Array:
    """U f32 `[k, k]`, upper triangular, with U^T U the inverse of H in the order of columns."""
    try:
        inverted = inverse(h[np.ix_(order, order)])
        return np.ascontiguousarray(np.linalg.cholesky(inverted).T.astype(np.float32))
    except np.linalg.LinAlgError:
        raise _no_inverse() from None


def inverse(h: Array) -> Array:
    """H^-1 f64 `[k, k]`.

    Raises:
        LlmcError: H is singular.
    """
    try:
        return np.asarray(np.linalg.inv(h.astype(np.float64)))
    except np.linalg.LinAlgError:
        raise _no_inverse() from None


def _no_inverse() -> LlmcError:
    return LlmcError(
        "the second moments of what a product reads have no inverse",
        hint="give more samples, or a larger damp",
    )


def _made_up_for(array: Array, scales: Array, upper: Array, order: Array, bits: int, block: int) -> Array:
    """Levels f32 `[n, k]` by GPTQ."""
    low, high = levels_range(bits)
    step = _steps(scales)
    rest, levels = np.asfortranarray(array[:, order]), np.empty(array.shape, np.float32, "F")
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


def _fitted(levels: Array, array: Array, scales: Array, h: Array, bits: int, block: int) -> Array:
    """Scales f32 `[n, blocks]` of the least loss for given levels, where they are near those that there are.

    With l_b the levels of block b and zeros elsewhere, a row's loss is least where sum_c (l_b H l_c) s_c = l_b H w.
    """
    count = scales.shape[1]
    matrix = np.empty((len(array), count, count), np.float32)
    for b in range(count):
        columns = slice(b * block, (b + 1) * block)
        matrix[:, b] = _in_blocks((levels[:, columns] @ h[columns]) * levels, block).sum(2)
    right = _in_blocks((array @ h) * levels, block).sum(2)
    own = np.einsum("nbb->nb", matrix)
    own += 1e-6 * own.mean(1, keepdims=True) + (own == 0)
    found = np.linalg.solve(matrix.astype(np.float64), right.astype(np.float64)[..., None])[..., 0]
    near = np.abs(found - scales) <= 0.5 * np.abs(scales)
    wanted = np.where(near, found, scales).astype(np.float32)
    wanted = _rounded_half(wanted) if bits == 4 else wanted
    better = _loss(wanted, matrix, right) < _loss(scales, matrix, right)
    return np.asarray(np.where(better[:, None], wanted, scales))


def _loss(scales: Array, matrix: Array, right: Array) -> Array:
    """Of each row, but for what no scale changes."""
    turned = np.einsum("nbc,nc->nb", matrix, scales) - 2 * right
    return np.asarray((turned * scales).sum(1))


def _descended(levels: Array, array: Array, scales: Array, h: Array, bits: int, block: int) -> Array:
    """Levels after each column was given those of the least loss, one after the other.

    Coordinate descent (Behdin et al. 2023, "QuantEase"): the loss is least in w_j where its slope, 2 (q - w) H_j, is 0.
    """
    low, high = levels_range(bits)
    step, levels = _steps(scales), levels.copy()
    slope = (levels * np.repeat(step, block, 1)[:, : array.shape[1]] - array) @ h
    for start in range(0, array.shape[1], _TOGETHER):
        stop = min(start + _TOGETHER, array.shape[1])
        part, near = np.asfortranarray(slope[:, start:stop]), h[start:stop, start:stop]
        moved = np.empty_like(part)
        for i in range(stop - start):
            s = step[:, (start + i) // block]
            level = np.clip(np.rint(levels[:, start + i] - part[:, i] / (near[i, i] * s)), low, high)
            moved[:, i] = (level - levels[:, start + i]) * s
            levels[:, start + i] = level
            part[:, i + 1 :] += moved[:, i, None] * near[i, i + 1 :]
        slope += moved @ h[start:stop]
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
    small = (np.abs(scales) >= HALVES[0]) & (np.abs(scales) <= HALVES[1])
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
    fits = not size.size or (size.min() >= HALVES[0] and size.max() <= HALVES[1])
    return scales.astype(np.float16 if fits else np.float32)
