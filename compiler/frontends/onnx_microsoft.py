"""Ops of `com.microsoft` that ONNX Runtime's optimiser writes into files; `onnx_microsoft_attention.py` has attention.

They are written out in plain ops; the pass `fuse` finds norms and activations again.
"""

from __future__ import annotations

from llmc.compiler.frontends.composed_conv import convolution
from llmc.compiler.frontends.composed_math import sloped
from llmc.compiler.frontends.onnx_activation import activated
from llmc.compiler.frontends.onnx_call import Call, Result, onnx_op
from llmc.compiler.frontends.onnx_image import bias_of, windows_of
from llmc.compiler.frontends.onnx_index import wrapped
from llmc.compiler.frontends.onnx_nn import gemm
from llmc.compiler.graph import Node

DOMAIN = "com.microsoft."


def microsoft(*types: str) -> list[str]:
    """The names under which the table has ops of the domain."""
    return [DOMAIN + op for op in types]


# --- activations


@onnx_op(*microsoft("Gelu", "FastGelu", "BiasGelu"))
def _gelu(call: Call) -> Node:
    """The fast one is the tanh approximation; a bias may come before."""
    x = call.node(0)
    x = call.op("add", x, call.node(1)) if call.has(1) else x
    return call.op("gelu", x, approximate="tanh" if call.type == "FastGelu" else "none")


@onnx_op(*microsoft("QuickGelu"))
def _quick_gelu(call: Call) -> Node:
    """x * sigmoid(alpha * x)"""
    x = call.node(0)
    return call.op(
        "mul", x, call.op("sigmoid", call.op("mul", x, call.number(call.attribute("alpha", 1.702), "f32")))
    )


