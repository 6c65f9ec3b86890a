"""Attention on int8: what `int8` of `mha` and `ragged_mha` means, each float step as the kernels do it.

Queries, keys and values become integers of -127..127, softmax's weights integers of 0..255; both products are sums of
integers, exact in any order. For one head of one sequence, over the keys that may be attended, with t the scale of
a row or column (its largest magnitude / 127) and x / t rounded once, half to even:

    keys and values share a scale in each feature:   K = k / tk,   V = v / tv
    a query takes over those of the keys:            Q = q tk / tq,  tq the scale of the row q tk
    scores:                                          s = Q K^T,    c = tq * scale * log2(e)
    for each block of 64 keys, m the largest s yet:  P = 255 * 2^(c (s - m)), rounded
    with f = 2^(c (m before - m)):                   o = f o + P V,   l = f l + sum P
    out = o / l * tv

Scales by feature serve keys better than scales by row, as the same few features are large in every key (Xiao et al.
2022, SmoothQuant), and none of them needs a sum or a maximum across the lanes of a vector. The sum of the rounded
weights is what divides, so that they sum to 1. The softmax is online (Milakov and Gimelshein 2018).
"""

from __future__ import annotations

import math

import numpy as np

from llmc.compiler.ops.float_steps import fma32
from llmc.compiler.ops.quantise import LEVELS, TINY, row_scales
from llmc.compiler.ops.rules import Array

KEYS = 64  # of one block
WEIGHT = 255  # the largest quantised weight
LOG2_E = 1.44269504088896341
LOWEST = -(2**30)  # below every score
# 2**r, highest power first, |r| <= 1/2: minimax in the relative error, 1.0e-4, with a last term of exactly 1
POWER = (5.50091010e-2, 2.42210984e-1, 6.93282902e-1, 1.0)
FLOOR = -127.0  # of exponents
_ROWS = 512  # of queries, whose scores with a block of keys a cache holds
ROUND = 1.5 * 2.0**23  # has an ulp of 1: what is added to it is rounded to an integer, half to even


def supported(head_dim: int) -> bool:
    """Whether there are kernels for heads of so many features."""
    return head_dim % 16 == 0 and head_dim <= 128


def int8_attention(q: Array, k: Array, v: Array, keys: Array, scale: float) -> Array:
    """Attention of f32 `[batch, heads, s, d]` with k, v `[batch, heads, t, d]`, to the last bit as the kernels do it.

    Args:
        keys: bool `[batch, t]`, which keys may be attended. A query without any gives zeros.
        scale: factor on the products, positive.
    """
    if q.shape[1] > 1 and math.prod(q.shape[:3]) > _ROWS:  # a head at a time: its numbers stay in a cache
        heads = [slice(i, i + 1) for i in range(q.shape[1])]
        return np.concatenate([int8_attention(q[:, h], k[:, h], v[:, h], keys, scale) for h in heads], 1)
    k_scale, v_scale = (_column_scales(x, keys) for x in (k, v))
    q = q * k_scale
    q_scale = row_scales(q)
    queries, levels, values = _levels(q, q_scale), _levels(k, k_scale), _levels(v, v_scale)
    scores = queries @ levels.swapaxes(-1, -2)
    mixed, total = _soften(scores, values, keys[:, None, None, :], q_scale * np.float32(scale * LOG2_E))
    factor = np.where(total > 0, np.float32(1) / total, np.float32(0))
    factor = np.where(q_scale < np.inf, factor, np.float32(np.nan))
    return np.asarray(mixed * factor * v_scale)


def _column_scales(x: Array, keys: Array) -> Array:
    """f32 `[batch, heads, 1, d]`: largest magnitude / 127 of each feature, 1 where there is none."""
    largest = np.where(keys[:, None, :, None], np.abs(x), np.float32(0)).max(2, keepdims=True)
    scales = largest / np.float32(LEVELS)
    return np.where(scales < TINY, np.float32(1), scales).astype(np.float32)


def _levels(x: Array, scale: Array) -> Array:
    """x / scale as whole numbers of -127..127 in float64; 0 where that is not finite: its scale is not either."""
    scale, one = np.broadcast_to(scale, x.shape), np.float32(1)
    return np.nan_to_num(_whole(x, one / scale), posinf=0, neginf=0).astype(np.float64)


def _whole(x: Array, factor: Array | np.float32) -> Array:
    """x * factor rounded half to even, below 2^22 in magnitude."""
    return np.asarray(fma32(x, factor, np.float32(ROUND)) - np.float32(ROUND))


def _soften(scores: Array, values: Array, keys: Array, factor: Array) -> tuple[Array, Array]:
    """o and l of the module's description, block after block of keys."""
    shape = scores.shape[:-1]
    top = np.full((*shape, 1), LOWEST, np.float64)
    total, mixed = np.zeros((*shape, 1), np.float32), np.zeros((*shape, values.shape[-1]), np.float32)
    for block in range(0, scores.shape[-1], KEYS):
        here = slice(block, block + KEYS)
        seen = np.where(keys[..., here], scores[..., here], LOWEST)
        before, top = top, np.maximum(top, seen.max(-1, keepdims=True))
        most = top.astype(np.float32) * -factor
        weights = power(fma32(seen, np.broadcast_to(factor, seen.shape), np.broadcast_to(most, seen.shape)))
        weights = np.where(keys[..., here], _whole(weights, np.float32(WEIGHT)), np.float32(0))
        fade = power((before - top).astype(np.float32) * factor)
        total = fma32(total, fade, weights.sum(-1, keepdims=True, dtype=np.float64))
        mixed = fma32(mixed, fade, weights.astype(np.float64) @ values[:, :, here])
    return mixed, total


def power(x: Array) -> Array:
    """2**x for x <= 0 in float32, relative error 1e-4; next to nothing below -127 and for NaN."""
    x = np.fmax(x.astype(np.float32), np.float32(FLOOR))
    shifted = x + np.float32(ROUND)
    r = x - (shifted - np.float32(ROUND))
    value = np.full_like(r, POWER[0])
    for coefficient in POWER[1:]:
        value = fma32(value, r, np.float32(coefficient))
    bits = value.view(np.uint32) + (shifted.view(np.uint32) << np.uint32(23))
    return np.asarray(bits.view(np.float32))
