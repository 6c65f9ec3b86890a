"""Fusion of attention: explicit products and softmax into `attention`, split heads into `mha`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llmc.compiler.graph import Node
from llmc.compiler.ops import constant, make
from llmc.compiler.rewrite import Decline
from llmc.passes.match import reshaped, scalar, without_ones

_NEVER = -1e30  # a score this low has weight exp(-1e30) = 0


@dataclass(frozen=True)
class Scores:
    """`q @ transpose(kt) * scale + sum of masks`, four-dimensional."""

    q: Node
    kt: Node
    scale: float
    masks: tuple[Node, ...]


def attention_from_softmax(node: Node) -> Node | Decline | None:
    """softmax(q @ k^T * scale + mask) @ v -> attention(q, k, v, mask)"""
    match node:
        case Node("matmul", (probabilities, v)):
            softmax = _through_views(probabilities)
        case _:
            return None
    if softmax.op != "softmax" or softmax.type.rank != 4 or softmax.attributes["axis"] not in (-1, 3):
        return None
    b, h, s, t = softmax.shape
    if node.type.rank not in (3, 4) or probabilities.shape[-2:] != (s, t):
        return None
    scores = _scores(softmax.inputs[0])
    if scores is None:
        return Decline("the softmax is not over a product of queries and keys")
    d, e = scores.q.shape[-1], v.shape[-1]
    mask = _sum_of(scores.masks, node)
    inputs = [reshaped(scores.q, (b, h, s, d)), _keys(scores.kt, (b, h, t, d)), reshaped(v, (b, h, t, e))]
    fused = make(
        "attention",
        inputs + ([mask] if mask else []),
        softmax.source,
        scale=scores.scale,
        has_mask=mask is not None,
    )
    return reshaped(fused, node.shape)


def _through_views(node: Node) -> Node:
    while node.op == "reshape":
        node = node.inputs[0]
    return node


def _keys(kt: Node, shape: tuple[object, ...]) -> Node:
    swapped = (*range(kt.type.rank - 2), kt.type.rank - 1, kt.type.rank - 2)
    return reshaped(make("transpose", (kt,), kt.source, perm=swapped), shape)


def _scores(node: Node) -> Scores | None:
    """Peel masks and factors off `node` down to the product."""
    masks: list[Node] = []
    while True:
        match node:
            case Node("add", (a, b)):
                node, mask = (a, b) if _is_product(a) else (b, a)
                masks.append(mask)
            case Node("where", (c, a, low)) if scalar(low) is not None and scalar(low) <= _NEVER:
                zero = constant(np.float32(0), source=node.source)
                masks.append(make("where", (c, zero, low), node.source))
                node = a
            case Node("where", (c, low, a)) if scalar(low) is not None and scalar(low) <= _NEVER:
                zero = constant(np.float32(0), source=node.source)
                masks.append(make("where", (c, low, zero), node.source))
                node = a
            case _:
                return _scaled_product(node, tuple(masks))


def _is_product(node: Node) -> bool:
    """Whether a product of queries and keys lies below masks, factors and views."""
    while node.op in ("reshape", "mul", "div", "add", "where"):
        node = node.inputs[1] if node.op == "where" else node.inputs[0]
    return node.op == "matmul"


def _scaled_product(node: Node, masks: tuple[Node, ...]) -> Scores | None:
    shape, (node, scale) = node.shape, _unscaled(node)
    node, outer = _unscaled(_through_views(node))
    match node:
        case Node("matmul", (q, kt)) if node.type.rank in (3, 4) and node.shape[-2:] == shape[-2:]:
            (q, of_q), (kt, of_k) = _unscaled(q), _unscaled(kt)
            if len(shape) == 4 and q.shape[:-2] == kt.shape[:-2]:
                return Scores(q, kt, scale * outer * of_q * of_k, masks)


def _unscaled(node: Node) -> tuple[Node, float]:
    """`x, c` of `x * c` or `x / (1/c)` with a constant factor."""
    factor = 1.0
    while True:
        match node:
            case Node("mul", (x, c)) if scalar(c) is not None and x.type == node.type:
                node, factor = x, factor * float(scalar(c))
            case Node("mul", (c, x)) if scalar(c) is not None and x.type == node.type:
                node, factor = x, factor * float(scalar(c))
            case Node("div", (x, c)) if scalar(c) is not None and x.type == node.type:
                node, factor = x, factor / float(scalar(c))
            case _:
                return node, factor


def _sum_of(masks: tuple[Node, ...], node: Node) -> Node | None:
    """The masks added up, padded to rank 4."""
    total: Node | None = None
    for mask in reversed(masks):
        wide = reshaped(mask, (1,) * (4 - mask.type.rank) + mask.shape)
        total = wide if total is None else make("add", (total, wide), node.source)
    return total


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
    b, h, s, e = core.shape
    if node.shape != (b, s, h * e):
        return None
    parts = [_split_heads(i) for i in core.inputs[:3]]
    if any(p is None for p in parts):
        return Decline("a query, key or value is not split from [batch, seq, width]")
    if not all(i.shape[1] == h and i.shape[3] == e for i in core.inputs[:3]):
        return Decline("queries, keys and values have different heads")
    masks = _masks(core)
    if isinstance(masks, Decline):
        return masks
    keys, bias = masks
    columns = [p for p in parts if p is not None]
    extras = [m for m in (keys, bias) if m is not None]
    return make(
        "mha",
        (*(x for x, _ in columns), *extras),
        core.source,
        heads=h,
        head_dim=e,
        scale=core.attributes["scale"],
        causal=core.attributes["causal"],
        offsets=tuple(offset for _, offset in columns),
        has_keys=keys is not None,
        has_bias=bias is not None,
    )


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


Masks = tuple[Node | None, Node | None]


def _masks(core: Node) -> Masks | Decline:
    """The mask of an attention as (keys, bias)."""
    if not core.attributes["has_mask"]:
        return None, None
    mask, batch, length = core.inputs[3], core.shape[0], core.inputs[1].shape[2]
    mask = reshaped(mask, (1,) * (4 - mask.type.rank) + mask.shape)
    if mask.dtype == "bool":
        keys = _as_keys(mask, batch, length)
        return (keys, None) if keys else Decline("the mask is boolean and differs between queries or heads")
    return _split_bias(mask, batch, length)


def _as_keys(mask: Node, batch: object, length: object) -> Node | None:
    """A bool mask `[1|b, 1, 1, t]` as `[b, t]`."""
    if mask.shape[1:] != (1, 1, length) or mask.shape[0] not in (1, batch):
        return None
    flat = reshaped(mask, (mask.shape[0], length))
    if flat.shape == (batch, length):
        return flat
    return make("expand", (flat,), mask.source, shape=(batch, length))


def _split_bias(mask: Node, batch: object, length: object) -> Masks:
    """Addends that are 0 or very low, and the same for all queries and heads, become keys; the rest is bias.

    Where at least one key is attended to, a score lowered so far has weight 0 either way.
    """
    keys: Node | None = None
    bias: Node | None = None
    for term in _terms(mask):
        flags = _as_flags(term)
        found = _as_keys(flags, batch, length) if flags is not None else None
        if found is None:
            bias = term if bias is None else make("add", (bias, term), mask.source)
        else:
            keys = found if keys is None else make("and", (keys, found), mask.source)
    return keys, None if bias is None else reshaped(bias, (1,) * (4 - bias.type.rank) + bias.shape)


def _terms(node: Node) -> list[Node]:
    if node.op == "add":
        return [*_terms(node.inputs[0]), *_terms(node.inputs[1])]
    return [node]


def _as_flags(term: Node) -> Node | None:
    """True where the term is 0, if everywhere else it is very low."""
    found = _two_valued(term)
    if found is not None and found.type.rank <= 4:
        return reshaped(found, (1,) * (4 - found.type.rank) + found.shape)


def _two_valued(term: Node) -> Node | None:
    match term:
        case Node("reshape", (x,)) if (inner := _two_valued(x)) is not None:
            same = without_ones(inner.shape) == without_ones(term.shape)
            return reshaped(inner, term.shape) if same else None
        case Node("where", (c, zero, low)) if _is(zero, 0) and _is_low(low):
            return c
        case Node("where", (c, low, zero)) if _is(zero, 0) and _is_low(low):
            return make("not", (c,), term.source)
        case Node("mul", (a, low)) if _is_low(low) and math.isfinite(scalar(low)):  # 0 * -inf is NaN
            return _zero_one(a, term)
        case Node("mul", (low, a)) if _is_low(low) and math.isfinite(scalar(low)):
            return _zero_one(a, term)


def _zero_one(node: Node, term: Node) -> Node | None:
    """True where `node` is 0, if it is 1 everywhere else."""
    match node:
        case Node("cast", (c,)) if c.dtype == "bool":
            return make("not", (c,), term.source)
        case Node("sub", (one, Node("cast", (m,)))) if _is(one, 1):
            return _ones(m, term)


def _ones(mask: Node, term: Node) -> Node | None:
    """True where an integer mask, declared by its input to be 0 or 1, is 1."""
    root = _through_views(mask)
    if root.op == "input" and (root.attributes["low"], root.attributes["high"]) == (0, 1):
        return make("cast", (mask,), term.source, dtype="bool")


def _is(node: Node, value: float) -> bool:
    return scalar(node) is not None and scalar(node) == value


def _is_low(node: Node) -> bool:
    return scalar(node) is not None and scalar(node) <= _NEVER


RULES = (attention_from_softmax, mask_broadcasts, mask_of_true, mha_from_attention)
