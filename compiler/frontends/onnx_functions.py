"""Functions of ONNX: those of the standard that define ops, and attributes that nodes of functions refer to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from onnx import FunctionProto, NodeProto, TypeProto, defs, helper

from llmc.compiler.dims import dim_text
from llmc.compiler.frontends.onnx_call import Call
from llmc.compiler.frontends.onnx_values import Items, Value


@cache
def schema(op: str, version: int, domain: str) -> Any:
    """What the standard says of an op, None if it does not know it."""
    domain = "" if domain == "ai.onnx" else domain
    try:
        found = defs.get_schema(op, version, domain)
    except Exception:
        return None
    return None if found.deprecated else found


def of_standard(node: NodeProto, call: Call) -> Any:
    """The function that the standard defines an op by, for these inputs; None if there is none.

    Args:
        node: with its attributes resolved.
    """
    found = schema(node.op_type, call.opset, node.domain)
    if found is None:
        return None
    if found.has_function:
        version = _newest(found.function_opset_versions, call.opset)
        data = found.get_function_with_opset_version(version)
    elif found.has_context_dependent_function:
        version = _newest(found.context_dependent_function_opset_versions, call.opset)
        types = [_type(v, k).SerializeToString() for v, k in zip(call.inputs, call.kinds, strict=True)]
        data = found.get_context_dependent_function_with_opset_version(
            version, node.SerializeToString(), types
        )
    else:
        return None
    function = FunctionProto()
    function.ParseFromString(data)
    function.name, function.domain = node.op_type, node.domain
    return function if function.node else None


def _newest(versions: Iterable[int], opset: int) -> int:
    """The newest version that a model of an opset may use."""
    fitting = [v for v in versions if v <= opset]
    return max(fitting) if fitting else min(versions)


def _type(value: Value | None, kind: int) -> TypeProto:
    if value is None or isinstance(value, Items):
        return TypeProto()
    shape = value.shape if not hasattr(value, "array") else value.array.shape
    return helper.make_tensor_type_proto(kind, [d if isinstance(d, int) else dim_text(d) for d in shape])


NEWEST = {"": defs.onnx_opset_version()}  # what a function means that does not say its opset


def defaults(call: Call, function: Any) -> dict[str, Any]:
    """What the standard says of attributes that a call of its function leaves out."""
    stated = schema(function.name, call.opset, function.domain)
    attributes = {} if stated is None else stated.attributes
    every = {name: a.default_value for name, a in attributes.items()}
    return {name: value for name, value in every.items() if value.type}


def attributes_of(call: Call) -> list[Any]:
    """A call's attributes as in the file."""
    return list(call.attributes.protos)


def resolved(node: NodeProto, attributes: Mapping[str, Any] | None) -> NodeProto:
    """The node with the attributes of the call where it refers to them; without those that the call has not."""
    if attributes is None or not any(a.ref_attr_name for a in node.attribute):
        return node
    made = NodeProto()
    made.CopyFrom(node)
    del made.attribute[:]
    for attribute in node.attribute:
        wanted = attribute if not attribute.ref_attr_name else attributes.get(attribute.ref_attr_name)
        if wanted is not None:
            added = made.attribute.add()
            added.CopyFrom(wanted)
            added.name = attribute.name
    return made