@onnx_op(*microsoft("BiasSplitGelu", "BiasAdd"))
def _bias(call: Call) -> Node:
    """x + bias + skip, or the first half times the gelu of the second."""
    x = call.op("add", call.node(0), call.node(1))
    if call.type == "BiasAdd":
        return call.op("add", x, call.node(2))
    axis, width = x.type.rank - 1, x.shape[-1]
    call.require(isinstance(width, int) and width % 2 == 0, "a BiasSplitGelu of an odd width")
    halves = [call.sliced(x, axis, i * width // 2, (i + 1) * width // 2) for i in (0, 1)]
    return call.op("mul", halves[0], call.op("gelu", halves[1]))


# --- norms


def _normed(call: Call, x: Node, scale: Node, shift: Node | None, eps: float) -> Node:
    rest = [] if shift is None else [shift]
    return call.op("layer_norm", x, scale, *rest, eps=eps, has_weight=True, has_bias=bool(rest))


def _optional(call: Call, position: int) -> Node | None:
    return call.node(position) if call.has(position) else None


@onnx_op(*microsoft("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"))
def _skip_norm(call: Call) -> Result:
    """The norm of x + skip + bias, and that sum as the fourth output."""
    simple = "Simplified" in call.type
    total = call.op("add", call.node(0), call.node(1))
    bias = _optional(call, 3 if simple else 4)
    total = total if bias is None else call.op("add", total, bias)
    call.require(not call.wants(1) and not call.wants(2), "a norm with its mean as an output")
    eps = call.attribute("epsilon", 1e-12)
    if simple:
        y = call.op("rms_norm", total, call.node(2), eps=eps)
    else:
        y = _normed(call, total, call.node(2), _optional(call, 3), eps)
    return (y, None, None, total)[: call.outputs]


@onnx_op(*microsoft("EmbedLayerNormalization"))
def _embed_norm(call: Call) -> Result:
    """The norm of the sum of rows of words, positions and segments; how many tokens of each row the mask keeps."""
    ids, words, positions = call.node(0), call.node(2), call.node(3)
    batch, seq = ids.shape
    total = call.op("embedding", words, wrapped(call, ids, words.shape[0]))
    places = call.node(8) if call.has(8) else call.op("iota", length=seq)
    total = call.op("add", total, call.op("embedding", positions, wrapped(call, places, positions.shape[0])))
    if call.has(1) and call.has(4):
        segments = call.node(4)
        total = call.op(
            "add", total, call.op("embedding", segments, wrapped(call, call.node(1), segments.shape[0]))
        )
    y = _normed(call, total, call.node(5), call.node(6), call.attribute("epsilon", 1e-12))
    call.require(call.attribute("mask_index_type", 1) == 1, "a mask_index that is no count")
    kept = call.expand(call.number(0, "i32"), (batch,))
    if call.has(7):
        kept = call.op("sum", call.cast(call.node(7), "i32"), axes=(1,), keepdims=False)
    return (y, kept, total)[: call.outputs]


# --- products


@onnx_op(*microsoft("FusedMatMul", "TransposeMatMul"))
def _fused_matmul(call: Call) -> Node:
    a, b = call.node(0), call.node(1)
    batches = any(call.attribute(f"transBatch{side}", 0) for side in "AB")
    call.require(not batches, "a FusedMatMul that moves axes of the batch")
    a, b = (_turned(call, x, call.attribute(f"trans{side}", 0)) for x, side in ((a, "A"), (b, "B")))
    made, alpha = call.op("matmul", a, b), call.attribute("alpha", 1.0)
    return made if alpha == 1.0 else call.op("mul", made, call.number(alpha, made.dtype))


def _turned(call: Call, x: Node, wanted: int) -> Node:
    rank = x.type.rank
    return call.transpose(x, (*range(rank - 2), rank - 1, rank - 2)) if wanted else x


@onnx_op(*microsoft("FusedGemm"))
def _fused_gemm(call: Call) -> Node:
    return _then(call, gemm(call))


@onnx_op(*microsoft("FusedConv"))
def _fused_conv(call: Call) -> Node:
    """A convolution, what is added to it, and an activation."""
    x, weight = call.node(0), call.node(1)
    y = convolution(call, x, weight, bias_of(call, 2), windows_of(call, weight.shape[2:], x.shape[2:]))
    return _then(call, call.op("add", y, call.node(3)) if call.has(3) else y)


def _then(call: Call, y: Node) -> Node:
    name = call.attribute("activation", "")
    numbers = list(call.attribute("activation_params", []))
    if name == "LeakyRelu":
        return sloped(call, y, call.number(numbers[0] if numbers else 0.01, y.dtype))
    if name == "Clip":
        low, high = (call.number(n, y.dtype) for n in numbers)
        return call.op("minimum", call.op("maximum", y, low), high)
    call.require(not numbers, f"the activation {name} with numbers")
    return activated(call, name, y) if name else y


@onnx_op(*microsoft("RotaryEmbedding"))
def _rotary(call: Call) -> Node:
    """Pairs of features turned by an angle for each position; the tables hold cosines and sines."""
    x, places = call.node(0), call.cast(call.node(1), "i64")
    tables = (call.node(2), call.node(3))
    interleaved, heads = bool(call.attribute("interleaved", 0)), call.attribute("num_heads", 0)
    call.require(call.attribute("scale", 1.0) == 1.0, "a RotaryEmbedding with a scale")
    call.require(not call.attribute("is_packed_batching", 0), "packed batches")
    width = 2 * int(tables[0].shape[1])
    call.require(call.attribute("rotary_embedding_dim", 0) in (0, width), "tables of another width")
    return rotated(call, x, places, tables, heads or int(x.shape[-1]) // width, interleaved)


def rotated(
    call: Call, x: Node, places: Node, tables: tuple[Node, Node], heads: int, interleaved: bool
) -> Node:
    """x `[b, s, hidden]` or `[b, heads, s, d]`; positions `[b, s]` or the first one."""
    flat, (batch, seq) = x.type.rank == 3, (x.shape[0], x.shape[-2])
    if flat:
        hidden = int(x.shape[2])
        x = call.transpose(call.reshape(x, (batch, seq, heads, hidden // heads)), (0, 2, 1, 3))
    if places.shape in ((1,), ()):
        places = call.op("add", call.op("iota", length=seq), call.reshape(places, ()))
        places = call.expand(places, (batch, seq))
    cosine, sine = (_rows(call, table, places, interleaved) for table in tables)
    y = call.op("rotary", x, cosine, sine, interleaved=interleaved)
    return call.reshape(call.transpose(y, (0, 2, 1, 3)), (batch, seq, dim_of(y))) if flat else y


def dim_of(y: Node) -> int:
    """Features of all heads."""
    return int(y.shape[1]) * int(y.shape[3])


def _rows(call: Call, table: Node, places: Node, interleaved: bool) -> Node:
    """Rows `[b, 1, s, r]` of a table that holds a number for each pair."""
    rows = call.op("embedding", table, places)
    batch, seq, half = rows.shape
    across = (batch, 1, seq, half, 1) if interleaved else (batch, 1, seq, 1, half)
    rows = call.reshape(rows, across)
    twice = call.op("concat", rows, rows, axis=4 if interleaved else 3)
    return call.reshape(twice, (batch, 1, seq, 2 * int(half)))
