"""A parsed ONNX file -> Graph: its inputs with their dims and bounds, and its outputs.

Nothing is run by onnxruntime. Nodes that no output depends on are not read.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from llmc.compiler.dims import Bounds, Dim, symbol
from llmc.compiler.frontends import converters, onnx_agreed, onnx_bounds, onnx_types
from llmc.compiler.frontends.axes import SEGMENTS, Asked
from llmc.compiler.frontends.imported import LARGEST, MAX_BATCH
from llmc.compiler.frontends.onnx_axes import Axes
from llmc.compiler.frontends.onnx_call import Call
from llmc.compiler.frontends.onnx_check import in_order
from llmc.compiler.frontends.onnx_file import OnnxFile
from llmc.compiler.frontends.onnx_kinds import DTYPES, dtype_name, held_in
from llmc.compiler.frontends.onnx_own import PAST, PRESENT, Own, own
from llmc.compiler.frontends.onnx_reader import NO_OP, Reader
from llmc.compiler.frontends.onnx_scope import Scope
from llmc.compiler.frontends.onnx_values import MOST_AXES, Attributes, Inputs, Items
from llmc.compiler.frontends.report import Problem, report
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import input_, state_
from llmc.errors import LlmcError, LlmcWarning

__all__ = ["to_graph"]

converters.load("onnx_")  # fills TABLE

_TOLD = 5  # nodes that a warning names
_HINT = "change these parts of the model and export it again{}; docs/onnx.md lists the ops llmc reads"


def to_graph(
    file: OnnxFile,
    bounds: Mapping[str, tuple[int, int]],
    dims: Mapping[str, Asked] = MappingProxyType({}),
    sums: Mapping[str, Dim] = MappingProxyType({}),
) -> Graph:
    """Import a file.

    Args:
        file: from `onnx_file.read`.
        bounds: of `batch`, `seq` and, under the key "", any other dynamic dim.
        dims: sizes of axes that would be dynamic, or bounds of those that stay so, by name.
        sums: what some axes always are, in others, as a first reading has found.

    Raises:
        LlmcError: ops, dtypes or shapes that are not supported, all of them in one error.
    """
    proto, reader = file.model.graph, Reader(file)
    opsets = {o.domain: o.version for o in file.model.opset_import}
    weights = {t.name: t for t in proto.initializer}
    scope = Scope(reader, opsets, weights, onnx_types.declared(proto))
    said = own(file.model)
    axes = Axes(str(file.path), dims, said, sums)
    inputs = _inputs(file, axes, said)
    for node, info in zip(inputs, _live(file), strict=True):
        scope.keep(info.name, node, info.type.tensor_type.elem_type)
    reader.read_all(proto.node, [o.name for o in proto.output], scope)
    if reader.problems:
        raise report(reader.problems, _hint(inputs, reader.problems), by_place=False)
    found = {str(name): size for name, size in reader.sums.items() if axes.is_free(name)}
    if found and not sums:
        return to_graph(file, bounds, dims, found)
    outputs = {o.name: _output(file, scope, o) for o in proto.output}
    sizes, settled = onnx_bounds.sized(inputs, reader.numbers)
    _tell_trusted(file, {place: what for place, what in reader.trusted.items() if place not in settled})
    _tell_agreed(file, reader.agreed)
    names = {str(s) for n in inputs for d in n.shape if not isinstance(d, int) for s in d.free_symbols}
    graph = _function(
        inputs, outputs, {n: _bounds(n, said, {**bounds, **axes.bounds}) for n in sorted(names)}
    )
    if said.dims:  # one of llmc's own says its bounds itself
        return graph
    graph = onnx_bounds.bounded(onnx_bounds.with_sizes(graph, sizes))
    empty = {name for name in reader.empty if axes.is_free(symbol(name))}
    return onnx_bounds.with_empty(graph, axes.bounds, empty)


def _function(inputs: Sequence[Node], outputs: Mapping[str, Node], dims: Mapping[str, Bounds]) -> Graph:
    """The graph; of a file of llmc's own its states are states again."""
    states = tuple(node for node in inputs if node.op == "state")
    after = {f"{PRESENT}{node.attributes['name']}": node.attributes["name"] for node in states}
    return Graph(
        tuple(node for node in inputs if node.op == "input"),
        {name: node for name, node in outputs.items() if name not in after},
        dims,
        states,
        {after[name]: node for name, node in outputs.items() if name in after},
    )


def _bounds(name: str, said: Own, bounds: Mapping[str, tuple[int, int]]) -> Bounds:
    """What a file of llmc's own says, unless less is asked for."""
    asked = Bounds(*bounds.get(name, bounds[""]))
    if name not in said.dims:
        return asked
    low, high = said.dims[name]
    return Bounds(low, min(high, asked.high) if name == "batch" and asked.high != MAX_BATCH else high)


def _hint(inputs: Sequence[Node], problems: Sequence[Problem]) -> str:
    """What to do; sizes that always are the same often decide what an op of a file asks of them, not whether it is."""
    open_axes = sorted({str(d) for node in inputs for d in node.shape if not isinstance(d, int)})
    if not open_axes or all(problem.reason == NO_OP for problem in problems):
        return _HINT.format("")
    fix = f", or say that one of {', '.join(open_axes)} always has one size: --dim {open_axes[-1]}=SIZE"
    return _HINT.format(fix)


