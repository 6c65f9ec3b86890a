"""A graph -> a model of ONNX, its weights apart until they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import sympy
from onnx import helper

from llmc import __version__
from llmc.compiler.dims import dim_text
from llmc.compiler.frontends.onnx_own import DIMS, PAST, PRESENT, PRODUCER, STATES, bounds_text
from llmc.compiler.frontends.report import report
from llmc.compiler.graph import Graph, Node
from llmc.compiler.to_onnx.control import write_nodes
from llmc.compiler.to_onnx.emitter import OPSET, OPSET_BLOCKS, Body, Emitter, Step
from llmc.compiler.to_onnx.products import read_otherwise
from llmc.compiler.to_onnx.tensors import Tensor, kind_of
from llmc.compiler.to_onnx.tokens import on_all_rows
from llmc.errors import LlmcError

_VERSIONS = {OPSET: 9, OPSET_BLOCKS: 10}  # opset -> the oldest version of the format that has it
_HINT = "docs/onnx.md says what can be written; `llmc opt -o FILE.txt` writes any graph"
Values = Mapping[str, Node]


@dataclass(frozen=True)
class Model:
    """A model without its initialisers, and these by name."""

    proto: onnx.ModelProto
    tensors: Mapping[str, Tensor]


def to_model(graph: Graph, facts: Mapping[str, str], name: str = "graph") -> Model:
    """A verified graph as a model.

    Args:
        facts: metadata.

    Raises:
        LlmcError: there are ops that cannot be said in ONNX, all of them in one error; or two of inputs, outputs and
            states would have one name.
    """
    graph = on_all_rows(graph)
    given, taken = _signature(graph)
    e = Emitter(graph, [*given, *taken], _places(given), read_otherwise(graph))
    e.root.values.update({node: (name,) for name, node in given.items()})
    write_nodes(e, graph)
    values = {name: e.value(node) for name, node in taken.items()}
    if e.problems:
        raise _unwritten(report(e.problems, _HINT, by_place=False))
    names = _own_names(e, values, given)
    proto = helper.make_model(
        _proto(e, names, given, taken, name),
        opset_imports=[helper.make_opsetid("", e.opset)],
        ir_version=_VERSIONS[e.opset],
        producer_name=PRODUCER,
        producer_version=__version__,
    )
    helper.set_model_props(proto, {**facts, **_own(graph)})
    return Model(proto, e.tensors.held)


def _own(graph: Graph) -> dict[str, str]:
    """What an import needs to make the same graph of it."""
    found = {DIMS: bounds_text(graph.dims)} if graph.dims else {}
    states = {node.attributes["name"]: node.attributes["grows"] for node in graph.states}
    return found | ({STATES: json.dumps(states)} if states else {})


def _unwritten(error: LlmcError) -> LlmcError:
    """What `report` says of an import, of an export."""
    problem = error.problem.replace("of the model cannot be imported", "of the graph cannot be said in ONNX")
    return LlmcError(problem, found=error.found, hint=error.hint)


def _signature(graph: Graph) -> tuple[Values, Values]:
    """What the model takes and what it gives, states among them."""
    given = [(node.attributes["name"], node) for node in graph.inputs]
    given += [(f"{PAST}{node.attributes['name']}", node) for node in graph.states]
    taken = [*graph.outputs.items(), *((f"{PRESENT}{n}", node) for n, node in graph.updates.items())]
    names = [name for name, _ in (*given, *taken)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        hint = "ONNX has one namespace for inputs and outputs: give one of them another name"
        raise LlmcError(f"two of inputs, outputs and states would be called {twice!r}", hint=hint)
    return dict(given), dict(taken)


def _places(given: Values) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    for name, node in given.items():
        for axis, size in enumerate(node.shape):
            if isinstance(size, sympy.Symbol):
                found.setdefault(size.name, (name, axis))
    return found


def _own_names(e: Emitter, values: Mapping[str, str], given: Values) -> Mapping[str, str]:
    """Value -> the output that it is called by; what has a name already is copied."""
    made = {name for step in e.root.steps for name in step.outputs}
    names: dict[str, str] = {}
    for output, value in values.items():
        if value in made and value not in names:
            names[value] = output
        else:
            e.copy(value, output)
    return names


# --- protobuf


def _proto(e: Emitter, names: Mapping[str, str], given: Values, taken: Values, name: str) -> onnx.GraphProto:
    steps = _read(e.root.steps, {*names, *taken})
    inputs, outputs = ([_info(n, node) for n, node in side.items()] for side in (given, taken))
    return helper.make_graph([_node(s, names) for s in steps], name, inputs, outputs)


def _read(steps: Sequence[Step], wanted: set[str]) -> list[Step]:
    """Those whose values are read."""
    kept: list[Step] = []
    for step in reversed(steps):
        if wanted & {*step.outputs}:
            kept.append(step)
            wanted |= set(_reads(step))
    return kept[::-1]


def _reads(step: Step) -> Iterator[str]:
    yield from step.inputs
    for value in step.attributes.values():
        if isinstance(value, Body):
            yield from (name for name, _ in value.outputs)
            for inner in value.steps:
                yield from _reads(inner)


def _node(step: Step, names: Mapping[str, str]) -> onnx.NodeProto:
    attributes = {k: _body(v, names) if isinstance(v, Body) else v for k, v in step.attributes.items()}
    inputs, outputs = ([names.get(n, n) for n in part] for part in (step.inputs, step.outputs))
    return helper.make_node(step.kind, inputs, outputs, step.name, **attributes)


def _body(body: Body, names: Mapping[str, str]) -> onnx.GraphProto:
    steps = _read(body.steps, {name for name, _ in body.outputs})
    inputs, outputs = ([_info(n, node) for n, node in side] for side in (body.inputs, body.outputs))
    return helper.make_graph([_node(s, names) for s in steps], "body", inputs, outputs)


def _info(name: str, node: Node) -> Any:
    shape = [d if isinstance(d, int) else dim_text(d) for d in node.shape]
    return helper.make_tensor_value_info(name, kind_of(node.dtype), shape)
