"""Names of an ONNX graph, of a body or of a function, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import NodeProto

from llmc.compiler.frontends import onnx_functions, onnx_types
from llmc.compiler.frontends.onnx_file import values
from llmc.compiler.frontends.onnx_values import Value
from llmc.compiler.graph import Source, Weight
from llmc.compiler.ops import constant

OWN = ("", "ai.onnx")  # ONNX's own domain


@dataclass
class Scope:
    """Names of a graph, a body or a function, and what they mean.

    Args:
        reader: an `onnx_reader.Reader`.
        opsets: domain -> version.
        tensors: weights that are not read yet.
        declared: name -> the shape that the file says, where it says all of it.
        around: the scope whose names this one sees, too.
        attributes: of the call of a function, for nodes that refer to them.
        at: the source of all nodes, of a function's the call's; None: each has its own.
        capture: what a value from around becomes here.
    """

    reader: Any
    opsets: Mapping[str, int]
    tensors: Mapping[str, Any] = field(default_factory=dict)
    declared: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    around: Scope | None = None
    attributes: Mapping[str, Any] | None = None
    at: Source | None = None
    capture: Callable[[Value], Value] = lambda value: value
    values: dict[str, Value | None] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether a name means something; an optional input that is left out means nothing, and is known."""
        inside = name in self.values or name in self.tensors
        return inside or (self.around is not None and self.around.has(name))

    def value(self, name: str) -> Value | None:
        """What a tensor is, weights as constants when first read."""
        if name in self.values:
            return self.values[name]
        if name in self.tensors:
            tensor = self.tensors[name]
            array = values(tensor, self.reader.file.path, self.reader.file.doubles)
            self.keep(
                name, constant(Weight(array, name), source=Source(name.rpartition(".")[0])), tensor.data_type
            )
            return self.values[name]
        if self.around is None:
            return None
        found = self.around.value(name)
        if found is not None:
            found = self.capture(found)
            self.keep(name, found, self.around.kind(name))
        return found

    def kind(self, name: str) -> int:
        """ONNX's element type of a tensor; 0 if there is none."""
        if name not in self.kinds and self.around is not None:
            return self.around.kind(name)
        return self.kinds.get(name, 0)

    def keep(self, name: str, value: Value | None, kind: int) -> None:
        self.values[name], self.kinds[name] = value, kind

    def body(self, graph: Any, capture: Callable[[Value], Value] = lambda value: value) -> Scope:
        """The scope of a body in a node's attribute."""
        return Scope(
            self.reader,
            self.opsets,
            {t.name: t for t in graph.initializer},
            onnx_types.declared(graph),
            self,
            self.attributes,
            self.at,
            capture,
        )

    def results(self, graph: Any) -> tuple[Value | None, ...]:
        """The outputs of a body whose inputs are bound.

        Raises:
            UnsupportedError: a part of it cannot be imported.
        """
        problems = len(self.reader.problems)
        self.reader.read_all(graph.node, [o.name for o in graph.output], self)
        found: tuple[Value | None, ...] = self.reader.outputs(self, [o.name for o in graph.output], problems)
        return found


def name_of(node: NodeProto) -> str:
    """`Add`, or `com.microsoft.Gelu` of another domain."""
    return node.op_type if node.domain in OWN else f"{node.domain}.{node.op_type}"


def version(node: NodeProto, scope: Scope) -> int:
    """The version of a node's domain."""
    found = [
        v for domain, v in scope.opsets.items() if domain == node.domain or {domain, node.domain} <= set(OWN)
    ]
    return found[0] if found else 1


def schema_of(node: NodeProto, scope: Scope) -> Any:
    """What the standard says of an op, None if it does not know it."""
    return onnx_functions.schema(node.op_type, version(node, scope), node.domain)
