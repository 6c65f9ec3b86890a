"""Attention on int8 (`ops/int8_attention.py`), its integers held in floats, which their sums fit.

The softmax's weights are whole numbers of 0..255 below the largest score of a row; kernels go by blocks of keys, and
round those of a block below the largest score so far.
"""

from __future__ import annotations

import numpy as np

from llmc.compiler.graph import Node
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.int8_attention import LOWEST, WEIGHT
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
    factor = make("mul", (q_scale, _number(node.attributes["scale"])))
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
    """round(255 * exp(factor * (score - largest))), 0 where there is no key."""
    seen = scores if keys is None else make("where", (keys, scores, _number(LOWEST)))
    below = make("sub", (seen, make("max", (seen,), axes=(3,), keepdims=True)))
    power = make("exp", (make("mul", (below, factor)),))
    rounded = e.rounded(make("mul", (power, _number(WEIGHT))))
    return rounded if keys is None else make("where", (keys, rounded, _number(0)))
