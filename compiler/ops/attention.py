"""Attention. References compute in float64 and round once.

A query with every key masked out (all scores -inf) gives zeros, where a plain softmax would give NaN. `evenly` says
that it takes all values in equal parts, as where masks add float32's minimum: that swallows the scores.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmc.compiler.graph import Node, TensorType, make
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.int8_attention import int8_attention, supported
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rules import (
    Array,
    same_dim,
    want_broadcastable,
    want_count,
    want_dtype,
    want_flags,
    want_int,
    want_number,
    want_rank,
    want_shape,
)
from llmc.compiler.ops.stored_heads import STORED, check_stored, floats_of
from llmc.compiler.ops.traits import Packing, Sequences, all_inputs
from llmc.errors import LlmcError

MOST_SCORES = 1 << 26  # held at a time, of 8 bytes each


def attention64(
    q: Array, k: Array, v: Array, mask: Array | None, scale: float, causal: bool, window: int | None = None
) -> Array:
    """softmax(q k^T * scale + mask) v in float64.

    Args:
        q, k, v: `[b, h, s, d]`, `[b, h2, t, d]`, `[b, h2, t, e]`, h a multiple of h2.
        mask: bool (True attends) or float (added), broadcastable to `[b, h, s, t]`.
        scale: factor on the products.
        causal: the last query sees all keys, each before it one less.
        window: of the keys that it sees, a query attends to the last so many; None: to all.
    """
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
    if q.shape[0] * q.shape[1] > 1 and math.prod((*q.shape[:3], k.shape[2])) > MOST_SCORES:
        axis = 0 if q.shape[0] > 1 else 1
        return np.concatenate(
            [attention64(*part, scale, causal, window) for part in _halves(q, k, v, mask, axis)], axis
        )
    scores = q @ np.swapaxes(k, -1, -2) * scale
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + mask
    if causal:
        scores = np.where(seen(q.shape[2], k.shape[2], window), scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)  # there may be no key at all
    weights = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
    total = weights.sum(-1, keepdims=True)
    return np.asarray(weights / np.where(total == 0, 1.0, total) @ v)


def seen(queries: int, keys: int, window: int | None) -> Array:
    """bool [queries, keys]: which keys a query attends to where attention is causal."""
    past = keys - queries
    upper: Array = np.tri(queries, keys, past, dtype=np.bool_)
    return upper if window is None else upper & ~np.tri(queries, keys, past - window, dtype=np.bool_)


def _halves(
    q: Array, k: Array, v: Array, mask: Array | None, axis: int
) -> list[tuple[Array, Array, Array, Array | None]]:
    """The operands cut in two along rows or heads, where nothing depends on the other half."""
    cut = q.shape[axis] // 2
    parts = [slice(0, cut), slice(cut, None)]
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        mask = mask if mask.shape[axis] > 1 else np.repeat(mask, q.shape[axis], axis)
    places = [(slice(None),) * axis + (part,) for part in parts]
    return [(q[at], k[at], v[at], None if mask is None else mask[at]) for at in places]


def _attention_reference(
    q: Array, k: Array, v: Array, *mask: Array, scale: float, causal: bool, window: int | None, has_mask: bool
) -> Array:
    return attention64(q, k, v, mask[0] if has_mask else None, scale, causal, window).astype(q.dtype)


@op(
    "attention",
    _attention_reference,
    traits={"accuracy": "close", "first_axis": all_inputs},
    scale=REQUIRED,
    causal=False,
    window=None,
    has_mask=False,
)
def _attention(*inputs: TensorType, scale: float, causal: bool, window: Any, has_mask: bool) -> TensorType:
    want_flags(causal=causal, has_mask=has_mask)
    want_window(window, causal)
    want_number(scale, "scale")
    want_count(inputs, 3 + has_mask)
    q, k, v = inputs[:3]
    for name, x in (("q", q), ("k", k), ("v", v)):
        want_dtype(x, F32, name)
        want_rank(x, 4, what=name)
    batch, heads, queries, width = q.shape
    groups, keys = k.shape[1], k.shape[2]
    want_shape(k, (batch, groups, keys, width), "k")
    want_shape(v, (batch, groups, keys, v.shape[3]), "v")
    if not isinstance(heads, int) or not isinstance(groups, int) or groups < 1 or heads % groups:
        raise LlmcError(f"the number of heads, {heads}, is not a multiple of k's, {groups}")
    if has_mask:
        want_dtype(inputs[3], {"bool", "f32"}, "mask")
        want_broadcastable(inputs[3], (batch, heads, queries, keys), "mask")
    return TensorType("f32", (batch, heads, queries, v.shape[3]))


# --- made by fusion only


def _split(x: Array, offset: int, heads: int, head_dim: int) -> Array:
    """`[b, s, *]` -> `[b, heads, s, head_dim]`."""
    columns = x[:, :, offset : offset + heads * head_dim]
    return columns.reshape(*x.shape[:2], heads, head_dim).transpose(0, 2, 1, 3)


def mha_reference(
    *inputs: Array,
    heads: int,
    head_dim: int,
    scale: float,
    causal: bool,
    window: int | None,
    offsets: tuple[int, int, int],
    has_keys: bool,
    has_bias: bool,
    kv_heads: int | None,
    int8: bool,
    evenly: bool,
) -> Array:
    """`mha` in float64: every position attends, masked ones are left out by a score of -inf. On int8 if asked for."""
    counts = (heads, kv_heads or heads, kv_heads or heads)
    read = (floats_of(x, head_dim) for x in inputs[:3])
    q, k, v = (_split(x, o, n, head_dim) for x, o, n in zip(read, offsets, counts, strict=True))
    keys = inputs[3] if has_keys else np.ones((k.shape[0], k.shape[2]), np.bool_)
    bare = np.asarray(~keys.any(1) & evenly)[:, None]  # scores of 0 for all keys
    keys, q = keys | bare, np.where(bare[..., None, None], np.float32(0), q)
    if int8:
        k, v = (np.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))
        return _joined(int8_attention(q, k, v, keys, scale))
    mask = inputs[-1].astype(np.float64) if has_bias else np.zeros((1, 1, 1, 1))
    if has_keys:
        mask = np.where(bare[..., None, None], 0, mask)
        mask = np.where(keys[:, None, None, :], mask, -np.inf)
    return _joined(attention64(q, k, v, mask, scale, causal, window))


def _joined(x: Array) -> Array:
    """`[b, heads, s, head_dim]` -> f32 `[b, s, heads * head_dim]`."""
    x = x.transpose(0, 2, 1, 3)
    return x.reshape(*x.shape[:2], -1).astype(np.float32)


def _refusal(node: Node) -> str:
    return "it is causal" if node.attributes["causal"] else ""


def _keys(node: Node) -> int | None:
    return 3 if node.attributes["has_keys"] else None


def _packed(node: Node, packing: Packing) -> Node:
    """mha(q, k, v, keys, bias?) -> ragged_mha(q, k, v, keys, index, offsets, bias?)"""
    rows = map(packing.rows, node.inputs[:4])
    inputs = (*rows, packing.index, packing.offsets, *map(packing.padded, node.inputs[4:]))
    names = ("heads", "head_dim", "scale", "offsets", "has_bias", "kv_heads", "evenly")
    kept = {name: node.attributes[name] for name in names}
    return make("ragged_mha", inputs, node.source, seq=packing.seq, **kept)


@op(
    "mha",
    mha_reference,
    traits={
        "accuracy": "close",
        "sequences": Sequences(range(4), _keys, _refusal, _packed),
        "first_axis": all_inputs,
    },
    heads=REQUIRED,
    head_dim=REQUIRED,
    scale=REQUIRED,
    causal=False,
    window=None,
    offsets=(0, 0, 0),
    has_keys=False,
    has_bias=False,
    kv_heads=None,
    int8=False,
    evenly=False,
)
def _mha(
    *inputs: TensorType,
    heads: int,
    head_dim: int,
    scale: float,
    causal: bool,
    window: Any,
    offsets: Any,
    has_keys: bool,
    has_bias: bool,
    kv_heads: Any,
    int8: bool,
    evenly: bool,
) -> TensorType:
    want_flags(causal=causal, has_keys=has_keys, has_bias=has_bias, int8=int8, evenly=evenly)
    want_window(window, causal)
    if evenly and (causal or not has_keys):
        raise LlmcError("evenly is for attention with keys that is not causal")
    if int8:
        want_integers(head_dim, scale, causal or has_bias)
    widths = head_widths(heads, head_dim, scale, kv_heads)
    want_count(inputs, 3 + has_keys + has_bias)
    q, k, v = inputs[:3]
    if k.dtype in STORED:
        check_stored((k, v), head_dim, kv_heads or heads, offsets, int8)
        k, v = (TensorType("f32", (*x.shape[:-1], widths[1])) for x in (k, v))
    check_projections((q, k, v), offsets, widths)
    if has_keys:
        want_dtype(inputs[3], {"bool"}, "keys")
        want_shape(inputs[3], k.shape[:2], "keys")
    if has_bias:
        want_dtype(inputs[-1], F32, "bias")
        want_rank(inputs[-1], 4, what="bias")
        want_broadcastable(inputs[-1], (q.shape[0], heads, q.shape[1], k.shape[1]), "bias")
    return TensorType("f32", (*q.shape[:2], heads * head_dim))


def head_widths(heads: int, head_dim: int, scale: float, kv_heads: Any) -> tuple[int, int, int]:
    """Columns of q, k and v whose heads lie side by side; k and v may have fewer heads, each read by several of q."""
    want_number(scale, "scale")
    want_int(heads, "heads", 1)
    want_int(head_dim, "head_dim", 1)
    groups = heads if kv_heads is None else want_int(kv_heads, "kv_heads", 1)
    if heads % groups:
        raise LlmcError(f"the number of heads, {heads}, is not a multiple of kv_heads, {groups}")
    return heads * head_dim, groups * head_dim, groups * head_dim


def want_window(window: Any, causal: bool) -> None:
    """A window of causal attention, or none."""
    if window is not None and want_int(window, "window", 1) and not causal:
        raise LlmcError("a window is for attention that is causal")


def want_integers(head_dim: Any, scale: float, more: bool) -> None:
    """Attention on int8: neither causal, where later keys would change a key's scale, nor with a bias."""
    if more or not supported(want_int(head_dim, "head_dim", 1)) or not scale > 0:
        raise LlmcError(
            "int8 is for attention that is not causal and has no bias, with a positive scale and heads of a multiple "
            "of 16 features up to 128"
        )


def check_projections(
    projections: tuple[TensorType, ...], offsets: Any, widths: tuple[int, int, int]
) -> None:
    """q, k and v are `[b, s, *]` with so many columns from their offset on; k and v are equally long."""
    if not isinstance(offsets, tuple) or len(offsets) != 3:
        raise LlmcError(f"offsets is {offsets!r}, not three integers")
    q, k, _ = projections
    for name, x, offset, width in zip("qkv", projections, offsets, widths, strict=True):
        want_dtype(x, F32, name)
        want_rank(x, 3, what=name)
        want_int(offset, "an offset", 0)
        want_shape(x, (q.shape[0], q.shape[1] if name == "q" else k.shape[1], x.shape[2]), name)
        if not isinstance(x.shape[2], int) or offset + width > x.shape[2]:
            raise LlmcError(f"{name} has no columns {offset} to {offset + width}")
    if not same_dim(q.shape[0], k.shape[0]):
        raise LlmcError("q and k have different batches")
