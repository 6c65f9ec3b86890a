"""Steps of kernels in float32, to the last bit: what is rounded to levels must not depend on who computed it.

A value in the middle between two levels goes to either by its last bit, and a level is a thousand times what that bit
was: of a model on int8 the answers agree only if every float step before each rounding does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops.elementwise import GELU_LIMIT, GELU_POLY
from llmc.compiler.ops.rules import Array

Number = Array | np.float32
LANES = 16  # partial sums of a row: column i goes to sum i mod 16


def makes_levels(graph: Graph) -> bool:
    """Whether a graph, or a body in it, rounds values to levels."""
    return any(map(makes_levels_of, graph.everywhere()))


def makes_levels_of(node: Node) -> bool:
    """Whether a node rounds values to levels."""
    return node.op in _TO_LEVELS or bool(node.attributes.get("int8"))


_TO_LEVELS = frozenset({"quantize", "quantize_rows", "channel_rows", "int16_rows", "int8_rows", "bf16_rows"})


@np.errstate(all="ignore")
def fma32(a: Number, b: Number, c: Number) -> Array:
    """a * b + c of f32 arrays or numbers rounded once, as a fused multiply-add does.

    The product of two f32 is exact in f64. Where its sum with c is not, f64 has rounded it, and f32 rounds again:
    that matters only if f64's number lies in the middle between two f32, or below their normal numbers. There the sum
    is rounded to odd before (Boldo and Melquiond 2008: innocuous before a second rounding to a format of at least two
    bits less).
    """
    a, b, c = (np.asarray(v, np.float32).astype(np.float64) for v in (a, b, c))
    total = np.array(a * b + c)
    size = total.view(np.int64) & _SIZE
    twice = np.flatnonzero((size & _REST == _MIDDLE) | (size - 1 < _NORMAL - 1))
    if twice.size:
        product, added = (np.broadcast_to(v, total.shape).reshape(-1)[twice] for v in (a * b, c))
        total.reshape(-1)[twice] = _to_odd(total.reshape(-1)[twice], product, added)
    return np.asarray(total.astype(np.float32))


# Of the bits of an f64: all but the sign; those behind an f32's; these where it is in the middle of two; 2^-126.
_SIZE, _REST, _MIDDLE, _NORMAL = (1 << 63) - 1, (1 << 29) - 1, 1 << 28, (1023 - 126) << 52


def _to_odd(total: Array, product: Array, added: Array) -> Array:
    """The f64 sum of two, one step on towards the exact one where its last bit is 0, by Knuth's exact error term."""
    back = total - product
    error = (product - (total - back)) + (added - back)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & np.isfinite(error) & (error != 0) & (bits & 1 == 0)
    bits[inexact] += np.where((error > 0) == (total > 0), 1, -1)[inexact]
    return total


@np.errstate(all="ignore")
def norm32(x: Array, weight: Array | None, bias: Array | None, eps: float, centre: bool = True) -> Array:
    """A norm of f32 `[..., n]` over the last axis, of what is `centre`d or not: two passes of 16 partial sums."""
    size = np.float32(x.shape[-1])
    if centre:
        x = x - _row_sum(x, lambda total, part: total + part)[..., None] / size
    variance = _row_sum(x, lambda total, part: fma32(part, part, total))[..., None] / size
    value = x * (np.float32(1) / np.sqrt(variance + np.float32(eps)))
    if bias is not None:
        return fma32(value, np.float32(1) if weight is None else weight, bias)
    return np.asarray(value if weight is None else value * weight)


def _row_sum(x: Array, step: Callable[[Array, Array], Array]) -> Array:
    """f32 `[..., n]` -> `[...]`: 16 sums of every 16th value in turn, joined as i with i + 8, + 4, + 2, + 1."""
    missing = -x.shape[-1] % LANES
    wide = np.concatenate([x, np.zeros((*x.shape[:-1], missing), np.float32)], -1) if missing else x
    total = np.zeros((*x.shape[:-1], LANES), np.float32)
    for at in range(0, wide.shape[-1], LANES):
        total = step(total, wide[..., at : at + LANES])
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        total = total[..., :lanes] + total[..., lanes:]
    return np.asarray(total[..., 0])


def gelu_poly32(x: Array) -> Array:
    """`gelu_poly` (`elementwise.py`) of f32: x/2 + x (t P(t**2)), t within the limit."""
    x = np.maximum(x, np.float32(-GELU_LIMIT))
    t = np.minimum(x, np.float32(GELU_LIMIT))
    square = t * t
    total: Array = np.full_like(t, GELU_POLY[0])
    for coefficient in GELU_POLY[1:]:
        total = fma32(total, square, np.float32(coefficient))
    return fma32(x, t * total, x * np.float32(0.5))
