"""Fusion of attention: explicit products and softmax into `attention`, split heads into `mha`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llmc.compiler.graph import Node, Source
from llmc.compiler.ops import constant, make
from llmc.compiler.rewrite import Decline
from llmc.passes.fuse import rotary
from llmc.passes.fuse.masks import holds_low, is_low, keys_and_bias
from llmc.passes.match import is_scalar, reshaped, resized, scalar, through_views

Mask = Node | tuple[Node, Node]


@dataclass(frozen=True)
class Scores:
    """`q @ kt * scale`, masked.

    Args:
        q, kt: `[..., s, d]` and `[..., d, t]`, leading axes either `b, h` or `b*h`.
        scale: constant factor.
        masks: what is added to the product, `[b, h, s, t]` or broadcast to it, and flags with the low score where
            they are False; outermost first.
    """

    q: Node
    kt: Node
    scale: float
    masks: tuple[Mask, ...]


def attention_from_softmax(node: Node) -> Node | Decline | None:
    """softmax(q @ k^T * scale + mask) @ v -> attention(q, k, v, mask)

    `where(p != p, 0, p)` around the softmax, which exporters add for rows without keys, is what `attention` does.
    """
    match node:
        case Node("matmul", (probabilities, v)) if node.type.rank in (3, 4):
            softmax = through_views(_without_nan(through_views(probabilities)))
        case _:
            return None
    if softmax.op != "softmax" or softmax.type.rank != 4 or softmax.attributes["axis"] not in (-1, 3):
        return None
    b, h, s, t = softmax.shape
    if probabilities.shape[-2:] != (s, t) or probabilities.shape[:-2] != v.shape[:-2]:
        return Decline("queries and values have different heads")
    scores = _scores(softmax.inputs[0])
    if scores is None:
        return Decline("the softmax is not over a product of queries and keys")
    d, e = scores.q.shape[-1], v.shape[-1]
    mask = _mask_of(scores, node.source)
    qkv = (reshaped(scores.q, (b, h, s, d)), _keys(scores.kt, (b, h, t, d)), reshaped(v, (b, h, t, e)))
    inputs = qkv if mask is None else (*qkv, mask)
    fused = make("attention", inputs, softmax.source, scale=scores.scale, has_mask=mask is not None)
    return reshaped(fused, node.shape)


def _without_nan(node: Node) -> Node:
    """p of where(p != p, 0, p)"""
    match node:
        case Node("where", (Node("ne", (p, q)), zero, r)) if p is q and q is r and is_scalar(zero, 0):
            return p
    return node


def _keys(kt: Node, shape: tuple[object, ...]) -> Node:
    swapped = (*range(kt.type.rank - 2), kt.type.rank - 1, kt.type.rank - 2)
    return reshaped(make("transpose", (kt,), kt.source, perm=swapped), shape)


def _scores(node: Node) -> Scores | None:
    """Peel masks and factors off `node`, four-dimensional, down to the product."""
    whole = node
    masks: list[Mask] = []
    while True:
        match node:
            case Node("reshape", (x,)) if x.shape[-2:] == whole.shape[-2:]:
                node = x
            case Node("add", (a, b)):
                inner, mask = (a, b) if _is_product(a) else (b, a)
                masks.append(_as_4d(mask, node, whole))
                node = inner
            case Node("where", (c, a, low)) if is_low(low):
                masks.append((_as_4d(c, node, whole), low))
                node = a
            case Node("where", (c, low, a)) if is_low(low):
                masks.append((make("not", (_as_4d(c, node, whole),), node.source), low))
                node = a
            case _:
                return _product(node, tuple(masks))


def _as_4d(mask: Node, scores: Node, whole: Node) -> Node:
    """A mask of `scores` as one of `whole`, which is `scores` in four dimensions."""
    if scores.type.rank == 4:
        return reshaped(mask, (1,) * (4 - mask.type.rank) + mask.shape)
    return reshaped(resized(mask, scores), whole.shape)


def _is_product(node: Node) -> bool:
    """Whether a matrix product lies below masks, factors and views."""
    while node.op in ("reshape", "mul", "div", "add", "where"):
        values = node.inputs[1:] if node.op == "where" else node.inputs
        node = next((i for i in values if scalar(i) is None), values[0])
    return node.op == "matmul"


def _product(node: Node, masks: tuple[Mask, ...]) -> Scores | None:
    rows, (node, scale) = node.shape[-2:], _unscaled(node)
    match node:
        case Node("matmul", (q, kt)) if node.type.rank in (3, 4) and node.shape[-2:] == rows:
            (q, of_q), (kt, of_k) = _unscaled(q), _unscaled(kt)
            if q.shape[:-2] == kt.shape[:-2]:
                return Scores(q, kt, scale * of_q * of_k, masks)


def _unscaled(node: Node) -> tuple[Node, float]:
    """`x, c` of `x * c` or `x / (1/c)` with a constant factor; views in between are dropped."""
    factor = 1.0
    while True:
        match node:
            case Node("mul", (x, c)) if scalar(c) is not None and x.type == node.type:
                node, factor = x, factor * float(scalar(c))
            case Node("mul", (c, x)) if scalar(c) is not None and x.type == node.type:
                node, factor = x, factor * float(scalar(c))
            case Node("div", (x, c)) if scalar(c) is not None and x.type == node.type:
                node, factor = x, factor / float(scalar(c))
            case Node("reshape", (x,)) if x.shape[-2:] == node.shape[-2:] and _unscaled(x)[0] is not x:
                node = x
            case Node("reshape", (Node("matmul") as x,)) if x.shape[-2:] == node.shape[-2:]:
                node = x
            case _:
                return node, factor


def _mask_of(scores: Scores, source: Source) -> Node | None:
    """The masks as one float mask.

    Flags that differ between queries replace what they mask, rather than adding a low score to it: that is
    one operation less on the largest tensor, and rounds to the same. What is added to them comes after: a key
    lowered twice is below one lowered once.
    """
    total: Node | None = None
    for mask in reversed(scores.masks):
        if isinstance(mask, Node):
            total = mask if total is None else make("add", (total, mask), source)
        else:
            total = _flagged(total, *mask, source)
    return total


def _flagged(total: Node | None, flags: Node, low: Node, source: Source) -> Node:
    """`total` where flags are True, and a low score elsewhere."""
    twice = total is not None and holds_low(total) and math.isfinite(scalar(low))
    if total is not None and (twice or flags.shape[1:3] != (1, 1)):
        return make("where", (flags, total, low), source)
    term = make("where", (flags, constant(np.float32(0), source=source), low), source)
    return term if total is None else make("add", (total, term), source)


def mask_broadcasts(node: Node) -> Node | None:
    """attention(q, k, v, expand(mask)) -> attention(q, k, v, mask)"""
    match node:
        case Node("attention", (q, k, v, Node("expand", (mask,)))):
            wide = reshaped(mask, (1,) * (4 - mask.type.rank) + mask.shape)
            return make("attention", (q, k, v, wide), node.source, **node.attributes)


def mask_of_true(node: Node) -> Node | None:
    """attention with a mask of True, or of 0.0, everywhere -> attention without"""
    match node:
        case Node("attention", (q, k, v, mask)):
            value = scalar(mask)
            if value is not None and (bool(value) if mask.dtype == "bool" else value == 0):
                return make("attention", (q, k, v), node.source, **{**node.attributes, "has_mask": False})


def mha_from_attention(node: Node) -> Node | Decline | None:
    """merge_heads(attention(split_heads(x), split_heads(y), split_heads(z), mask)) -> mha(x, y, z, ...)"""
    match node:
        case Node("reshape", (Node("transpose", (Node("attention") as core,), {"perm": (0, 2, 1, 3)}),)):
            pass
        case _:
            return None
    h, e = core.shape[1], core.shape[3]
    if node.shape[-1] != h * e:
        return None
    parts = [_split_heads(i) for i in core.inputs[:3]]
    if (
        parts[0] is None and None not in parts[1:]
    ):  # as where heads are normed: rather move these than all keys and values
        parts[0] = _joined_heads(core.inputs[0])
    if any(p is None for p in parts):
        return Decline("a query, key or value is not split from [batch, seq, width]")
    groups = core.inputs[1].shape[1]
    if not all(i.shape[3] == e for i in core.inputs[:3]):
        return Decline("queries, keys and values have heads of different size")
    masks = keys_and_bias(core)
    if isinstance(masks, Decline):
        return masks
    keys, bias, evenly = masks
    columns = [p for p in parts if p is not None]
    extras = [m for m in (keys, bias) if m is not None]
    merged = make(
        "mha",
        (*(x for x, _ in columns), *extras),
        core.source,
        heads=h,
        head_dim=e,
        scale=core.attributes["scale"],
        causal=core.attributes["causal"],
        window=core.attributes["window"],
        offsets=tuple(offset for _, offset in columns),
        has_keys=keys is not None,
        has_bias=bias is not None,
        kv_heads=None if groups == h else groups,
        evenly=evenly and not core.attributes["causal"],
    )
    return reshaped(merged, node.shape)


def _split_heads(node: Node) -> tuple[Node, int] | None:
    """x and the first column, of transpose(reshape(x[:, :, offset:...], [b, s, h, d]))"""
    match node:
        case Node("transpose", (Node("reshape", (x,)) as split,), {"perm": (0, 2, 1, 3)}):
            b, s, h, d = split.shape
            if x.type.rank != 3 or x.shape != (b, s, h * d):
                x = reshaped(x, (b, s, h * d))
            match x:
                case Node("slice", (whole,), {"axis": 2, "start": int(start), "step": 1}):
                    return whole, start
            return x, 0
        case Node("transpose", (x,), {"perm": (0, 2, 1, 3)}):
            b, s, h, d = x.shape
            return reshaped(x, (b, s, h * d)), 0


def _joined_heads(node: Node) -> tuple[Node, int]:
    """`[b, h, s, d]` as `[b, s, h * d]`, moved."""
    b, h, s, d = node.shape
    moved = make("transpose", (node,), node.source, perm=(0, 2, 1, 3))
    return reshaped(moved, (b, s, h * d)), 0


def keep_grouped(node: Node) -> Node | None:
    """attention(q, repeated k, repeated v) -> attention(q, k, v): query heads share keys by themselves"""
    match node:
        case Node("attention", (q, k, v, *mask)):
            keys, values = _ungrouped(k), _ungrouped(v)
            if keys is not None and values is not None and keys.shape[1] == values.shape[1]:
                return make("attention", (q, keys, values, *mask), node.source, **node.attributes)


def _ungrouped(node: Node) -> Node | None:
    """x `[b, g, t, d]` of reshape(expand(x[:, :, None], [b, g, n, t, d]), [b, g*n, t, d])"""
    match node:
        case Node("reshape", (Node("expand", (x,)) as wide,)) if wide.type.rank == 5 and node.type.rank == 4:
            b, g, n, t, d = wide.shape
            if node.shape == (b, g * n, t, d) and x.shape == (b, g, 1, t, d):
                return reshaped(x, (b, g, t, d))


RULES = (
    attention_from_softmax,
    keep_grouped,
    mask_broadcasts,
    mask_of_true,
    *rotary.RULES,
    mha_from_attention,
)
