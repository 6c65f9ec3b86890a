"""ONNX's products and norms."""

from __future__ import annotations

from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.graph import Node


@onnx_op("MatMul")
def _matmul(call: Call) -> Node:
    """A vector is a row on the left and a column on the right, dropped again from the result."""
    a, b = call.nodes()
    row, column = a.type.rank == 1, b.type.rank == 1
    a = call.reshape(a, (1, *a.shape)) if row else a
    b = call.reshape(b, (*b.shape, 1)) if column else b
    made = call.op("matmul", a, b)
    shape = list(made.shape)
    if row:
        del shape[-2]
    if column:
        del shape[-1]
    return call.reshape(made, shape)


@onnx_op("Gemm")
def _gemm(call: Call) -> Node:
    return gemm(call)


def gemm(call: Call) -> Node:
    """alpha * a' @ b' + beta * c; a layer with constant weights is a linear with its bias."""
    call.without_meaning("broadcast")  # before opset 7; it is how the IR adds
    a, b = call.node(0), call.node(1)
    a = call.transpose(a, (1, 0)) if call.attribute("transA", 0) else a
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    bias = call.node(2) if call.has(2) else None
    if b.op == "constant" and a.dtype == "f32" and alpha == 1.0:
        weight = b if call.attribute("transB", 0) else call.transpose(b, (1, 0))
        if bias is not None and beta == 1.0 and bias.shape == weight.shape[:1]:
            return call.op("linear", a, weight, bias, epilogue=("bias",))
        made = call.op("linear", a, weight)
    else:
        made = call.op("matmul", a, call.transpose(b, (1, 0)) if call.attribute("transB", 0) else b)
        made = made if alpha == 1.0 else call.op("mul", made, call.number(alpha, made.dtype))
    if bias is None or beta == 0.0:
        return made
    bias = bias if beta == 1.0 else call.op("mul", bias, call.number(beta, bias.dtype))
    return call.op("add", made, bias)


@onnx_op("LpNormalization")
def _lp_norm(call: Call) -> Node:
    """x / |x|; zeros where the norm is 0"""
    x, power = call.node(0), call.attribute("p", 2)
    call.require(power in (1, 2), f"LpNormalization with p = {power}")
    axes = (call.axis(x.type.rank, -1),)
    part = call.op("abs", x) if power == 1 else call.op("mul", x, x)
    size = call.op("sum", part, axes=axes, keepdims=True)
    size = size if power == 1 else call.op("sqrt", size)
    none = call.op("eq", size, call.number(0, x.dtype))
    return call.op("div", x, call.op("where", none, call.number(1, x.dtype), size))


@onnx_op("Det")
def _determinant(call: Call) -> Node:
    """By minors: of matrices up to 4 x 4."""
    x = call.node(0)
    size = x.shape[-1]
    call.require(isinstance(size, int) and 1 <= size <= 4, f"the determinant of a matrix of {size} columns")
    axis = x.type.rank - 2
    rows = [call.sliced(x, axis, i, i + 1) for i in range(size)]
    cells = [
        [call.reshape(call.sliced(r, axis + 1, j, j + 1), x.shape[:-2]) for j in range(size)] for r in rows
    ]
    return _minor(call, cells)


def _minor(call: Call, cells: list[list[Node]]) -> Node:
    if len(cells) == 1:
        return cells[0][0]
    total: Node | None = None
    for j, cell in enumerate(cells[0]):
        part = call.op("mul", cell, _minor(call, [row[:j] + row[j + 1 :] for row in cells[1:]]))
        total = part if total is None else call.op("sub" if j % 2 else "add", total, part)
    assert total is not None
    return total


@onnx_op("LayerNormalization")
def _layer_norm(call: Call) -> Node:
    x, scale = call.node(0), call.node(1)
    call.attribute("stash_type", 1)
    call.require(call.outputs == 1, "LayerNormalization with its mean as an output")
    call.require(call.axis(x.type.rank, -1) == x.type.rank - 1, "LayerNormalization over several axes")
    rest = [call.node(2)] if call.has(2) else []
    width = x.shape[-1:]
    call.require(all(v.shape == width for v in (scale, *rest)), "a LayerNormalization with broadcast weights")
    return call.op(
        "layer_norm",
        x,
        scale,
        *rest,
        eps=call.attribute("epsilon", 1e-5),
        has_weight=True,
        has_bias=bool(rest),
    )


@onnx_op("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_norm(call: Call) -> Node:
    x = call.node(0)
    call.attribute("stash_type", 1)
    call.require(call.axis(x.type.rank, -1) == x.type.rank - 1, "RMSNormalization over several axes")
    call.require(call.node(1).shape == x.shape[-1:], "an RMSNormalization with a broadcast weight")
    return call.op("rms_norm", x, call.node(1), eps=call.attribute("epsilon", 1e-5))
