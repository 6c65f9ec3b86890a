"""The interpreter: runs a graph with the ops' NumPy references. Slow and plain, it is the tests' oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import sympy

from llmc.compiler.constraints import check_sizes
from llmc.compiler.counted import counted_dims
from llmc.compiler.dims import Dim, dim_names, evaluate
from llmc.compiler.graph import DTYPES, Graph, Node, results_of
from llmc.compiler.ops import OPS
from llmc.compiler.ops.faults import fault_place
from llmc.compiler.ops.float_steps import makes_levels
from llmc.compiler.ops.ragged import kept
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
Watch = Callable[[Node, Array], None]


def run(graph: Graph, inputs: Mapping[str, Array], watch: Watch | None = None) -> dict[str, Array]:
    """The outputs of `graph`, its states as a session begins with them.

    Args:
        graph: a verified graph.
        inputs: name -> array of exactly the input's dtype; an input with a default may be left out.
        watch: called with every node of one result and its value, in execution order, but not inside bodies; it must
            not write to the value.

    Returns:
        Output name -> array that shares no memory with inputs or constants.

    Raises:
        LlmcError: an input is unknown, missing, of wrong dtype or shape, or out of bounds, or sizes do not fit.
    """
    return step(graph, inputs, {}, watch)[0]


def step(
    graph: Graph, inputs: Mapping[str, Array], states: Mapping[str, Array], watch: Watch | None = None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The outputs of `graph` and the states after it: one call of a session.

    Args:
        graph, inputs, watch: as of `run`.
        states: name -> value, of all states of the session; what is not there is as a session begins, empty along the
            axis that grows and zeros elsewhere.

    Returns:
        The outputs, and all states of the session after the call, updated or not.

    Raises:
        LlmcError: as `run`; or a state is of wrong dtype or shape, or would outgrow its dim.
    """
    sizes = sizes_of(graph, inputs, states)
    given: dict[Any, Array] = {**inputs}
    given.update((node, states[n]) for node in graph.states if (n := node.attributes["name"]) in states)
    outputs, updated = _run(graph, given, sizes, watch)
    return outputs, {**states, **updated}


def sizes_of(
    graph: Graph, inputs: Mapping[str, Array], states: Mapping[str, Array] = MappingProxyType({})
) -> dict[str, int]:
    """The size of every dim, those too that the data decides.

    Raises:
        LlmcError: as `step`.
    """
    sizes = bind(graph, inputs, states)
    for name, mask in counted_dims(graph).items():
        sizes[name] = int(kept(value_of(mask, [], inputs, sizes)).sum())
    check_sizes(graph, sizes)
    return sizes


def run_body(body: Graph, operands: Sequence[Array], sizes: Mapping[str, int]) -> tuple[Array, ...]:
    """The outputs of the body of a loop or branch, one operand for each of its inputs."""
    names = (node.attributes["name"] for node in body.inputs)
    return tuple(_run(body, dict(zip(names, operands, strict=True)), sizes)[0].values())


