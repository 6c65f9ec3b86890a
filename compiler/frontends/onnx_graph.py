"""A parsed ONNX file -> Graph.

onnx-graphsurgeon drops dead nodes and sorts the rest; each node is then either arithmetic on sizes, which is done
now (`onnx_sizes.py`), or goes through its converter. Nothing is run by onnxruntime.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import NodeProto

from llmc.compiler.dims import Dim, symbol
from llmc.compiler.frontends import converters
from llmc.compiler.frontends.axes import SEGMENTS, AxisNames
from llmc.compiler.frontends.onnx_call import TABLE, Call, Value
from llmc.compiler.frontends.onnx_file import DTYPES, OnnxFile, dtype_name, values
from llmc.compiler.frontends.onnx_sizes import on_sizes
from llmc.compiler.frontends.report import Problem, UnsupportedError, report
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import constant, input_
from llmc.errors import LlmcError

__all__ = ["to_graph"]

converters.load("onnx_")  # fills TABLE

_HINT = "change these parts of the model and export it again; docs/onnx.md lists the ops llmc reads"
_QUANTISED = "give the float model: llmc quantises itself"
ADVICE: Mapping[str, str] = {
    **dict.fromkeys(
        ("If", "Loop", "Scan", "SequenceMap"), "control flow cannot be compiled: export without it"
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent layers are not supported"),
    **dict.fromkeys(("NonZero", "Unique", "Compress"), "its shape depends on values: use masks and Where"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), _QUANTISED),
    **dict.fromkeys(("MatMulInteger", "QLinearMatMul", "ConvInteger", "QLinearConv"), _QUANTISED),
}


def to_graph(file: OnnxFile, bounds: Mapping[str, tuple[int, int]]) -> Graph:
    """Import a file.

    Args:
        file: from `onnx_file.read`.
        bounds: of `batch`, `seq` and, under the key "", any other dynamic dim.

    Raises:
        LlmcError: ops, dtypes or shapes that are not supported, all of them in one error.
    """
    places = {node.output[0]: _source(node) for node in file.model.graph.node if node.output}
    cleaned = _cleaned(file)
    reader = _Reader(file, places)
    reader.problems += [_unknown(n, places) for n in cleaned.nodes if not _is_known(n)]
    if reader.problems:
        raise report(reader.problems, _HINT)
    inputs = _inputs(file, cleaned)
    reader.bind(inputs)
    for node in cleaned.nodes:
        reader.read(node)
    if reader.problems:
        raise report(reader.problems, _HINT)
    outputs = {t.name: reader.output(t.name) for t in cleaned.outputs}
    names = {str(s) for n in inputs for d in n.shape if not isinstance(d, int) for s in d.free_symbols}
    return Graph(tuple(inputs), outputs, {n: bounds.get(n, bounds[""]) for n in sorted(names)})  # type: ignore[misc]  # Bounds


def _cleaned(file: OnnxFile) -> Any:
    """graphsurgeon's graph without dead nodes, in order."""
    gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL
    try:
        graph = gs.import_onnx(file.model)
        return graph.cleanup(remove_unused_graph_inputs=False).toposort()
    except (
        Exception
    ) as error:  # graphsurgeon raises its own and Python's errors for graphs that make no sense
        lines = str(error).strip().splitlines()
        raise LlmcError(
            f"the graph of the file makes no sense: {lines[0] if lines else type(error).__name__}",
            at=str(file.path),
            hint="the file is damaged: export it again",
        ) from error


def _is_known(node: Any) -> bool:
    return node.op in TABLE and node.domain in (None, "", "ai.onnx")


def _unknown(node: Any, places: Mapping[str, Source]) -> Problem:
    domain = node.domain or ""
    name = node.op if domain in ("", "ai.onnx") else f"{domain}.{node.op}"
    advice = ADVICE.get(node.op, "replace it by ops of docs/onnx.md")
    if domain == "com.microsoft":
        advice = "export without ONNX Runtime's optimisations: llmc does its own"
    return Problem(name, "no such op in llmc", advice, _place(node, places))


def _place(node: Any, places: Mapping[str, Source]) -> Source:
    """The node's name for an error."""
    if node.name:
        return Source(node.name)
    return places.get(node.outputs[0].name, Source()) if node.outputs else Source()


