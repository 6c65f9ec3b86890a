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


def nearest(array: Array, bits: int, block: int, zeros: bool = False) -> tuple[Array, ...]:
    """f32 `[n, k]` -> levels u8 `[n, k]` and scales `[n, ceil(k / block)]`; with `zeros`, zero points u8 of that shape.

    8 bits are symmetric, -127 to 127. Of 4 bits, the value that is farthest from 0 becomes the lowest level, -8, of
    which there is no counterpart: that uses all 16. Scales are half precision where that holds them, but of 8 bits if
    there is one for a whole row. With zero points a block's levels are those, or reach from its least value to its
    largest, whichever has the least square error.
    """
    if zeros:
        return _of_least_error(array, bits, block, np.ones(array.shape[1], np.float32), zeros, _SHRUNK[:1])
    scales = _largest(_in_blocks(array, block), bits)
    return _as_stored(_levels(array, scales, bits, block), bits), scales


def of_least_error(
    array: Array, bits: int, block: int, weights: Array | None = None, zeros: bool = False
) -> tuple[Array, ...]:
    """As `nearest`, each scale the one of some that has the least sum of square errors, columns counting by `weights`.

    Values far from the others are cut off where that helps the rest (Banner et al. 2019, "Post training 4-bit
    quantization of convolutional networks for rapid-deployment", does so by analysis).
    """
    each = np.ones(array.shape[1], np.float32) if weights is None else weights
    return _of_least_error(array, bits, block, each, zeros, _SHRUNK)


