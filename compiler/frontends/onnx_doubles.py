"""Which ONNX files are computed in doubles: those of nothing else, whose ops all have kernels for them."""

from __future__ import annotations

import onnx
from onnx import TensorProto

# sums and products, and what only moves
_OPS = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Neg", "Sum", "Identity", "Constant"),
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand"),
    }
)
_SIZES = TensorProto.INT64  # of weights that say a shape or axes


def in_doubles(model: onnx.ModelProto) -> bool:
    """Whether all inputs and outputs of a file are doubles, and nothing in it needs another type."""
    graph = model.graph
    weights = {t.name for t in graph.initializer}
    live = [i for i in (*graph.input, *graph.output) if i.name not in weights]
    kinds = {i.type.tensor_type.elem_type if i.type.HasField("tensor_type") else 0 for i in live}
    plain = all(node.op_type in _OPS and node.domain in ("", "ai.onnx") for node in graph.node)
    numbers = {t.data_type for t in graph.initializer}
    return (
        kinds == {TensorProto.DOUBLE}
        and plain
        and numbers <= {TensorProto.DOUBLE, _SIZES}
        and not model.functions
    )
