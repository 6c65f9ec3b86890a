"""The interpreter: runs a graph with the ops' NumPy references. Slow and plain, it is the tests' oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sympy

from llmc.compiler.counted import counted_dims
from llmc.compiler.dims import Dim, evaluate
from llmc.compiler.graph import DTYPES, Graph, Node, results_of
from llmc.compiler.ops import OPS
from llmc.compiler.ops.faults import fault_place
from llmc.compiler.ops.ragged import kept
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
Watch = Callable[[Node, Array], None]


def run(graph: Graph, inputs: Mapping[str, Array], watch: Watch | None = None) -> dict[str, Array]:
    """The outputs of `graph`.

    Args:
        graph: a verified graph.
        inputs: name -> array of exactly the input's dtype; an input with a default may be left out.
        watch: called with every node of one result and its value, in execution order, but not inside bodies; it must
            not write to the value.

    Returns:
        Output name -> array that shares no memory with inputs or constants.

    Raises:
        LlmcError: an input is unknown, missing, of wrong dtype or shape, or out of bounds.
    """
    sizes = bind(graph, inputs)
    for name, mask in counted_dims(graph).items():
        sizes[name] = int(kept(_value(mask, [], inputs, sizes)).sum())
    return _run(graph, inputs, sizes, watch)


def run_body(body: Graph, operands: Sequence[Array], sizes: Mapping[str, int]) -> tuple[Array, ...]:
    """The outputs of the body of a loop or branch, one operand for each of its inputs."""
    names = (node.attributes["name"] for node in body.inputs)
    return tuple(_run(body, dict(zip(names, operands, strict=True)), sizes).values())


def _run(
    graph: Graph, inputs: Mapping[str, Array], sizes: Mapping[str, int], watch: Watch | None = None
) -> dict[str, Array]:
    """The outputs for checked inputs; values are dropped when nothing reads them any more."""
    remaining = {node: len(users) for node, users in graph.users.items()}
    for node in graph.outputs.values():
        remaining[node] += 1
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        values[node] = _value(node, [values[i] for i in node.inputs], inputs, sizes)
        if watch is not None and node.type.dtype in DTYPES:
            watch(node, values[node])
        for used in node.inputs:
            remaining[used] -= 1
        for used in {node, *node.inputs}:
            if not remaining[used]:
                del values[used]
    return {name: np.array(values[node]) for name, node in graph.outputs.items()}


def run_at(node: Node, sizes: Mapping[str, int]) -> Array:
    """The value of a node that depends on no input, for given sizes of the dims."""
    values: dict[Node, Any] = {}
    for step in Graph((), {"value": node}).nodes:
        values[step] = _value(step, [values[i] for i in step.inputs], {}, sizes)
    result: Array = values[node]
    return result


def _value(node: Node, arguments: list[Any], inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> Any:
    if node.op == "input" and node.attributes["name"] in inputs:
        return np.asarray(inputs[node.attributes["name"]])
    declared = OPS[node.op]
    extra = {"sizes": sizes} if declared.symbolic else {}
    value = declared.reference(*arguments, **node.attributes, **extra)
    parts = value if isinstance(value, tuple) else (value,)
    for part, kind in zip(parts, results_of(node.type), strict=True):
        shape = tuple(evaluate(d, sizes) for d in kind.shape)
        if part.dtype != DTYPES[kind.dtype] or part.shape != shape:
            gives, wanted = f"{part.dtype}{list(part.shape)}", f"{DTYPES[kind.dtype]}{list(shape)}"
            problem = f"the reference of {node.op} gives {gives}, its type rule {wanted}"
            where = f"{declared.origin}: " if declared.origin else ""
            raise LlmcError(f"{where}{problem}", at=fault_place(declared.reference), found=f"at {node!r}")
    return value


def bind(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, int]:
    """Check `inputs` against the graph's signature and return the size of every dim.

    Raises:
        LlmcError: as `run`.
    """
    known = [node.attributes["name"] for node in graph.inputs]
    for name in inputs:
        if name not in known:
            raise LlmcError(
                f"there is no input {name!r}", hint=f"the inputs are: {', '.join(known) or 'none'}"
            )
    given = [
        (n, np.asarray(inputs[n.attributes["name"]])) for n in graph.inputs if n.attributes["name"] in inputs
    ]
    for node in graph.inputs:
        if node.attributes["default"] is None and node.attributes["name"] not in inputs:
            raise LlmcError(f"input {node.attributes['name']!r} is missing", hint=f"it is {node.type}")
    sizes: dict[str, int] = {}
    for node, array in given:
        _check_kind(node, array)
        for d, size in zip(node.shape, array.shape, strict=True):
            if isinstance(d, sympy.Symbol):
                _bind_dim(graph, node, str(d), size, sizes)
    for node, array in given:
        for axis, (d, size) in enumerate(zip(node.shape, array.shape, strict=True)):
            _check_size(node, axis, d, size, sizes)
        _check_range(node, array)
    return sizes


def _refused(node: Node, problem: str, array: Array, hint: str | None = None) -> LlmcError:
    found = f"{array.dtype}{list(array.shape)}"
    return LlmcError(
        f"input {node.attributes['name']!r} {problem}", found=found, hint=hint or f"it is {node.type}"
    )


def _check_kind(node: Node, array: Array) -> None:
    if array.dtype != DTYPES[node.dtype]:
        raise _refused(node, f"has dtype {array.dtype}, not {DTYPES[node.dtype]}", array)
    if array.ndim != node.type.rank:
        raise _refused(node, f"has {array.ndim} axes, not {node.type.rank}", array)


def _bind_dim(graph: Graph, node: Node, name: str, size: int, sizes: dict[str, int]) -> None:
    name_of_input = node.attributes["name"]
    if sizes.setdefault(name, size) != size:
        raise LlmcError(
            f"input {name_of_input!r} has {name} = {size}, another input has {sizes[name]}",
            hint=f"it is {node.type}",
        )
    low, high = graph.dims[name]
    if not low <= size <= high:
        raise LlmcError(f"input {name_of_input!r} has {name} = {size}", hint=f"{name} is {low} to {high}")


def _check_size(node: Node, axis: int, d: Dim, size: int, sizes: Mapping[str, int]) -> None:
    wanted = evaluate(d, sizes)
    if size != wanted:
        raise LlmcError(
            f"input {node.attributes['name']!r} has size {size} on axis {axis}, not {wanted}",
            hint=f"it is {node.type}",
        )


def _check_range(node: Node, array: Array) -> None:
    low, high = node.attributes["low"], node.attributes["high"]
    outside = np.zeros(array.shape, np.bool_)
    if low is not None:
        outside |= array < low
    if high is not None:
        outside |= array > high
    if outside.any():
        position = tuple(int(i) for i in np.argwhere(outside)[0])
        raise _refused(
            node,
            f"holds {array[position]} at {list(position)}",
            array,
            hint=f"values are {'any' if low is None else low} to {'any' if high is None else high}",
        )
