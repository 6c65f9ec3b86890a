"""Attention of `com.microsoft`, written out; the pass `fuse` finds it again."""

from __future__ import annotations

import math

import numpy as np

from llmc.compiler.dims import Dim, dim, dim_text
from llmc.compiler.frontends.onnx_call import Call, Result, onnx_op
from llmc.compiler.frontends.onnx_microsoft import microsoft
from llmc.compiler.frontends.onnx_quantise import product_of_levels, value_of
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import same_dim

_FILTER = -10000.0  # what is added where a mask keeps nothing, if a file does not say
_NEVER = float(np.finfo(np.float32).min)  # to what a causal query does not see: below all that a mask lowers


def heads_of(call: Call, x: Node, count: int) -> Node:
    """`[b, s, hidden]` -> `[b, heads, s, d]`"""
    if x.type.rank == 4:
        return x
    batch, seq, hidden = x.shape
    fits = isinstance(hidden, int) and hidden % count == 0
    call.require(fits, f"{dim_text(hidden)} columns for {count} heads")
    return call.transpose(call.reshape(x, (batch, seq, count, int(hidden) // count)), (0, 2, 1, 3))


def merged(call: Call, x: Node) -> Node:
    """`[b, heads, s, d]` -> `[b, s, hidden]`"""
    batch, heads, seq, width = x.shape
    return call.reshape(call.transpose(x, (0, 2, 1, 3)), (batch, seq, dim(heads * width)))


def of_length(call: Call, x: Node, axis: int, wanted: Dim) -> Node:
    """What has a number for each key has as many as there are: a past and what is new."""
    size = x.shape[axis]
    if same_dim(size, wanted) or not call.is_sum(size, wanted):
        return x
    return call.op("ensure_shape", x, shape=(*x.shape[:axis], wanted, *x.shape[axis + 1 :]))


def _attended(call: Call, q: Node, k: Node, v: Node, masks: list[Node], scale: float) -> Node:
    """softmax(q k^T * scale + masks) v"""
    scores = call.op("matmul", q, call.transpose(k, (0, 1, 3, 2)))
    scores = call.op("mul", scores, call.number(scale, "f32"))
    for mask in masks:
        scores = call.op("add", scores, mask)
    return call.op("matmul", call.op("softmax", scores, axis=3), v)


def _scale(call: Call, width: Dim) -> float:
    stated = call.attribute("scale", 0.0)
    call.require(isinstance(width, int), "attention of a dynamic width")
    return float(stated) if stated else 1 / math.sqrt(int(width))


def _added(call: Call, keep: Node, filtered: float) -> Node:
    """0 where a mask keeps, a large negative number elsewhere."""
    return call.op("where", keep, call.number(0, "f32"), call.number(filtered, "f32"))


def _padding(call: Call, mask: Node, k: Node, filtered: float) -> Node:
    """A mask of keys: how many are kept of each row `[b]`, or which `[b, keys]` or `[b, queries, keys]`."""
    rank = mask.type.rank
    call.require(rank in (1, 2, 3, 4), "a mask of another form")
    if rank == 1:
        call.require(mask.shape == k.shape[:1], "a mask of starts and ends")
        keep = call.op(
            "lt",
            call.cast(call.op("iota", length=k.shape[2]), mask.dtype),
            call.reshape(mask, (*mask.shape, 1)),
        )
    else:
        mask = of_length(call, mask, rank - 1, k.shape[2])
        keep = call.op("gt", mask, call.number(0, mask.dtype)) if mask.dtype != "bool" else mask
    middle = {2: (1, 1), 3: (1,)}.get(keep.type.rank, ())
    lead = (keep.shape[0], *middle, *keep.shape[1:])
    return _added(call, call.reshape(keep, lead), filtered)


def _causal(call: Call, queries: Dim, keys: Dim) -> Node:
    """A query sees keys up to its own, which is as far from the last one."""
    rows = call.op("add", call.op("iota", length=queries), call.op("dim", value=dim(keys - queries)))
    keep = call.op("le", call.op("iota", length=keys), call.reshape(rows, (queries, 1)))
    return _added(call, keep, _NEVER)


@onnx_op(*microsoft("Attention"))
def _attention(call: Call) -> Result:
    """One product makes queries, keys and values."""
    made = call.op("matmul", call.node(0), call.node(1))
    made = call.op("add", made, call.node(2)) if call.has(2) else made
    return _of_product(call, made, padding=3, past=4, added=5)


@onnx_op(*microsoft("QAttention"))
def _quantised_attention(call: Call) -> Result:
    """The same by integers; what comes out are floats."""
    x, weight, bias, sx, sw = (call.node(i) for i in range(5))
    zx, zw = (call.node(i) if call.has(i) else None for i in (6, 7))
    sx, zx = call.reshape(sx, ()), None if zx is None else call.reshape(zx, ())
    sw = call.reshape(sw, ()) if sw.shape == (1,) else sw
    zw = call.reshape(zw, ()) if zw is not None and zw.shape == (1,) else zw
    made = product_of_levels(call, x, sx, zx, weight, sw, zw)
    if made is None:
        made = call.op("matmul", value_of(call, x, sx, zx), value_of(call, weight, sw, zw))
    return _of_product(call, call.op("add", made, bias), padding=5, past=8, added=None)


def _of_product(call: Call, made: Node, padding: int, past: int, added: int | None) -> Result:
    """Attention of queries, keys and values side by side; the inputs of masks, of what went before and of a bias."""
    heads = call.attributes["num_heads"]
    width = int(made.shape[2])
    sizes = call.attribute("qkv_hidden_sizes", [width // 3] * 3)
    ends = [0, sizes[0], sizes[0] + sizes[1], sum(sizes)]
    q, k, v = (heads_of(call, call.sliced(made, 2, ends[i], ends[i + 1]), heads) for i in range(3))
    call.require(not call.attribute("do_rotary", 0), "an Attention that turns its keys")
    present = None
    if call.has(past):
        before = call.node(past)
        call.may_be_empty(before.shape[3])
        olds = [call.reshape(call.sliced(before, 0, i, i + 1), before.shape[1:]) for i in (0, 1)]
        k, v = (call.op("concat", old, new, axis=2) for old, new in zip(olds, (k, v), strict=True))
    if call.wants(1):
        present = call.op("concat", *(call.reshape(n, (1, *n.shape)) for n in (k, v)), axis=0)
    return (_answer(call, q, k, v, padding, added), present)[: call.outputs]


@onnx_op(*microsoft("MultiHeadAttention"))
def _multi_head(call: Call) -> Result:
    heads = call.attributes["num_heads"]
    call.require(call.has(1) and call.has(2), "a MultiHeadAttention of packed queries, keys and values")
    parts = [call.node(i) for i in range(3)]
    if call.has(3):
        bias, start = call.node(3), 0
        for i, part in enumerate(parts):
            width = int(part.shape[-1]) * (int(part.shape[1]) if part.type.rank == 4 else 1)
            call.require(part.type.rank == 3, "a bias of keys that are split into heads")
            parts[i] = call.op("add", part, call.sliced(bias, 0, start, start + width))
            start += width
    q, k, v = (heads_of(call, part, heads) for part in parts)
    if call.has(6):
        call.may_be_empty(call.node(6).shape[2])
        k, v = (call.op("concat", call.node(i), new, axis=2) for i, new in ((6, k), (7, v)))
    return (_answer(call, q, k, v, padding=4, added=5), k, v)[: call.outputs]


def _answer(call: Call, q: Node, k: Node, v: Node, padding: int, added: int | None) -> Node:
    """What queries get, with the masks of the node: input `padding` says which keys are none, `added` is added."""
    filtered = call.attribute("mask_filter_value", _FILTER)
    masks = [_padding(call, call.node(padding), k, filtered)] if call.has(padding) else []
    if added is not None and call.has(added):
        masks.append(of_length(call, call.node(added), 3, k.shape[2]))
    if call.attribute("unidirectional", 0):
        masks.append(_causal(call, q.shape[2], k.shape[2]))
    return merged(call, _attended(call, q, k, v, masks, _scale(call, q.shape[3])))
