"""ATen's products, norms, attention and convolution."""

from __future__ import annotations

import math

import numpy as np

from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant


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
    weight = call.get("weight", constant(np.ones(shape, np.float32), source=call.source))
    return call.op("rms_norm", x, weight, eps=call.get("eps", float(np.finfo(np.float32).eps)))


@aten("scaled_dot_product_attention.default")
def _attention(call: Call) -> Node:
    query, key, value, mask = call["query"], call["key"], call["value"], call.get("attn_mask")
    call.require(
        not call.get("dropout_p", 0.0), "dropout in training mode", "call model.eval() before export"
    )
    call.require(
        query.type.rank == 4, f"attention on {query.type.rank} axes", "use [batch, heads, seq, width]"
    )
    scale = call.get("scale", 1.0 / math.sqrt(query.shape[-1]))
    inputs = (query, key, value) if mask is None else (query, key, value, mask)
    return call.op(
        "attention",
        *inputs,
        scale=scale,
        causal=bool(call.get("is_causal", False)),
        has_mask=mask is not None,
    )


@aten("llmc.causal_attention.default")
def _causal_attention(call: Call) -> Node:
    """Of a decoder; see `masks.causal_attention`."""
    inputs = (call["q"], call["k"], call["v"], call.cast(call["keys"], "bool"))
    return call.op("attention", *inputs, scale=call["scale"], causal=True, has_mask=True)


@aten("conv1d.default", "conv1d.padding")
def _conv1d(call: Call) -> Node:
    """x [b, c, t] -> windows [b, t', k*c] times weight [o, k*c]: k shifted slices and one linear."""
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    (stride,), (dilation,) = call.get("stride", [1]), call.get("dilation", [1])
    width = weight.shape[2]
    before, after = _padding(call, call.get("padding", [0]), (width - 1) * dilation)
    call.require(
        call.get("groups", 1) == 1 and stride == 1, "conv1d with groups or stride", "use groups=1, stride=1"
    )
    call.require(weight.op == "constant", "conv1d with computed weights")
    rows = call.op("transpose", x, perm=(0, 2, 1))
    rows = call.op("pad", rows, before=(0, before, 0), after=(0, after, 0)) if before or after else rows
    length = call.shape[2]
    shifts = [k * dilation for k in range(width)]
    parts = [call.op("slice", rows, axis=1, start=s, stop=s + length) for s in shifts]
    windows = parts[0] if width == 1 else call.op("concat", *parts, axis=2)
    kept = weight.attributes["value"]
    flat = np.ascontiguousarray(kept.array.transpose(0, 2, 1)).reshape(kept.array.shape[0], -1)
    matrix = constant(flat, kept.name, weight.source)
    extra, epilogue = ((), ()) if bias is None else ((bias,), ("bias",))
    result = call.op("linear", windows, matrix, *extra, epilogue=epilogue)
    return call.op("transpose", result, perm=(0, 2, 1))


def _padding(call: Call, padding: object, span: int) -> tuple[int, int]:
    """Zeros before and after; "same" puts the odd one after, as PyTorch does."""
    if padding == "same":
        return span // 2, span - span // 2
    if padding == "valid":
        return 0, 0
    call.require(isinstance(padding, list), f"padding {padding!r}")
    assert isinstance(padding, list)
    return padding[0], padding[0]
