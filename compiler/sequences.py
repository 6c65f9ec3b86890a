"""Sizes of the dims, call by call, for sessions that try a module: a prompt, the next token, several tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import sympy

from llmc.compiler.constraints import constraints
from llmc.compiler.dims import Bounds, dim_names, evaluate
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module, State
from llmc.compiler.plan_states import state_use

Sizes = dict[str, int]
CALLS = (5, 1, 3)  # what a session is given one after the other
READ = 4  # rows of a state that a function reads and leaves as it is
SIZES = (1, 5)  # every dim at each of these, or at its nearest bound


def calls(
    module: Module, batch: int, others: Sequence[int], held: Mapping[str, int] = MappingProxyType({})
) -> Iterator[tuple[str, Sizes]]:
    """The calls of one session: names of functions and the sizes of all their dims.

    Functions that begin states come first, once. Those that have states follow, once for each of `others`; what has
    none is called once. A call that does not fit the session, or the bounds of its dims, is left out.

    Args:
        batch: size of the dim `batch`, or the nearest within its bounds.
        others: likewise of all other dims, at each call.
        held: sizes of dims of states as the session begins.
    """
    held = dict(held)
    for name, graph in sorted(module.functions.items(), key=lambda item: not _begins(item[1])):
        for other in others[: 1 if _begins(graph) or not graph.states else None]:
            sizes = _fitting(graph, batch, other, held)
            if sizes is not None:
                held |= _after(graph, sizes)
                yield name, sizes


def sessions(graph: Graph) -> list[list[Sizes]]:
    """The calls of sessions of one function at a small and an odd batch; one call each if it has no states.

    What it only reads is there from the start, as another function may have left it.
    """
    tried = ((size, CALLS if graph.states else (size,)) for size in SIZES)
    return [
        [sizes for _, sizes in calls(Module.of(graph), batch, others, _begun(graph, batch, others[0]))]
        for batch, others in tried
    ]


def _begun(graph: Graph, batch: int, other: int) -> Sizes:
    """Sizes of the dims of states before the first call."""
    states = [State.of(node) for node in graph.states]
    names = {name for state in states for d in state.type.shape for name in dim_names(d)}
    held = {name: _wanted(graph, name, batch, other) for name in names}
    for state in states:
        if state.length:
            held[state.length] = _within(READ * (state.name not in graph.updates), graph.dims[state.length])
    return held


def _begins(graph: Graph) -> bool:
    """Whether the function sets states and reads none."""
    uses = [state_use(graph, node.attributes["name"]) for node in graph.states]
    return "replaced" in uses and not any(graph.users[node] for node in graph.states)


def _fitting(graph: Graph, batch: int, other: int, held: Mapping[str, int]) -> Sizes | None:
    """Sizes near those wanted, those that the session holds as they are; None where the call is not possible."""
    growing = {State.of(node).length for node in graph.states} - {""}
    sizes = {name: _wanted(graph, name, batch, other) for name in graph.dims}
    sizes |= dict.fromkeys(growing, 0) | {name: size for name, size in held.items() if name in sizes}
    after = _after(graph, sizes)
    fits = all(graph.dims[n].low <= sizes[n] and after[n] <= graph.dims[n].high for n in growing)
    if graph.states:  # a session that holds too little; where there are none it is the caller's to know
        fits = fits and not any(constraint.refusal(sizes) for constraint in constraints(graph))
    given = {str(d) for node in graph.inputs if node.attributes["default"] is None for d in node.shape}
    return sizes if fits and after.keys() <= {*given, *growing, *held} else None


def _wanted(graph: Graph, name: str, batch: int, other: int) -> int:
    return _within(batch if name == "batch" else other, graph.dims[name])


def _within(size: int, bounds: Bounds) -> int:
    return min(max(size, bounds.low), bounds.high)


def _after(graph: Graph, sizes: Mapping[str, int]) -> Sizes:
    """The sizes of the dims of states after a call."""
    found: Sizes = {}
    for node in graph.states:
        after = graph.updates.get(node.attributes["name"], node)
        for axis, d in enumerate(node.shape):
            if isinstance(d, sympy.Symbol):
                found[str(d)] = evaluate(after.shape[axis], sizes)
    return found
