"""ATen's products, norms over the last axis and attention."""

from __future__ import annotations

import math

import numpy as np

from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant
from llmc.compiler.ops.rules import same_dim


@aten("linear.default")
def _linear(call: Call) -> Node:
    x, weight, bias = call["input"], call["weight"], call["bias"]
    if bias is None:
        return call.op("linear", x, weight)
    return call.op("linear", x, weight, bias, epilogue=("bias",))


@aten("matmul.default", "bmm.default", "mm.default")
def _matmul(call: Call) -> Node:
    """A vector is a row on the left and a column on the right, dropped again from the result."""
    a, b = call["self"], call.get("other", call.get("mat2"))
    a = call.reshape(a, (1, *a.shape)) if a.type.rank == 1 else a
    b = call.reshape(b, (*b.shape, 1)) if b.type.rank == 1 else b
    return call.reshape(call.op("matmul", a, b), call.shape)


@aten("addmm.default", "baddbmm.default")
def _addmm(call: Call) -> Node:
    """beta * self + alpha * (a @ b)."""
    a, b = call.get("mat1", call.get("batch1")), call.get("mat2", call.get("batch2"))
    product, added = call.op("matmul", a, b), call["self"]
    alpha, beta = call.get("alpha", 1), call.get("beta", 1)
    product = product if alpha == 1 else call.op("mul", product, call.scalar(alpha, product.dtype))
    added = added if beta == 1 else call.op("mul", added, call.scalar(beta, added.dtype))
    return call.op("add", added, product)


@aten("layer_norm.default")
def _layer_norm(call: Call) -> Node:
    x, shape = call["input"], call["normalized_shape"]
    call.require(len(shape) == 1, "layer_norm over several axes", "normalise over the last axis only")
    parameters = [p for p in (call.get("weight"), call.get("bias")) if p is not None]
    return call.op(
        "layer_norm",
        x,
        *parameters,
        eps=call.get("eps", 1e-5),
        has_weight=call.get("weight") is not None,
        has_bias=call.get("bias") is not None,
    )


@aten("rms_norm.default")
def _rms_norm(call: Call) -> Node:
    x, shape = call["input"], call["normalized_shape"]
    call.require(len(shape) == 1, "rms_norm over several axes", "normalise over the last axis only")
    weight = call.get("weight")
    if weight is None:
        call.require(isinstance(shape[0], int), "rms_norm over an axis whose size is open", "fix that size")
        weight = constant(np.ones(shape, np.float32), source=call.source)
    return call.op("rms_norm", x, weight, eps=call.get("eps", float(np.finfo(np.float32).eps)))


@aten("scaled_dot_product_attention.default")
def _attention(call: Call) -> Node:
    query, key, value, mask = call["query"], call["key"], call["value"], call.get("attn_mask")
    call.require(
        not call.get("dropout_p", 0.0), "dropout in training mode", "call model.eval() before export"
    )
    rank = query.type.rank
    call.require(rank in (3, 4), f"attention on {rank} axes", "use [batch, heads, seq, width]")
    if rank == 3:
        query, key, value = (_of_one_head(call, x) for x in (query, key, value))
        mask = _of_one_head(call, mask) if mask is not None and mask.type.rank == 3 else mask
    scale = call.get("scale")
    if scale is None:
        width = query.shape[-1]
        call.require(isinstance(width, int), "attention whose heads are of an open width", "pass a scale")
        scale = 1.0 / math.sqrt(width)
    causal = bool(call.get("is_causal", False))
    if causal and not same_dim(query.shape[2], key.shape[2]):
        mask, causal = _from_the_first(query, key, call), False
    inputs = (query, key, value) if mask is None else (query, key, value, mask)
    y = call.op("attention", *inputs, scale=scale, causal=causal, has_mask=mask is not None)
    return y if rank == 4 else call.reshape(y, (y.shape[0], *y.shape[2:]))


def _of_one_head(call: Call, x: Node) -> Node:
    """`[b, s, d]` -> `[b, 1, s, d]`"""
    call.require(x.type.rank == 3, "attention of operands with different numbers of axes")
    return call.reshape(x, (x.shape[0], 1, *x.shape[1:]))


def _from_the_first(query: Node, key: Node, call: Call) -> Node:
    """PyTorch's causal mask bool [queries, keys], where the first query sees the first key alone."""
    queries, keys = (call.op("iota", length=x.shape[2]) for x in (query, key))
    return call.op("le", keys, call.op("reshape", queries, shape=(query.shape[2], 1)))


@aten("llmc.causal_attention.default")
def _causal_attention(call: Call) -> Node:
    """Of a decoder; see `masks.causal_attention`."""
    inputs = (call["q"], call["k"], call["v"], call.cast(call["keys"], "bool"))
    return call.op("attention", *inputs, scale=call["scale"], causal=True, has_mask=True)


@aten("llmc.step_attention.default")
def _step_attention(call: Call) -> Node:
    """Of a decoder that is called token by token; see `step_attention`."""
    inputs = (call["q"], call["k"], call["v"])
    return call.op("attention", *inputs, scale=call["scale"], causal=True, window=call["window"] or None)
