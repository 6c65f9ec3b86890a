"""Reductions, softmax, norms and cells of recurrent networks."""

from __future__ import annotations

from collections.abc import Mapping

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.ops.recurrent import GRU_GATES, LSTM_GATES
from llmc.compiler.to_onnx.elementwise import operands
from llmc.compiler.to_onnx.emitter import Emitter
from llmc.compiler.to_onnx.float_steps import fma, norm
from llmc.compiler.to_onnx.packed_rows import dequantised, packed
from llmc.compiler.to_onnx.table import exports

_KINDS: Mapping[str, str] = {
    "sum": "ReduceSum",
    "mean": "ReduceMean",
    "max": "ReduceMax",
    "min": "ReduceMin",
    "prod": "ReduceProd",
}


@exports(*_KINDS)
def _reduced(e: Emitter, node: Node) -> str:
    (x,), dtype = operands(e, node)
    return e.cast(_reduce(e, _KINDS[node.op], x, node), dtype, node.dtype)


def _reduce(e: Emitter, kind: str, x: str, node: Node) -> str:
    return e.op(kind, x, e.ints(node.attributes["axes"]), keepdims=int(node.attributes["keepdims"]))


@exports("any", "all")
def _flags(e: Emitter, node: Node) -> str:
    """Whether the count is not 0; all are where none is not."""
    x = e.value(node.inputs[0])
    x = e.op("Not", x) if node.op == "all" else x
    found = e.cast(_reduce(e, "ReduceSum", e.cast(x, "bool", "i32"), node), "i32", "bool")
    return e.op("Not", found) if node.op == "all" else found


@exports("argmax")
def _argmax(e: Emitter, node: Node) -> str:
    """ONNX Runtime's ArgMax has no i64; TopK, which has, takes the first of equals as well."""
    axis, keepdims = node.attributes["axis"], int(node.attributes["keepdims"])
    (x,), dtype = operands(e, node)
    if dtype != "i64":
        return e.op("ArgMax", x, axis=axis, keepdims=keepdims)
    index = e.several("TopK", (x, e.ints([1])), 2, axis=axis, largest=1, sorted=1)[1]
    return index if keepdims else e.op("Squeeze", index, e.ints([axis]))


@exports("cumsum")
def _cumsum(e: Emitter, node: Node) -> str:
    (x,), dtype = operands(e, node)
    return e.cast(e.op("CumSum", x, e.number(node.attributes["axis"], "i64")), dtype, node.dtype)


@exports("softmax", "log_softmax")
def _softmax(e: Emitter, node: Node) -> str:
    kind = "Softmax" if node.op == "softmax" else "LogSoftmax"
    return e.op(kind, e.value(node.inputs[0]), axis=node.attributes["axis"])


@exports("layer_norm")
def _layer_norm(e: Emitter, node: Node) -> str | Node:
    """ONNX's wants a scale."""
    a = node.attributes
    if e.exact:
        rest = node.inputs[1:]
        weight, bias = rest[0] if a["has_weight"] else None, rest[-1] if a["has_bias"] else None
        return norm(e, node.inputs[0], weight, bias, float(a["eps"]))
    x, *parameters = e.inputs(node)
    if not a["has_weight"]:
        parameters.insert(0, e.expand(e.number(1, "f32"), node.shape[-1:]))
    return e.op("LayerNormalization", x, *parameters, axis=-1, epsilon=float(a["eps"]))


@exports("add_norm")
def _add_norm(e: Emitter, node: Node) -> Node:
    x, residual, *parameters = node.inputs
    total = make("add", (x, residual), node.source)
    return make("layer_norm", (total, *parameters), node.source, eps=node.attributes["eps"])


@exports("rms_norm")
def _rms_norm(e: Emitter, node: Node) -> str | Node:
    """In the ops by which ONNX Runtime knows it: x / sqrt(mean(x^2) + eps) * weight."""
    if e.exact:
        return norm(e, node.inputs[0], node.inputs[1], None, float(node.attributes["eps"]), centre=False)
    x, weight = e.inputs(node)
    mean = e.op("ReduceMean", e.op("Pow", x, e.number(2, "f32")), e.ints([-1]), keepdims=1)
    root = e.op("Sqrt", e.op("Add", mean, e.number(node.attributes["eps"], "f32")))
    return e.op("Mul", e.op("Div", x, root), weight)


# --- recurrent networks


def _gates(x: Node, count: int) -> list[Node]:
    """Parts of the columns, side by side."""
    width = int(x.shape[1]) // count
    return [make("slice", (x,), axis=1, start=i * width, stop=(i + 1) * width) for i in range(count)]


def _product(h: Node, w: Node) -> Node:
    return make("linear", (h, w), h.source)


def _sigmoid(a: Node, b: Node) -> Node:
    return make("sigmoid", (make("add", (a, b)),))


@exports("lstm_cell")
def _lstm_cell(e: Emitter, node: Node) -> tuple[Node, Node]:
    x, h, c, w = node.inputs
    i, f, g, o = _gates(make("add", (_product(h, w), x)), LSTM_GATES)
    i, f, o = (make("sigmoid", (v,)) for v in (i, f, o))
    cell = make("add", (make("mul", (f, c)), make("mul", (i, make("tanh", (g,))))))
    return make("mul", (o, make("tanh", (cell,)))), cell


@exports("gru_cell")
def _gru_cell(e: Emitter, node: Node) -> Node:
    x, h, w, bias = node.inputs
    (xr, xz, xn), (hr, hz, hn) = _gates(x, GRU_GATES), _gates(_product(h, w), GRU_GATES)
    r, z = _sigmoid(xr, hr), _sigmoid(xz, hz)
    new = make("tanh", (make("add", (xn, make("mul", (r, make("add", (hn, bias)))))),))
    return make("add", (new, make("mul", (z, make("sub", (h, new))))))


# --- sums of embeddings


@exports("embed_norm")
def _embed_norm(e: Emitter, node: Node) -> Node:
    *pairs, weight, bias = node.inputs
    total: Node | None = None
    for table, index in zip(pairs[::2], pairs[1::2], strict=True):
        total = _plus_rows(e, total, make("embedding", (table, index), node.source), int(weight.shape[0]))
    assert total is not None
    return make("layer_norm", (total, weight, bias), node.source, eps=node.attributes["eps"])


def _plus_rows(e: Emitter, total: Node | None, rows: Node, size: int) -> Node:
    """total + rows of a table, packed ones by one fused multiply-add."""
    if rows.dtype == "u8" and e.exact and total is not None:
        q, scale = packed(e, rows, size)
        return fma(e, make("cast", (q,), rows.source, dtype="f32"), scale, total)
    rows = dequantised(rows, size) if rows.dtype == "u8" else rows
    rows = rows if rows.dtype == "f32" else make("cast", (rows,), rows.source, dtype="f32")
    return rows if total is None else make("add", (total, rows), rows.source)
