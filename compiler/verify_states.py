"""What the verifier asks of states: in one function, and between the functions of a module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmc.compiler.dims import Dim, dim_names, evaluate
from llmc.compiler.equality import same_type
from llmc.compiler.graph import Graph, Node, TensorType
from llmc.compiler.module import Module, State
from llmc.compiler.ops.rules import same_dim
from llmc.errors import LlmcError


def broken(problem: str, node: Node | None = None, **details: Any) -> LlmcError:
    """An invariant that a graph breaks, and where."""
    at = f"{node.op} {node.type} {node.source}".rstrip() if node else None
    return LlmcError(f"invalid graph: {problem}", at=at, **details)


def growing_dims(graph: Graph) -> frozenset[str]:
    """The dims whose size is how much a state holds: they may be 0."""
    return frozenset(State.of(node).length for node in graph.states) - {""}


def check_states(graph: Graph) -> None:
    """The invariants of states in one function; `verify` lists them."""
    states = {node.attributes["name"]: node for node in graph.states}
    for name, node in graph.updates.items():
        if name not in states:
            raise broken(f"the next value of {name!r} is of no state in Graph.states", node)
        _check_update(states[name], node)
    for node in graph.nodes:
        if node.op == "append":
            _check_append(graph, node)
    _check_beginnings(graph)
    _check_slices(graph)
    _check_growing([State.of(node) for node in graph.states], graph.updates)


def _check_update(state: Node, update: Node) -> None:
    """The next value has the state's type, but for the size of the axis that grows."""
    grows = state.attributes["grows"]
    wanted = state.type
    if grows is not None and update.type.rank == state.type.rank:
        wanted = TensorType(state.dtype, _with_axis(state.shape, grows, update.shape[grows]))
    if not same_type(update.type, wanted):
        name = state.attributes["name"]
        raise broken(f"the next value of state {name!r} is {update.type}, not {wanted}", update)


def _with_axis(shape: tuple[Dim, ...], axis: int, size: Dim) -> tuple[Dim, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _check_append(graph: Graph, node: Node) -> None:
    state = node.inputs[0]
    if state.op != "state" or state.attributes["grows"] != 0:
        raise broken("it does not append to a state whose first axis grows", node)
    if graph.updates.get(state.attributes["name"]) is not node:
        raise broken(f"it is not the next value of state {state.attributes['name']!r}", node)


def _check_beginnings(graph: Graph) -> None:
    for node in graph.states:
        name = State.of(node).length
        if name in graph.dims and graph.dims[name].low > 0:
            raise broken(
                f"dim {name!r}, along which a state grows, is at least {graph.dims[name].low}",
                node,
                hint="a session begins with nothing: its lower bound is 0",
            )


def _check_slices(graph: Graph) -> None:
    """A slice lies inside what it is of when a session begins too: any function may be called first.

    Kernels do not look: they would read what lies beside a state, such as rows of the sequence before a reset.
    """
    growing = growing_dims(graph)
    least = {name: 0 if name in growing else bounds.low for name, bounds in graph.dims.items()}
    for node in graph.nodes if growing else ():
        if node.op != "slice":
            continue
        size = node.inputs[0].shape[node.attributes["axis"]]
        ends: tuple[Dim, ...] = (node.attributes["start"], node.attributes["stop"], size)
        names = frozenset().union(*map(dim_names, ends))
        if names.isdisjoint(growing) or not names <= least.keys():
            continue
        start, stop, length = (evaluate(d, least) for d in ends)
        if not 0 <= start <= stop <= length:
            where = ", ".join(f"{name} = {least[name]}" for name in sorted(names))
            raise broken(
                "a slice reaches outside when a session begins",
                node,
                found=f"{ends[0]} to {ends[1]} of {size}: {start} to {stop} of {length} where {where}",
                hint="clamp its ends by sympy.Max and sympy.Min, or raise the lower bound of another dim",
            )


def _check_growing(states: Iterable[State], updates: Mapping[str, Node]) -> None:
    """States that share a dim are equally long: it grows in all of them, and by as much."""
    states = list(states)
    for length in sorted({s.length for s in states} - {""}):
        grown = [s for s in states if s.length == length]
        for state in states:
            if state not in grown and any(length in dim_names(d) for d in state.type.shape):
                raise broken(f"dim {length!r} of state {state.name!r} grows in state {grown[0].name!r}")
        after = [_length_after(s, updates.get(s.name)) for s in grown]
        if not all(same_dim(a, after[0]) for a in after):
            named = ", ".join(f"{s.name!r} to {a}" for s, a in zip(grown, after, strict=True))
            raise broken(f"states that share the dim {length!r} do not grow together", found=named)


def _length_after(state: State, update: Node | None) -> Dim:
    assert state.grows is not None
    return state.type.shape[state.grows] if update is None else update.shape[state.grows]


def check_functions(module: Module) -> None:
    """The invariants between functions; `verify_module` lists them."""
    dims, states = module.dims, module.states
    for function, graph in module.functions.items():
        at = f"function {function}"
        for name, bounds in graph.dims.items():
            if name in dims and bounds != dims[name]:
                found = f"{bounds.low}..{bounds.high}, elsewhere {dims[name].low}..{dims[name].high}"
                raise LlmcError(f"dim {name!r} has other bounds in another function", at=at, found=found)
        for node in graph.states:
            state = State.of(node)
            known = states[state.name]
            if state.grows != known.grows or not same_type(state.type, known.type):
                problem = f"state {state.name!r} is another in another function"
                raise LlmcError(problem, at=at, found=f"{state}, elsewhere {known}")
        try:
            _check_growing(states.values(), graph.updates)
        except LlmcError as error:
            raise LlmcError(error.problem, at=at, found=error.found) from None
    _check_sizes_known(module)


def _check_sizes_known(module: Module) -> None:
    """A call gives the sizes of a state that does not depend on how much the session holds."""
    inputs = [node for graph in module.functions.values() for node in graph.inputs]
    given = {str(d) for node in inputs if node.attributes["default"] is None for d in node.shape}
    for state in module.states.values():
        names = frozenset().union(*map(dim_names, state.type.shape)) - {state.length}
        if unknown := sorted(names - given):
            problem = f"no input of any function gives the size {unknown[0]!r} of state {state.name!r}"
            raise LlmcError(f"invalid module: {problem}", found=str(state))
