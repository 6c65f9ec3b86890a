"""Attention on int8 (`ops/int8_attention.py`), its integers held in floats, which their sums fit.

What the kernels do block after block of keys is done for all blocks side by side: the largest score up to each block,
and by what its weights fade until the last. So weights are rounded to the same whole numbers.
"""

from __future__ import annotations

import numpy as np

from llmc.compiler.dims import Dim, ceil_div, dim
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.int8_attention import FLOOR, KEYS, LOG2_E, LOWEST, POWER, WEIGHT
from llmc.compiler.ops.quantise import LEVELS, TINY
from llmc.compiler.to_onnx.attention import head_rows, joined
from llmc.compiler.to_onnx.emitter import Emitter


def int8_mha(e: Emitter, node: Node) -> Node:
    """As `mha` with `int8`."""
    return joined(_mixed(e, node), node.shape)


def _number(value: float) -> Node:
    return constant(np.float32(value))


def _mixed(e: Emitter, node: Node) -> Node:
    """[b, heads, s, head_dim]"""
    q, k, v = _heads(node)
    keys, q = _without_bare(node, _keys(node), q)
    k_scale, v_scale = (_column_scale(x, keys) for x in (k, v))
    q = make("mul", (q, k_scale))
    q_scale = make("row_scale", (q,))
    queries, levels, values = (_levels(x, s) for x, s in ((q, q_scale), (k, k_scale), (v, v_scale)))
    scores = make("matmul", (queries, make("transpose", (levels,), perm=(0, 1, 3, 2))), node.source)
    factor = make("mul", (q_scale, _number(node.attributes["scale"] * LOG2_E)))
    weights = _weights(e, scores, keys, factor)
    total = make("sum", (weights,), axes=(3,), keepdims=True)
    mixed = make("matmul", (weights, values), node.source)
    share = make("div", (mixed, make("maximum", (total, _number(1)))))  # a row with a key has a 255
    return make("mul", (share, v_scale))


def _heads(node: Node) -> tuple[Node, Node, Node]:
    a = node.attributes
    counts = (a["heads"], *[a["kv_heads"] or a["heads"]] * 2)
    parts = zip(node.inputs[:3], a["offsets"], counts, strict=True)
    q, k, v = (head_rows(x, offset, count, a["head_dim"]) for x, offset, count in parts)
    return q, _repeated(k, a["heads"]), _repeated(v, a["heads"])


def _keys(node: Node) -> Node | None:
    """bool [b, 1, 1, t], None where all keys count."""
    if not node.attributes["has_keys"]:
        return None
    batch, length = node.inputs[3].shape
    return make("reshape", (node.inputs[3],), shape=(batch, 1, 1, length))