def _tell_trusted(file: OnnxFile, trusted: Mapping[str, str]) -> None:
    """A result whose shape numbers at run time decide has the shape that the file declares, whatever they are."""
    if not trusted:
        return
    named = ", ".join(f"{node} ({what})" for node, what in list(trusted.items())[:_TOLD])
    more = f" and {len(trusted) - _TOLD} more" if len(trusted) > _TOLD else ""
    told = (
        f"{file.path}: the shape that the file declares is taken for what numbers at run time decide: "
        f"{named}{more}; numbers that give another shape are not noticed and give a wrong answer"
    )
    warnings.warn(LlmcWarning(told), stacklevel=3)


def _tell_agreed(file: OnnxFile, agreed: Mapping[str, set[onnx_agreed.Pair]]) -> None:
    """Which sizes the file is for: others are refused, call by call."""
    if not agreed:
        return
    first, more = next(iter(agreed)), f" and {len(agreed) - 1} more" if len(agreed) > 1 else ""
    told = (
        f"{file.path}: the sizes that {first}{more} would join differ at some sizes of the inputs, "
        f"and calls at those are refused; they agree for {onnx_agreed.told(agreed)}"
    )
    warnings.warn(LlmcWarning(told), stacklevel=3)


def _output(file: OnnxFile, scope: Scope, info: Any) -> Node:
    value = scope.value(info.name)
    if value is None:
        raise LlmcError(
            f"nothing makes the output {info.name!r}",
            at=str(file.path),
            hint="the file is damaged: export it again",
        )
    if isinstance(value, Items):
        raise LlmcError(
            f"the output {info.name!r} is a sequence",
            at=str(file.path),
            hint="outputs are tensors: concatenate it",
        )
    call = Call("output", Inputs((value,)), Attributes({}), 1, 1, Source(info.name))
    node = call.node(0)
    kind = info.type.tensor_type.elem_type
    if kind in DTYPES and held_in(kind, file.doubles) != node.dtype:
        raise LlmcError(
            f"the output {info.name!r} is declared as {dtype_name(kind)}, but it is {node.dtype}",
            at=str(file.path),
            hint="the file is damaged: export it again",
        )
    return node


# --- inputs


def _live(file: OnnxFile) -> list[Any]:
    """The inputs that are no weights."""
    weights = {t.name for t in file.model.graph.initializer}
    return [p for p in file.model.graph.input if p.name not in weights]


def _inputs(file: OnnxFile, axes: Axes, said: Own) -> list[Node]:
    rows = _rows(file.model.graph)
    axes.told(d.dim_param for p in _live(file) for d in p.type.tensor_type.shape.dim)
    made = [_input(file, proto, axes, rows.get(proto.name)) for proto in _live(file)]
    axes.want_met()
    return [_state(node, said) for node in made]


def _state(node: Node, said: Own) -> Node:
    """An input, or the state that it is."""
    name, kind = node.attributes["name"], node.type
    state = name.removeprefix(PAST)
    if state == name or state not in said.states:
        return node
    return state_(state, kind.dtype, kind.shape, grows=said.states[state])


def _input(file: OnnxFile, proto: Any, axes: Axes, high: int | None) -> Node:
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
    dtype, shape = held_in(kind.elem_type, file.doubles), _shape(proto.name, kind.shape.dim, axes)
    if len(shape) > MOST_AXES or any(isinstance(d, int) and d > LARGEST for d in shape):
        raise LlmcError(
            f"input {proto.name!r} has a shape that no tensor has",
            at=str(file.path),
            found=str([d.dim_value for d in kind.shape.dim])[:200],
            hint=f"sizes go up to {LARGEST}, of at most {MOST_AXES} axes",
        )
    if proto.name == "attention_mask" and dtype != "f32":
        return input_(proto.name, dtype, shape, default=1, low=0, high=1)
    if dtype == "f32" and len(shape) == 4:
        axes.of_image(shape[2:])
    default = 0 if proto.name in SEGMENTS else None
    return input_(proto.name, dtype, shape, default=default, low=None if high is None else 0, high=high)


def _shape(tensor: str, dims: Sequence[Any], axes: Axes) -> tuple[Dim, ...]:
    """Sizes that are not there, or below 0, are dynamic."""
    known = [int(d.dim_value) if d.HasField("dim_value") and d.dim_value >= 0 else None for d in dims]
    return tuple(
        axes.size(tensor, axis, len(dims), d.dim_param, rows=known[0] in (None, 1)) if size is None else size
        for axis, (d, size) in enumerate(zip(dims, known, strict=True))
    )


def _rows(graph: Any) -> dict[str, int]:
    """The highest legal value of inputs that look up tables directly."""
    sizes = {t.name: t.dims[0] for t in graph.initializer if t.dims}
    origin = {i.name: i.name for i in graph.input}
    rows: dict[str, int] = {}
    for node in in_order(graph.node, [o.name for o in graph.output], ""):
        if node.op_type in ("Cast", "Identity") and node.input and node.input[0] in origin:
            origin |= {name: origin[node.input[0]] for name in node.output}
        table = sizes.get(node.input[0]) if node.op_type == "Gather" and len(node.input) == 2 else None
        if (
            table is None
            or node.input[1] not in origin
            or any(a.name == "axis" and a.i for a in node.attribute)
        ):
            continue
        name = origin[node.input[1]]
        rows[name] = min(rows.get(name, table - 1), table - 1)
    return rows
