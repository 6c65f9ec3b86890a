"""Attention on int8 (`ops/int8_attention.py`), its integers held in floats, which their sums fit.

Scores and weights are made for all blocks of keys side by side, each with the largest score up to its block; what the
weights mix is summed block after block. The bits are the kernels' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llmc.compiler.dims import Dim, ceil_div, dim
from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.ops.int8_attention import FLOOR, KEYS, LOG2_E, LOWEST, POWER, WEIGHT
from llmc.compiler.ops.quantise import LEVELS, TINY
from llmc.compiler.to_onnx.attention import head_rows, joined
from llmc.compiler.to_onnx.emitter import Emitter
from llmc.compiler.to_onnx.float_steps import fma, inverse, number, scan, whole


def int8_mha(e: Emitter, node: Node) -> Node:
    """As `mha` with `int8`."""
    return joined(_mixed(e, node), node.shape)


def _mixed(e: Emitter, node: Node) -> Node:
    """[b, heads, s, head_dim]"""
    q, k, v = _heads(node)
    keys, q = _without_bare(node, _keys(node), q)
    k_scale, v_scale = (_column_scale(x, keys) for x in (k, v))
    q = make("mul", (q, k_scale))
    q_scale = make("row_scale", (q,))
    queries, levels, values = (_levels(e, x, s) for x, s in ((q, q_scale), (k, k_scale), (v, v_scale)))
    scores = make("matmul", (queries, make("transpose", (levels,), perm=(0, 1, 3, 2))), node.source)
    factor = make("mul", (q_scale, number(node.attributes["scale"] * LOG2_E)))
    mixed, total = _soften(e, scores, values, keys, factor)
    share = make("mul", (mixed, inverse(e, make("maximum", (total, number(1))))))
    return make("mul", (share, v_scale))  # a row with a key has a 255, without one it has zeros


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
    return make("or", (keys, make("not", (some,)))), make("where", (some, q, number(0)))


def _column_scale(x: Node, keys: Node | None) -> Node:
    """f32 [b, heads, 1, d]: the largest magnitude / 127 of each feature among the keys, 1 where there is none."""
    size = make("abs", (x,))
    if keys is not None:
        column = make("reshape", (keys,), shape=(keys.shape[0], 1, keys.shape[3], 1))
        size = make("where", (column, size, number(0)))
    scale = make("div", (make("max", (size,), axes=(2,), keepdims=True), number(LEVELS)))
    return make("where", (make("lt", (scale, number(TINY))), number(1), scale))


def _levels(e: Emitter, x: Node, scale: Node) -> Node:
    """Whole numbers of -127..127 in f32."""
    near = whole(e, x, inverse(e, scale))
    return make("minimum", (make("maximum", (near, number(-LEVELS))), number(LEVELS)))


def _soften(e: Emitter, scores: Node, values: Node, keys: Node | None, factor: Node) -> tuple[Node, Node]:
    """o f32 [b, heads, s, head_dim] and l f32 [b, heads, s, 1] of `ops/int8_attention.py`, block after block."""
    blocks = ceil_div(scores.shape[3], KEYS)
    weights, fades = _weights(e, scores, keys, factor, blocks)
    parts = _blocks(values, 2, blocks, number(0))  # [b, heads, blocks, 64, d]
    if blocks == 1:
        values = make("reshape", (parts,), shape=(*parts.shape[:2], KEYS, parts.shape[4]))
        return make("matmul", (weights, values)), make("sum", (weights,), axes=(3,), keepdims=True)
    slices = (_first(weights, 3), _first(fades, 3), _first(parts, 2))
    mixed, total = scan(e, _nothing(scores, values), slices, partial(_block, e))
    return mixed, total


def _block(e: Emitter, carried: Sequence[Node], slices: Sequence[Node]) -> list[Node]:
    (mixed, total), (weights, fade, values) = carried, slices
    here = make("sum", (weights,), axes=(3,), keepdims=True)
    return [fma(e, mixed, fade, make("matmul", (weights, values))), fma(e, total, fade, here)]


def _nothing(scores: Node, values: Node) -> list[Node]:
    return [make("expand", (number(0),), shape=(*scores.shape[:3], size)) for size in (values.shape[3], 1)]


def _first(x: Node, axis: int) -> Node:
    """x with an axis in front."""
    others = [i for i in range(x.type.rank) if i != axis]
    return make("transpose", (x,), perm=(axis, *others))


def _blocks(x: Node, axis: int, blocks: Dim, fill: Node) -> Node:
    """[..., t, ...] -> [..., blocks, 64, ...], filled up."""
    beyond = dim(blocks * KEYS - x.shape[axis])
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    if beyond != 0:
        x = make("concat", (x, make("expand", (fill,), shape=(*before, beyond, *after))), axis=axis)
    return make("reshape", (x,), shape=(*before, blocks, KEYS, *after))


def _weights(e: Emitter, scores: Node, keys: Node | None, factor: Node, blocks: Dim) -> tuple[Node, Node]:
    """255 * 2^(factor * (score - largest so far)) rounded, and 2^(factor * (largest before - largest)).

    f32 [b, heads, s, blocks, 64] and [b, heads, s, blocks, 1], of one block without the axis of blocks.
    """
    lowest = number(LOWEST)
    seen = scores if keys is None else make("where", (keys, scores, lowest))
    apart = _blocks(seen, 3, blocks, lowest)
    top = _largest_so_far(make("max", (apart,), axes=(4,), keepdims=False), blocks)
    most = make("mul", (top, make("neg", (factor,))))
    wide = make("reshape", (factor,), shape=(*factor.shape, 1))
    exponent = fma(e, apart, wide, make("reshape", (most,), shape=(*most.shape, 1)))
    rounded = whole(e, _power(e, exponent), number(WEIGHT))
    weights = make("where", (make("gt", (apart, lowest)), rounded, number(0)))
    if blocks == 1:
        return make("reshape", (weights,), shape=(*scores.shape[:3], KEYS)), number(1)
    fades = _power(e, make("mul", (make("sub", (_before(top, blocks), top)), factor)))
    return weights, make("reshape", (fades,), shape=(*fades.shape, 1))


def _before(top: Node, blocks: Dim) -> Node:
    """Of each block the largest score before it."""
    none = make("expand", (number(LOWEST),), shape=(*top.shape[:3], 1))
    return make("concat", (none, make("slice", (top,), axis=3, start=0, stop=dim(blocks - 1))), axis=3)


def _largest_so_far(largest: Node, blocks: Dim) -> Node:
    """[b, heads, s, blocks], of each block the largest of those up to it."""
    if blocks == 1:
        return largest
    column = make("iota", (), length=blocks)
    pairs = make("le", (column, make("reshape", (column,), shape=(blocks, 1))))
    row = make("reshape", (largest,), shape=(*largest.shape[:-1], 1, blocks))
    return make("max", (make("where", (pairs, row, number(LOWEST))),), axes=(4,), keepdims=False)


def _power(e: Emitter, x: Node) -> Node:
    """2^x by the kernels' polynomial."""
    x = make("maximum", (x, number(FLOOR)))
    near = e.rounded(x)
    rest = make("sub", (x, near))
    total = number(POWER[0])
    for coefficient in POWER[1:]:
        total = fma(e, total, rest, number(coefficient))
    return make("mul", (total, make("pow", (number(2), near))))