def _run(
    graph: Graph, given: Mapping[Any, Array], sizes: Mapping[str, int], watch: Watch | None = None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Outputs and next states for what was checked; values are dropped when nothing reads them any more.

    Args:
        given: inputs by name, states by node.
    """
    remaining = {node: len(users) for node, users in graph.users.items()}
    for node in graph.roots:
        remaining[node] += 1
    values: dict[Node, Any] = {}
    exact = makes_levels(graph)
    for node in graph.nodes:
        values[node] = value_of(node, [values[i] for i in node.inputs], given, sizes, exact)
        if watch is not None and node.type.dtype in DTYPES:
            watch(node, values[node])
        for used in node.inputs:
            remaining[used] -= 1
        for used in {node, *node.inputs}:
            if not remaining[used]:
                del values[used]
    named = ({name: np.array(values[n]) for name, n in r.items()} for r in (graph.outputs, graph.updates))
    return next(named), next(named)


def run_at(node: Node, sizes: Mapping[str, int]) -> Array:
    """The value of a node that depends on no input, for given sizes of the dims."""
    values: dict[Node, Any] = {}
    for step in Graph((), {"value": node}).nodes:
        values[step] = value_of(step, [values[i] for i in step.inputs], {}, sizes)
    result: Array = values[node]
    return result


def value_of(
    node: Node,
    arguments: list[Any],
    given: Mapping[Any, Array],
    sizes: Mapping[str, int],
    exact: bool = False,
) -> Any:
    """The value of a node; `given` as of `_run`; `exact`: in the kernels' own steps where the op has them."""
    if node.op == "input" and node.attributes["name"] in given:
        return np.asarray(given[node.attributes["name"]])
    if node in given:
        return np.asarray(given[node])
    declared = OPS[node.op]
    extra: dict[str, Any] = {"sizes": sizes} if declared.symbolic else {}
    extra |= {"run": run_body} if declared.bodies else {}
    meaning = declared.steps if exact and declared.steps is not None else declared.reference
    try:
        value = meaning(*arguments, **node.attributes, **extra)
    except (ValueError, IndexError) as error:  # NumPy's: of nothing there is no largest, and no row to take
        raise _without_value(node, sizes, str(error)) from error
    parts = value if isinstance(value, tuple) else (value,)
    for part, kind in zip(parts, results_of(node.type), strict=True):
        shape = tuple(evaluate(d, sizes) for d in kind.shape)
        if part.dtype != DTYPES[kind.dtype] or part.shape != shape:
            gives, wanted = f"{part.dtype}{list(part.shape)}", f"{DTYPES[kind.dtype]}{list(shape)}"
            problem = f"the reference of {node.op} gives {gives}, its type rule {wanted}"
            if not declared.origin:  # its type holds for other sizes: a slice begins or ends outside, say
                raise _without_value(node, sizes, problem)
            raise LlmcError(
                f"{declared.origin}: {problem}", at=fault_place(declared.reference), found=f"at {node!r}"
            )
    return value


def _without_value(node: Node, sizes: Mapping[str, int], reason: str) -> LlmcError:
    read = frozenset().union(*(dim_names(d) for n in (node, *node.inputs) for d in _dims_of(n)))
    at_sizes = ", ".join(f"{name} = {sizes[name]}" for name in sorted(read & sizes.keys()))
    problem = f"{node.op} has no value" + (f" where {at_sizes}" if at_sizes else "")
    hint = "bounds of dims decide which sizes there are; a state that grows holds nothing at first"
    return LlmcError(problem, at=str(node.source) or None, found=f"{reason}, at {node!r}", hint=hint)


def _dims_of(node: Node) -> tuple[Dim, ...]:
    return tuple(d for kind in results_of(node.type) for d in kind.shape)


def bind(
    graph: Graph, inputs: Mapping[str, Array], states: Mapping[str, Array] = MappingProxyType({})
) -> dict[str, int]:
    """Check `inputs` and `states` against the graph's signature and return the size of every dim.

    Raises:
        LlmcError: as `step`.
    """
    _check_names(graph, inputs)
    sizes: dict[str, int] = {}
    given = [*_given(graph.states, states), *_given(graph.inputs, inputs)]
    for node in graph.states:
        if node.attributes["name"] not in states and node.attributes["grows"] is not None:
            _bind_dim(graph, node, str(node.shape[node.attributes["grows"]]), 0, sizes)
    for node, array in given:
        _check_kind(node, array)
        for d, size in zip(node.shape, array.shape, strict=True):
            if isinstance(d, sympy.Symbol):
                _bind_dim(graph, node, str(d), size, sizes)
    for node, array in given:
        for axis, (d, size) in enumerate(zip(node.shape, array.shape, strict=True)):
            _check_size(node, axis, d, size, sizes)
        if node.op == "input":
            _check_range(node, array)
    _check_states(graph, sizes)
    return sizes


def _check_names(graph: Graph, inputs: Mapping[str, Array]) -> None:
    known = [node.attributes["name"] for node in graph.inputs]
    for name in inputs:
        if name not in known:
            raise LlmcError(
                f"there is no input {name!r}", hint=f"the inputs are: {', '.join(known) or 'none'}"
            )
    for node in graph.inputs:
        if node.attributes["default"] is None and node.attributes["name"] not in inputs:
            raise LlmcError(f"input {node.attributes['name']!r} is missing", hint=f"it is {node.type}")


def _given(nodes: tuple[Node, ...], values: Mapping[str, Array]) -> list[tuple[Node, Array]]:
    named = ((node, node.attributes["name"]) for node in nodes)
    return [(node, np.asarray(values[name])) for node, name in named if name in values]


def _check_states(graph: Graph, sizes: Mapping[str, int]) -> None:
    """A session knows the sizes of its states, and they stay within the bounds of their dims."""
    for node in graph.states:
        name, grows = node.attributes["name"], node.attributes["grows"]
        for d in node.shape:
            if unknown := sorted(dim_names(d) - sizes.keys()):
                raise LlmcError(f"state {name!r} has no size {unknown[0]} yet", hint=f"it is {node.type}")
        if grows is not None and name in graph.updates:
            length, after = str(node.shape[grows]), evaluate(graph.updates[name].shape[grows], sizes)
            if after > graph.dims[length].high:
                hint = f"{length} is at most {graph.dims[length].high}"
                raise LlmcError(f"state {name!r} would have {length} = {after}", hint=hint)


def _refused(node: Node, problem: str, array: Array, hint: str | None = None) -> LlmcError:
    found = f"{array.dtype}{list(array.shape)}"
    return LlmcError(
        f"{node.op} {node.attributes['name']!r} {problem}", found=found, hint=hint or f"it is {node.type}"
    )


def _check_kind(node: Node, array: Array) -> None:
    if array.dtype != DTYPES[node.dtype]:
        raise _refused(node, f"has dtype {array.dtype}, not {DTYPES[node.dtype]}", array)
    if array.ndim != node.type.rank:
        raise _refused(node, f"has {array.ndim} axes, not {node.type.rank}", array)


def _bind_dim(graph: Graph, node: Node, name: str, size: int, sizes: dict[str, int]) -> None:
    what = f"{node.op} {node.attributes['name']!r}"
    if sizes.setdefault(name, size) != size:
        other = "another input" if node.op == "input" and not graph.states else "another"
        raise LlmcError(f"{what} has {name} = {size}, {other} has {sizes[name]}", hint=f"it is {node.type}")
    low, high = graph.dims[name]
    if not low <= size <= high:
        raise LlmcError(f"{what} has {name} = {size}", hint=f"{name} is {low} to {high}")


def _check_size(node: Node, axis: int, d: Dim, size: int, sizes: Mapping[str, int]) -> None:
    wanted = evaluate(d, sizes)
    if size != wanted:
        raise LlmcError(
            f"{node.op} {node.attributes['name']!r} has size {size} on axis {axis}, not {wanted}",
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
