"""Element types and shapes of ONNX values: what attributes hold, what the file declares, and what results are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import AttributeProto, NodeProto, helper

from llmc.compiler.frontends.onnx_call import folded
from llmc.compiler.frontends.onnx_file import values
from llmc.compiler.frontends.onnx_kinds import DTYPES, bits, held_in, natural
from llmc.compiler.frontends.onnx_values import Items, Sizes, Value
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import DTYPES as ARRAYS
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant, make

Shapes = Mapping[str, tuple[int, ...]]
# ops whose results lie where their inputs do
_KEEPS = frozenset(
    {
        *("Identity", "Reshape", "Transpose", "Slice", "Gather", "GatherElements", "GatherND", "Concat"),
        *("Split", "Max", "Min", "Relu", "Clip", "Where", "Pad", "Expand", "Tile", "Squeeze", "Unsqueeze"),
        *("Flatten", "Mod", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "ReduceMax", "ReduceMin", "Trilu"),
        *("ScatterElements", "ScatterND", "Constant", "ConstantOfShape", "DepthToSpace", "SpaceToDepth"),
        *("TopK", "MaxPool", "QuantizeLinear", "Sign", "ReverseSequence", "SequenceAt", "OneHot", "EyeLike"),
        *("SequenceConstruct", "OptionalGetElement", "If", "Loop", "Scan", "Range", "TensorScatter"),
    }
)
_UNSIGNED_64 = frozenset({"Sub", "Neg", "BitwiseNot"})


def plain(attribute: AttributeProto, path: Path, doubles: bool = False) -> Any:
    """The value of an attribute: a tensor as an array of llmc's dtype, text as str, a graph as it is.

    Args:
        doubles: as of `onnx_file.values`.
    """
    kinds = AttributeProto
    match attribute.type:
        case kinds.TENSOR:
            return values(attribute.t, path, doubles)
        case kinds.STRING:
            return attribute.s.decode()
        case kinds.STRINGS:
            return [text.decode() for text in attribute.strings]
        case kinds.SPARSE_TENSOR | kinds.SPARSE_TENSORS | kinds.TENSORS | kinds.TYPE_PROTOS:
            raise UnsupportedError(f"an attribute {attribute.name} of sparse tensors or several", "")
    value = helper.get_attribute_value(attribute)
    return (
        list(value)
        if isinstance(value, (list, tuple)) or type(value).__name__.startswith("Repeated")
        else value
    )


def declared(graph: Any) -> Shapes:
    """Name -> shape, of values whose whole shape the file says in numbers."""
    found = ((info.name, _shape(info.type)) for info in (*graph.value_info, *graph.output))
    return {name: shape for name, shape in found if shape is not None}


def _shape(kind: Any) -> tuple[int, ...] | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if not all(d.HasField("dim_value") and d.dim_value >= 0 for d in dims):
        return None
    return tuple(int(d.dim_value) for d in dims)


# --- of results


def result_kinds(
    node: NodeProto, schema: Any, scope: Any, made: Sequence[Value | None], told: Mapping[int, int]
) -> list[int]:
    """ONNX's element type of each result; `told` of those of a body."""
    return [_kind(node, schema, scope, value, i, told.get(i, 0)) for i, value in enumerate(made)]


def _kind(node: NodeProto, schema: Any, scope: Any, value: Value | None, position: int, told: int) -> int:
    if value is None or isinstance(value, Items):
        return told
    candidates = (told, _stated(node), _tied(node, schema, scope, position))
    fitting = (
        kind for kind in candidates if kind in DTYPES and held_in(kind, value.dtype == "f64") == value.dtype
    )
    return next(fitting, natural(value.dtype))


def _stated(node: NodeProto) -> int:
    """What an attribute says."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.type == AttributeProto.INT:
            return int(attribute.i)
        if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
            return int(attribute.t.data_type)
    return 0


def _tied(node: NodeProto, schema: Any, scope: Any, position: int) -> int:
    """The type of an input that the standard says is of the same type."""
    if schema is None or not schema.outputs:
        return scope.kind(node.input[0]) if node.input else 0
    wanted = schema.outputs[min(position, len(schema.outputs) - 1)].type_str
    for i, name in enumerate(node.input):
        if name and schema.inputs[min(i, len(schema.inputs) - 1)].type_str == wanted:
            return int(scope.kind(name))
    return 0


def held(node: NodeProto, value: Value, kind: int) -> Value:
    """A result within the range of its type, which the dtype that holds it may go beyond."""
    if not isinstance(value, Node) or isinstance(value, Sizes) or node.op_type in _KEEPS:
        return value
    if kind == _UINT64 and node.op_type in _UNSIGNED_64:
        raise UnsupportedError("unsigned numbers of 64 bits that may be below zero", "use int64")
    narrow = bits(kind)
    return value if narrow is None else folded(wrapped(value, *narrow))


_UINT64 = 13


def wrapped(x: Node, width: int, signed: bool) -> Node:
    """x modulo 2**width, signed numbers around zero."""
    mask = _number((1 << width) - 1, x)
    if not signed:
        return make("bitand", (x, mask), x.source)
    half = _number(1 << (width - 1), x)
    low = folded(make("bitand", (folded(make("add", (x, half), x.source)), mask), x.source))
    return make("sub", (low, half), x.source)


def _number(value: int, like: Node) -> Node:
    return constant(ARRAYS[like.dtype].type(value), source=like.source)