def _of_least_error(
    array: Array, bits: int, block: int, each: Array, zeros: bool, shares: Array
) -> tuple[Array, ...]:
    piece = max(1, _PIECE // array.shape[1])
    parts = [
        _searched(array[i : i + piece], bits, block, each, zeros, shares) for i in range(0, len(array), piece)
    ]
    scales, around = (np.concatenate(found) for found in zip(*parts, strict=True))
    kept, of_blocks = _as_kept(scales, bits), around if zeros else None
    levels = _as_stored(_levels(array, kept, bits, block, of_blocks), bits, block, of_blocks)
    return (levels, kept, around.astype(np.uint8)) if zeros else (levels, kept)


def compensated(
    array: Array, products: Array, bits: int, block: int, damp: float, zeros: bool = False
) -> tuple[Array, ...]:
    """As `of_least_error`, rounded for rows x of which `products` f32 `[k, k]` is the sum of x x^T.

    GPTQ first: with H = that sum and `damp` times the mean of its diagonal on it, H^-1 = U^T U and U upper triangular,
    the error e = (w_i - q_i) / U_ii of column i changes the columns j > i by -e U_ij. Columns go by their size in H,
    the largest first, and have the scales and zero points of where they lie. Then, in turns, scales are those of the
    least loss (q - w) H (q - w)^T for the levels, and each column has the levels of the least loss for all others.

    Raises:
        LlmcError: H is singular.
    """
    h = products + np.eye(len(products), dtype=np.float32) * (damp * np.diag(products).mean() or 1)
    order = np.argsort(-np.diag(h), kind="stable")
    upper = _inverse_factor(h, order)
    _, scales, *around = of_least_error(array, bits, block, np.diag(h), zeros)
    scales, zero = scales.astype(np.float32), around[0].astype(np.float32) if zeros else None
    levels = np.empty(array.shape, np.int16)
    piece = max(1, _PIECE // max(array.shape[1], scales.shape[1] ** 2))
    for i in range(0, len(array), piece):
        w, s = array[i : i + piece], scales[i : i + piece]
        z = None if zero is None else zero[i : i + piece]
        found = _made_up_for(w, s, upper, order, bits, block, z)
        for _ in range(_SWEEPS):
            s[:] = _fitted(found, w, s, h, bits, block)
            found = _descended(found, w, s, h, bits, block, z)
        s[:] = _fitted(found, w, s, h, bits, block)
        levels[i : i + piece] = _better(found, s, z, w, h, bits, block)
    stored, kept = _as_stored(levels, bits, block, zero), _as_kept(scales, bits)
    return (stored, kept) if zero is None else (stored, kept, zero.astype(np.uint8))


def _better(
    levels: Array, scales: Array, zeros: Array | None, array: Array, h: Array, bits: int, block: int
) -> Array:
    """Row by row what loses less: these, or levels to the nearest; one value beyond all others can make it those.

    Of a row whose levels change, `scales` and `zeros` are changed too.
    """
    _, plain, *around = nearest(array, bits, block, zeros is not None)
    plain, of_plain = plain.astype(np.float32), around[0].astype(np.float32) if around else None
    rounded = _levels(array, plain, bits, block, of_plain)
    kept = (_lost(levels, scales, array, h, block) <= _lost(rounded, plain, array, h, block))[:, None]
    scales[:] = np.where(kept, scales, plain)
    if zeros is not None and of_plain is not None:
        zeros[:] = np.where(kept, zeros, of_plain)
    return np.where(kept, levels, rounded)


def _lost(levels: Array, scales: Array, array: Array, h: Array, block: int) -> Array:
    """The loss of each row."""
    off = levels * np.repeat(scales, block, 1)[:, : array.shape[1]] - array
    return np.asarray(((off @ h) * off).sum(1))


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


def _made_up_for(
    array: Array, scales: Array, upper: Array, order: Array, bits: int, block: int, zeros: Array | None = None
) -> Array:
    """Levels f32 `[n, k]` by GPTQ."""
    low, high = _ends(bits, zeros, scales)
    step = _steps(scales)
    rest, levels = np.asfortranarray(array[:, order]), np.empty(array.shape, np.float32, "F")
    for start in range(0, len(order), _TOGETHER):
        part, stop = rest[:, start : start + _TOGETHER], min(start + _TOGETHER, len(order))
        errors = np.empty_like(part)
        for i, column in enumerate(order[start:stop]):
            b, own = column // block, upper[start + i, start + i : stop]
            s = step[:, b]
            level = np.clip(np.rint(part[:, i] / s), low[:, b], high[:, b])
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
    wanted = _rounded_half(wanted) if _short(scales, bits) else wanted
    if bits == 8:  # loses so little that the difference of large sums does not show it
        better = _lost(levels, wanted, array, h, block) < _lost(levels, scales, array, h, block)
    else:
        better = _loss(wanted, matrix, right) < _loss(scales, matrix, right)
    return np.asarray(np.where(better[:, None], wanted, scales))


def _loss(scales: Array, matrix: Array, right: Array) -> Array:
    """Of each row, but for what no scale changes."""
    turned = np.einsum("nbc,nc->nb", matrix, scales) - 2 * right
    return np.asarray((turned * scales).sum(1))


def _descended(
    levels: Array, array: Array, scales: Array, h: Array, bits: int, block: int, zeros: Array | None = None
) -> Array:
    """Levels after each column was given those of the least loss, one after the other.

    Coordinate descent (Behdin et al. 2023, "QuantEase"): the loss is least in w_j where its slope, 2 (q - w) H_j, is 0.
    """
    low, high = _ends(bits, zeros, scales)
    step, levels = _steps(scales), levels.copy()
    slope = (levels * np.repeat(step, block, 1)[:, : array.shape[1]] - array) @ h
    for start in range(0, array.shape[1], _TOGETHER):
        stop = min(start + _TOGETHER, array.shape[1])
        part, near = np.asfortranarray(slope[:, start:stop]), h[start:stop, start:stop]
        moved = np.empty_like(part)
        for i in range(stop - start):
            b = (start + i) // block
            s = step[:, b]
            wanted = np.rint(levels[:, start + i] - part[:, i] / (near[i, i] * s))
            level = np.clip(wanted, low[:, b], high[:, b])
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
        return _as_kept(np.asarray(np.abs(blocks).max(2) / np.float32(127)), bits)
    return _halves(_farthest(blocks) / np.float32(-8))


def _farthest(blocks: Array) -> Array:
    return np.asarray(np.take_along_axis(blocks, np.abs(blocks).argmax(2)[..., None], 2)[..., 0])


def _searched(
    array: Array, bits: int, block: int, weights: Array, zeros: bool, shares: Array
) -> tuple[Array, Array]:
    """f32 scales and zero points of least error, of the largest scales and some smaller ones; of 4 bits, with either
    sign.
    """
    blocks, each = _in_blocks(array, block), _in_blocks(weights[None], block)
    best, least = _largest(blocks, bits).astype(np.float32), np.full(blocks.shape[:2], np.inf, np.float32)
    around = np.full(best.shape, 1 << (bits - 1), np.float32)
    for scales, zero in _candidates(blocks, bits, zeros, shares):
        error = _error(blocks, scales, bits, each, zero if zeros else None)
        better = error < least
        best, least = np.where(better, scales, best), np.where(better, error, least)
        around = np.where(better, zero, around)
    return best, around


def _candidates(blocks: Array, bits: int, zeros: bool, shares: Array) -> Iterator[tuple[Array, Array]]:
    """Scales and zero points."""
    middle = np.full((1, 1), 1 << (bits - 1), np.float32)
    if zeros:
        yield from (_spread(blocks, bits, share) for share in shares)
    if bits == 8:
        for scales in (_largest(blocks, 8) * share for share in shares[:5]):
            yield _rounded_half(scales) if _short(scales, bits) else scales, middle
        return
    far = _farthest(blocks) / np.float32(-8)
    for share in shares:
        yield _largest(blocks, 4).astype(np.float32) if share == 1 else _rounded_half(far * share), middle
        yield _rounded_half(far * -share * np.float32(8 / 7)), middle


def _spread(blocks: Array, bits: int, share: Any) -> tuple[Array, Array]:
    """Scales and zero points of levels from the least value to the largest, or that share of the way."""
    top = np.float32((1 << bits) - 1)
    low, high = np.minimum(blocks.min(2), 0) * share, np.maximum(blocks.max(2), 0) * share
    scales = np.asarray(((high - low) / top).astype(np.float32))
    scales = _rounded_half(scales) if _short(scales, bits) else scales
    return scales, np.clip(np.rint(-low / _steps(scales)), 0, top)


def _rounded_half(scales: Array) -> Array:
    """As half precision will hold them, where it does."""
    small = (np.abs(scales) >= HALVES[0]) & (np.abs(scales) <= HALVES[1])
    with np.errstate(over="ignore"):
        return np.asarray(np.where(small, scales.astype(np.float16).astype(np.float32), scales))


def _ends(bits: int, zeros: Array | None, scales: Array) -> tuple[Array, Array]:
    """The lowest and the highest level of each block, counted from its zero point."""
    if zeros is None:
        low, high = (np.broadcast_to(np.float32(end), scales.shape) for end in levels_range(bits))
        return low, high
    return -zeros, (1 << bits) - 1 - zeros


def _error(blocks: Array, scales: Array, bits: int, each: Array, zeros: Array | None = None) -> Array:
    """The square error `[n, blocks]` of rounding to the nearest."""
    step = _steps(scales)[..., None]
    off = np.clip(np.rint(blocks / step), *(end[..., None] for end in _ends(bits, zeros, scales)))
    off *= step
    off -= blocks
    off *= off
    off *= each
    return np.asarray(off.sum(2))


def _steps(scales: Array) -> Array:
    return np.asarray(np.where(scales == 0, 1, scales).astype(np.float32))


def _levels(array: Array, scales: Array, bits: int, block: int, zeros: Array | None = None) -> Array:
    """Levels `[n, k]` of rounding to the nearest, counted from the zero points."""
    step, ends = _steps(scales)[..., None], _ends(bits, zeros, scales)
    whole = np.clip(np.rint(_in_blocks(array, block) / step), *(end[..., None] for end in ends))
    return whole.reshape(len(array), -1)[:, : array.shape[1]]


def _as_stored(levels: Array, bits: int, block: int = 0, zeros: Array | None = None) -> Array:
    """As u8, half of all for 0, or the zero point of the block."""
    middle: Any = 1 << (bits - 1)
    if zeros is not None:
        middle = np.repeat(zeros.astype(np.int16), block, axis=1)[:, : levels.shape[1]]
    return np.asarray((levels.astype(np.int16) + middle).astype(np.uint8))


def _short(scales: Array, bits: int) -> bool:
    """Whether scales are many enough to be kept in half precision."""
    return bits == 4 or scales.shape[1] > 1


def _as_kept(scales: Array, bits: int) -> Array:
    return _halves(scales) if _short(scales, bits) else scales


def _halves(scales: Array) -> Array:
    """Scales in half precision, if that loses no more than digits."""
    size = np.abs(scales[scales != 0])
    fits = not size.size or (size.min() >= HALVES[0] and size.max() <= HALVES[1])
    return scales.astype(np.float16 if fits else np.float32)