def _source(node: NodeProto) -> Source:
    """Module path and line: the new exporter's metadata, or the old one's `/encoder/layer.0/Add` names."""
    facts = {p.key: p.value for p in node.metadata_props}
    trace = re.findall(r'File "([^"]+)", line (\d+)', facts.get("pkg.torch.onnx.stack_trace", ""))
    line = f"{PureWindowsPath(trace[-1][0]).name}:{trace[-1][1]}" if trace else ""
    try:
        scopes = ast.literal_eval(facts.get("pkg.torch.onnx.name_scopes", "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    if isinstance(scopes, list) and len(scopes) > 1:
        return Source(str(scopes[-2]), line)  # the last scope is the node's own
    path = node.name.strip("/").split("/")
    return Source(".".join(path[:-1]) or node.name, line)


# --- inputs


def _inputs(file: OnnxFile, cleaned: Any) -> list[Node]:
    weights = {t.name for t in file.model.graph.initializer}
    protos = [p for p in file.model.graph.input if p.name not in weights]
    rows = _rows(cleaned)
    names = AxisNames()
    return [_input(file, proto, names, rows.get(proto.name)) for proto in protos]


def _input(file: OnnxFile, proto: Any, names: AxisNames, high: int | None) -> Node:
    kind = proto.type.tensor_type
    if not proto.type.HasField("tensor_type") or kind.elem_type not in DTYPES:
        found = dtype_name(kind.elem_type) if proto.type.HasField("tensor_type") else "not a tensor"
        raise LlmcError(
            f"input {proto.name!r} has a type llmc does not know",
            at=str(file.path),
            found=found,
            hint=f"inputs are tensors of {', '.join(sorted(dtype_name(d) for d in DTYPES))}",
        )
    if not kind.HasField("shape"):
        raise LlmcError(
            f"input {proto.name!r} has no shape", at=str(file.path), hint="export with shapes or dynamic axes"
        )
    dtype, shape = DTYPES[kind.elem_type], _shape(proto.name, kind.shape.dim, names)
    if proto.name == "attention_mask" and dtype != "f32":
        return input_(proto.name, dtype, shape, default=1, low=0, high=1)
    default = 0 if proto.name in SEGMENTS else None
    return input_(proto.name, dtype, shape, default=default, low=None if high is None else 0, high=high)


def _shape(tensor: str, dims: Sequence[Any], names: AxisNames) -> tuple[Dim, ...]:
    known = [int(d.dim_value) if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]
    return tuple(
        symbol(names.name(tensor, axis, len(dims), d.dim_param)) if size is None else size
        for axis, (d, size) in enumerate(zip(dims, known, strict=True))
    )


def _rows(cleaned: Any) -> dict[str, int]:
    """The highest legal value of inputs that look up tables directly."""
    rows: dict[str, int] = {}
    for tensor in cleaned.inputs:
        readers, pending = [], list(tensor.outputs)
        while pending:
            node = pending.pop()
            if node.op in ("Cast", "Identity"):
                pending += [r for t in node.outputs for r in t.outputs]
            elif (
                node.op == "Gather"
                and node.attrs.get("axis", 0) == 0
                and isinstance(node.inputs[0], gs.Constant)
            ):
                readers.append(int(node.inputs[0].shape[0]))
        if readers:
            rows[tensor.name] = min(readers) - 1
    return rows


# --- nodes


class _Reader:
    """Imports nodes in order; a name without a value could not be imported."""

    def __init__(self, file: OnnxFile, places: Mapping[str, Source]) -> None:
        self.file, self.places = file, places
        self.tensors = {t.name: t for t in file.model.graph.initializer}
        self.values: dict[str, Value] = {}
        self.problems: list[Problem] = []

    def bind(self, inputs: Sequence[Node]) -> None:
        """Values of the graph's inputs."""
        self.values.update({n.attributes["name"]: n for n in inputs})

    def output(self, name: str) -> Node:
        """A graph output."""
        value = self._value(name)
        assert value is not None
        return Call("output", (value,), {}, 1, self.file.opset, Source(name)).node(0)

    def read(self, node: Any) -> None:
        """Import one node."""
        given = [self._value(t.name) if t.name else None for t in node.inputs]
        if any(v is None and t.name for v, t in zip(given, node.inputs, strict=True)):
            return  # what it reads has been reported
        used = max((i + 1 for i, t in enumerate(node.outputs) if t.name), default=0)
        source = self.places.get(node.outputs[0].name, Source(node.name))
        try:
            call = Call(node.op, tuple(given), _attributes(node), used, self.file.opset, source)
            sizes = on_sizes(call)
            made = TABLE[node.op](call) if sizes is None else sizes
        except UnsupportedError as problem:
            self._note(node, problem.reason, problem.advice)
        except LlmcError as error:
            self._note(node, error.problem.split(": ", 1)[-1], error.hint or "")
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, StopIteration) as error:
            reason = f"inputs or attributes do not fit the op ({type(error).__name__}: {error})"
            self._note(node, reason, "is the file damaged?")
        else:
            self._keep(node, made if isinstance(made, tuple) else (made,))

    def _keep(self, node: Any, made: Sequence[Value]) -> None:
        wanted = [t.name for t in node.outputs]
        for name, value in zip(wanted, made, strict=False):
            self.values[name] = value
        if any(name for name in wanted[len(made) :]):
            self._note(node, f"{len(wanted)} outputs, of which llmc computes {len(made)}", "")

    def _note(self, node: Any, reason: str, advice: str) -> None:
        self.problems.append(Problem(node.op, reason, advice, _place(node, self.places)))

    def _value(self, name: str) -> Value | None:
        """What a tensor is, weights as constants when first read."""
        if name not in self.values and name in self.tensors:
            array = values(self.tensors[name], self.file.path)
            self.values[name] = constant(array, name, Source(name.rpartition(".")[0]))
        return self.values.get(name)


def _attributes(node: Any) -> dict[str, Any]:
    """Attributes with tensors as arrays, all floats in f32."""
    return {k: _plain(v.values) if isinstance(v, gs.Constant) else v for k, v in node.attrs.items()}


def _plain(array: Any) -> np.ndarray[Any, Any]:
    wide = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return np.asarray(array.astype(np.float32) if wide else array)
