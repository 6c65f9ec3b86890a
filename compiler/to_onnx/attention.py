"""Attention in products and a softmax. Of fewer heads of keys the queries of a group lie in one matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant, make
from llmc.compiler.to_onnx.emitter import Emitter
from llmc.compiler.to_onnx.table import exports

LOWEST = float(np.finfo(np.float32).min)  # added to a score it swallows it


@exports("attention")
def _attention(e: Emitter, node: Node) -> Node:
    """softmax(q k^T scale + mask) v; a query that no key is left for gives zeros."""
    q, k, v, *mask = node.inputs
    batch, heads, queries, _ = q.shape
    groups, keys = k.shape[1], k.shape[2]
    rows = dim(heads // groups * queries)
    scores = make("matmul", (_shaped(q, (batch, groups, rows, q.shape[3])), _turned(k)), node.source)
    scores = _shaped(scores, (batch, heads, queries, keys))
    scores = make("mul", (scores, _number(node.attributes["scale"])), node.source)
    flags = _flags(node, mask)
    for flag in flags:
        scores = make("add", (scores, _added(flag, -math.inf)), node.source)
    for floats in (m for m in mask if m.dtype == "f32"):
        scores = make("add", (scores, floats), node.source)
    weights = make("softmax", (scores,), node.source, axis=3)
    mixed = make("matmul", (_shaped(weights, (batch, groups, rows, keys)), v), node.source)
    mixed = _shaped(mixed, node.shape)
    return _blanked(mixed, [*flags, *(_finite(m) for m in mask if m.dtype == "f32")], keys)


def _flags(node: Node, mask: Sequence[Node]) -> list[Node]:
    """The masks of flags that a score must be left by."""
    flags = [m for m in mask if m.dtype == "bool"]
    if node.attributes["causal"]:
        flags.append(_seen(node.shape[2], node.inputs[1].shape[2], node.attributes["window"]))
    return flags


def _seen(queries: Dim, keys: Dim, window: int | None) -> Node:
    """bool [queries, keys]: the last query sees all keys, each before it one less."""
    row = make("iota", (), length=queries, start=dim(keys - queries))
    column = make("reshape", (make("iota", (), length=keys),), shape=(1, keys))
    last = make("reshape", (row,), shape=(queries, 1))
    seen = make("le", (column, last))
    if window is None:
        return seen
    first = make("sub", (last, constant(np.int64(window))))
    return make("and", (seen, make("gt", (column, first))))


def _blanked(mixed: Node, flags: Sequence[Node], keys: Dim) -> Node:
    """Zeros for queries without keys."""
    if not flags:
        return mixed
    left = flags[0]
    for flag in flags[1:]:
        left = make("and", (left, flag))
    left = left if left.type.rank else make("reshape", (left,), shape=(1,))
    alive = make("any", (left,), axes=(left.type.rank - 1,), keepdims=True)
    return make("where", (alive, mixed, _number(0.0)), mixed.source)


def _finite(mask: Node) -> Node:
    return make("gt", (mask, _number(-math.inf)))


def _added(flags: Node, value: float) -> Node:
    """0 where a flag is set, else `value`."""
    return make("where", (flags, _number(0.0), _number(value)))


def _number(value: float) -> Node:
    return constant(np.float32(value))


def _shaped(x: Node, shape: Sequence[Dim]) -> Node:
    shape = tuple(dim(d) for d in shape)
    return x if x.shape == shape else make("reshape", (x,), x.source, shape=shape)


def _turned(x: Node) -> Node:
    return make("transpose", (x,), x.source, perm=(0, 1, 3, 2))


# --- made by fusion


@exports("rotary")
def _rotary(e: Emitter, node: Node) -> Node:
    """x * cos + turned(x) * sin, and what is behind the numbers that are turned"""
    x, cos, sin = node.inputs
    last, width, size = x.type.rank - 1, cos.shape[-1], x.shape[-1]
    part = _columns(x, 0, width)
    around = (_pairs_turned if node.attributes["interleaved"] else _halves_turned)(part)
    products = (make("mul", (part, cos), node.source), make("mul", (around, sin), node.source))
    turned = make("add", products, node.source)
    if width == size:
        return turned
    return make("concat", (turned, _columns(x, width, size)), node.source, axis=last)


def _halves_turned(x: Node) -> Node:
    width = int(x.shape[-1])
    a, b = _columns(x, 0, width // 2), _columns(x, width // 2, width)
    return make("concat", (make("neg", (b,), x.source), a), x.source, axis=x.type.rank - 1)


def _pairs_turned(x: Node) -> Node:
    last, width = x.type.rank - 1, int(x.shape[-1])
    a, b = (
        _shaped(
            make("slice", (x,), x.source, axis=last, start=i, stop=width, step=2),
            (*x.shape[:-1], width // 2, 1),
        )
        for i in (0, 1)
    )
    pairs = make("concat", (make("neg", (b,), x.source), a), x.source, axis=last + 1)
    return _shaped(pairs, x.shape)


def _columns(x: Node, start: Dim, stop: Dim) -> Node:
    if (start, stop) == (0, x.shape[-1]):
        return x
    return make("slice", (x,), x.source, axis=x.type.rank - 1, start=start, stop=stop)


def head_rows(x: Node, offset: int, heads: int, head_dim: int) -> Node:
    """[b, s, *] -> [b, heads, s, head_dim]"""
    stop = offset + heads * head_dim
    if (offset, stop) != (0, x.shape[2]):
        x = make("slice", (x,), x.source, axis=2, start=offset, stop=stop)
    split = make("reshape", (x,), x.source, shape=(*x.shape[:2], heads, head_dim))
    return make("transpose", (split,), x.source, perm=(0, 2, 1, 3))


def joined(x: Node, shape: Sequence[Dim]) -> Node:
    """[b, heads, s, head_dim] -> [b, s, heads * head_dim]"""
    return _shaped(make("transpose", (x,), x.source, perm=(0, 2, 1, 3)), shape)


@exports("mha")
def _mha(e: Emitter, node: Node) -> Node:
    a = node.attributes
    if a["int8"]:
        from llmc.compiler.to_onnx.int8_attention import int8_mha

        return int8_mha(e, node)
    counts = (a["heads"], *[a["kv_heads"] or a["heads"]] * 2)
    parts = zip(node.inputs[:3], a["offsets"], counts, strict=True)
    q, k, v = (head_rows(_floats(x), offset, count, a["head_dim"]) for x, offset, count in parts)
    mask = _mask(node)
    same = {name: a[name] for name in ("scale", "causal", "window")}
    made = make("attention", (q, k, v, *mask), node.source, has_mask=bool(mask), **same)
    return joined(made, node.shape)


def _floats(x: Node) -> Node:
    """Queries, keys or values that a session may keep as halves."""
    if x.dtype == "u8":
        reason = "attention of keys and values that are kept on int8: ONNX cannot part their rows"
        raise UnsupportedError(reason, "keep them as halves: states{dtype=fp16}, --state-dtype fp16")
    return make("cast", (x,), x.source, dtype="f32") if x.dtype == "f16" else x


def _mask(node: Node) -> list[Node]:
    """Keys and bias in one; `evenly` takes all values in equal parts where no key is left."""
    a = node.attributes
    bias = list(node.inputs[-1:]) if a["has_bias"] else []
    if not a["has_keys"]:
        return bias
    batch, length = node.inputs[3].shape
    keys = make("reshape", (node.inputs[3],), shape=(batch, 1, 1, length))
    if not bias and not a["evenly"]:
        return [keys]
    added = _added(keys, LOWEST if a["evenly"] else -math.inf)
    return [make("add", (bias[0], added)) if bias else added]


@exports("ragged_mha")
def _ragged_mha(e: Emitter, node: Node) -> Node:
    """All places are kept (`tokens.py`), so the rows of a sequence lie side by side."""
    q, k, v, keys, _, starts, *bias = node.inputs
    lead = (dim(starts.shape[0] - 1), node.attributes["seq"])
    whole = [make("reshape", (x,), x.source, shape=(*lead, *x.shape[1:])) for x in (q, k, v, keys)]
    same = {name: value for name, value in node.attributes.items() if name != "seq"}
    made = make("mha", (*whole, *bias), node.source, has_keys=True, **same)
    return make("reshape", (made,), node.source, shape=node.shape)
