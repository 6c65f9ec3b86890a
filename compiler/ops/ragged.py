"""Batches without their padding: the rows of real tokens side by side, and the way there and back.

A mask `[batch, seq]` says which places hold tokens. Kept are those where it is not 0, the first of every row
whatever the mask says, as models pool it, and all of a row without tokens: its attention may be even. The number
kept is a dim that the data decides, `tokens`: it is counted from the mask, an input of the graph, before anything
else runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import Dim, dim, evaluate
from llmc.compiler.graph import TensorType
from llmc.compiler.ops.attention import (
    check_projections,
    head_widths,
    mha_reference,
    want_integers,
)
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.rules import (
    Array,
    want_broadcastable,
    want_count,
    want_dim,
    want_dtype,
    want_flags,
    want_rank,
    want_shape,
)
from llmc.errors import LlmcError

MASKS = frozenset({"bool", "i8", "u8", "i32", "i64"})


def kept(mask: Array) -> Array:
    """bool `[batch, seq]`: which places of a mask are kept."""
    places = mask != 0
    places |= ~places.any(1, keepdims=True)
    places[:, :1] = True
    return np.asarray(places)


def _want_mask(mask: TensorType) -> None:
    want_dtype(mask, MASKS, "the mask")
    want_rank(mask, 2, what="the mask")


def _index_reference(mask: Array, tokens: Dim) -> Array:
    return np.flatnonzero(kept(mask)).astype(np.int64)


@op("pack_index", _index_reference, traits={"counts": "tokens"}, tokens=REQUIRED)
def _pack_index(mask: TensorType, tokens: Dim) -> TensorType:
    _want_mask(mask)
    if not isinstance(want_dim(tokens, "tokens"), sympy.Symbol):
        raise LlmcError("tokens is not the name of a dim")
    return TensorType("i64", (tokens,))


@op("pack_offsets", lambda mask: np.concatenate([np.zeros(1, np.int64), np.cumsum(kept(mask).sum(1))]))
def _pack_offsets(mask: TensorType) -> TensorType:
    _want_mask(mask)
    return TensorType("i64", (mask.shape[0] + 1,))


def _places_reference(mask: Array) -> Array:
    ranks = np.cumsum(kept(mask).ravel()).reshape(mask.shape) - 1
    return np.where(mask != 0, ranks, -1).astype(np.int64)


@op("pack_places", _places_reference)
def _pack_places(mask: TensorType) -> TensorType:
    _want_mask(mask)
    return TensorType("i64", mask.shape)


def _unpack_reference(x: Array, places: Array) -> Array:
    rows = np.zeros((*places.shape, *x.shape[1:]), x.dtype)
    rows[places >= 0] = x[places[places >= 0]]
    return rows


@op("unpack_rows", _unpack_reference)
def _unpack_rows(x: TensorType, places: TensorType) -> TensorType:
    want_dtype(places, {"i64"}, "the places")
    want_rank(places, 2, what="the places")
    if not x.rank:
        raise LlmcError("the input is a scalar")
    return TensorType(x.dtype, (*places.shape, *x.shape[1:]))


def _ragged_mha_reference(
    q: Array,
    k: Array,
    v: Array,
    keys: Array,
    index: Array,
    starts: Array,
    *bias: Array,
    seq: Dim,
    sizes: Any,
    **attributes: Any,
) -> Array:
    """As `mha` computes it, on rows put back in their places."""
    shape = (len(starts) - 1, evaluate(seq, sizes))

    def spread(x: Array) -> Array:
        rows = np.zeros((shape[0] * shape[1], *x.shape[1:]), x.dtype)
        rows[index] = x
        return rows.reshape(*shape, *x.shape[1:])

    inputs = (*map(spread, (q, k, v, keys)), *bias)
    whole = mha_reference(*inputs, causal=False, window=None, has_keys=True, **attributes)
    return np.asarray(whole.reshape(-1, whole.shape[-1])[index])


@op(
    "ragged_mha",
    _ragged_mha_reference,
    traits={"accuracy": "close", "symbolic": True},
    heads=REQUIRED,
    head_dim=REQUIRED,
    scale=REQUIRED,
    seq=REQUIRED,
    offsets=(0, 0, 0),
    has_bias=False,
    kv_heads=None,
    int8=False,
    evenly=False,
)
def _ragged_mha(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    keys: TensorType,
    index: TensorType,
    starts: TensorType,
    *bias: TensorType,
    heads: int,
    head_dim: int,
    scale: float,
    seq: Dim,
    offsets: Any,
    has_bias: bool,
    kv_heads: Any,
    int8: bool,
    evenly: bool,
) -> TensorType:
    want_flags(has_bias=has_bias, int8=int8, evenly=evenly)
    if int8:
        want_integers(head_dim, scale, has_bias)
    want_count(bias, int(has_bias))
    widths = head_widths(heads, head_dim, scale, kv_heads)
    want_dim(seq, "seq")
    for name, x in (("q", q), ("k", k), ("v", v)):
        want_rank(x, 2, what=name)
    rows = tuple(TensorType(x.dtype, (1, *x.shape)) for x in (q, k, v))
    check_projections(rows, offsets, widths)
    for name, x, dtype, rank in (("keys", keys, "bool", 1), ("index", index, "i64", 1)):
        want_dtype(x, {dtype}, name)
        want_rank(x, rank, what=name)
        want_shape(x, q.shape[:1], name)
    want_shape(k, (q.shape[0], k.shape[1]), "k")
    want_dtype(starts, {"i64"}, "the offsets")
    want_rank(starts, 1, what="the offsets")
    if has_bias:
        want_dtype(bias[0], {"f32"}, "bias")
        want_rank(bias[0], 4, what="bias")
        want_broadcastable(bias[0], (dim(starts.shape[0] - 1), heads, seq, seq), "bias")
    return TensorType("f32", (q.shape[0], heads * head_dim))