def _repeated(x: Node, heads: int) -> Node:
    """[b, groups, t, d] -> [b, heads, t, d]"""
    batch, groups, length, width = x.shape
    if groups == heads:
        return x
    apart = make("reshape", (x,), shape=(batch, groups, 1, length, width))
    wide = make("expand", (apart,), shape=(batch, groups, heads // groups, length, width))
    return make("reshape", (wide,), shape=(batch, heads, length, width))


def _without_bare(node: Node, keys: Node | None, q: Node) -> tuple[Node | None, Node]:
    """Where `evenly` rows without keys take all of them, by scores of 0."""
    if keys is None or not node.attributes["evenly"]:
        return keys, q
    some = make("any", (keys,), axes=(3,), keepdims=True)
    return make("or", (keys, make("not", (some,)))), make("where", (some, q, _number(0)))


def _column_scale(x: Node, keys: Node | None) -> Node:
    """f32 [b, heads, 1, d]: the largest magnitude / 127 of each feature among the keys, 1 where there is none."""
    size = make("abs", (x,))
    if keys is not None:
        column = make("reshape", (keys,), shape=(keys.shape[0], 1, keys.shape[3], 1))
        size = make("where", (column, size, _number(0)))
    scale = make("div", (make("max", (size,), axes=(2,), keepdims=True), _number(LEVELS)))
    return make("where", (make("lt", (scale, _number(TINY))), _number(1), scale))


def _levels(x: Node, scale: Node) -> Node:
    """Whole numbers of -127..127 in f32."""
    return make("cast", (make("quantize", (x, scale)),), dtype="f32")


def _weights(e: Emitter, scores: Node, keys: Node | None, factor: Node) -> Node:
    """f32 [b, heads, s, t]: 255 * 2^(factor * (score - largest)), rounded below the largest up to the key's block."""
    length = scores.shape[3]
    blocks = ceil_div(length, KEYS)
    lowest = _number(LOWEST)
    seen = scores if keys is None else make("where", (keys, scores, lowest))
    apart = _apart(seen, blocks, lowest)
    top = _largest_so_far(make("max", (apart,), axes=(4,), keepdims=False), blocks)
    wide = make("reshape", (factor,), shape=(*factor.shape, 1))
    below = make("sub", (apart, make("reshape", (top,), shape=(*top.shape, 1))))
    rounded = e.rounded(make("mul", (_power(e, make("mul", (below, wide))), _number(WEIGHT))))
    faded = make("mul", (rounded, _fading(e, top, factor, blocks)))
    flat = make("reshape", (faded,), shape=(*scores.shape[:3], dim(blocks * KEYS)))
    weights = make("slice", (flat,), axis=3, start=0, stop=length)
    return weights if keys is None else make("where", (keys, weights, _number(0)))


def _apart(seen: Node, blocks: Dim, lowest: Node) -> Node:
    """[b, heads, s, t] -> [b, heads, s, blocks, 64], filled up with what is below every score."""
    beyond = dim(blocks * KEYS - seen.shape[3])
    if beyond != 0:
        seen = make("concat", (seen, make("expand", (lowest,), shape=(*seen.shape[:3], beyond))), axis=3)
    return make("reshape", (seen,), shape=(*seen.shape[:3], blocks, KEYS))


def _pairs(blocks: Dim, relation: str) -> Node:
    """bool [blocks, blocks]: whether column j relates so to row i."""
    column = make("iota", (), length=blocks)
    return make(relation, (column, make("reshape", (column,), shape=(blocks, 1))))


def _spread(x: Node, pairs: Node, other: float) -> Node:
    """[..., blocks] -> [..., blocks, blocks]: in each row the values that it relates to."""
    row = make("reshape", (x,), shape=(*x.shape[:-1], 1, x.shape[-1]))
    return make("where", (pairs, row, _number(other)))


def _largest_so_far(largest: Node, blocks: Dim) -> Node:
    """[b, heads, s, blocks], of each block the largest of those up to it."""
    if blocks == 1:
        return largest
    return make("max", (_spread(largest, _pairs(blocks, "le"), LOWEST),), axes=(4,), keepdims=False)


def _fading(e: Emitter, top: Node, factor: Node, blocks: Dim) -> Node:
    """[b, heads, s, blocks, 1]: by what the weights of a block are smaller at the end."""
    if blocks == 1:
        return _number(1)
    first = make("slice", (top,), axis=3, start=0, stop=1)
    before = make("concat", (first, make("slice", (top,), axis=3, start=0, stop=dim(blocks - 1))), axis=3)
    fades = _power(e, make("mul", (make("sub", (before, top)), factor)))
    left = make("prod", (_spread(fades, _pairs(blocks, "gt"), 1),), axes=(4,), keepdims=False)
    return make("reshape", (left,), shape=(*left.shape, 1))


def _power(e: Emitter, x: Node) -> Node:
    """2^x by the kernels' polynomial."""
    x = make("maximum", (x, _number(FLOOR)))
    whole = e.rounded(x)
    rest = make("sub", (x, whole))
    total = _number(POWER[0])
    for coefficient in POWER[1:]:
        total = make("add", (make("mul", (total, rest)), _number(coefficient)))
    return make("mul", (total, make("pow", (_number(2), whole))))
