"""Sizes of the dims, call by call, for sessions that try a module: a prompt, the next token, several tokens.

Sizes are odd and unequal, so that blocks have a rest and exchanged axes show, and go up to the largest that is quick,
for what is wrong may be so from some size on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import sympy

from llmc.compiler.constraints import constraints
from llmc.compiler.counted import given_dims
from llmc.compiler.dims import Bounds, dim_names, evaluate
from llmc.compiler.fitting import fitting
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module, State
from llmc.compiler.plan_states import state_use
from llmc.compiler.work import work
from llmc.errors import LlmcError

Sizes = dict[str, int]
Tried = tuple[int, tuple[int, ...]]  # size of the dim `batch`, and of the first other dim at each call

BATCH = 3
_SESSIONS: tuple[Tried, ...] = (
    (1, (5, 1, 3)),
    (BATCH, (17, 1, 2)),
    (BATCH, (65, 1, 17)),
)  # where there are states
_LONG: tuple[Tried, ...] = ((1, (5, 1, 3)), (BATCH, (17, 1)), (1, (65,)))  # and each call takes seconds
READ = 4  # rows of a state that a function reads and leaves as it is
_SMALL: tuple[Tried, ...] = ((1, (9,)), (BATCH, (1,)), (BATCH, (17,)))
_ANY = (2, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512)
_STEPS = (1, 2, 4, 8, 16, 32, 64)  # what sizes are made multiples of, where they do not fit otherwise
_LARGER = (33, 65, 129, 257, 513, 1025)
_USUAL = 65  # a size to try as long as it is no trouble; larger ones have to be quick
_TROUBLE = 10**11  # operations of the interpreter: some seconds
_SLOW = 2 * 10**10  # likewise: a second or two
_QUICK = 3 * 10**8  # likewise: some hundredths


def calls(
    module: Module, batch: int, others: Sequence[int], held: Mapping[str, int] = MappingProxyType({})
) -> Iterator[tuple[str, Sizes]]:
    """The calls of one session: names of functions and the sizes of all their dims.

    Functions that begin states come first, once. Those that have states follow, once for each of `others`; what has
    none is called once. A call that does not fit the session, or the bounds of its dims, is left out.

    Args:
        batch: size of the dim `batch`, or the nearest within its bounds.
        others: likewise of the first other dim at each call; the second is larger by 1, and so on, or all are equal
            where that does not fit.
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
    """The calls of sessions of one function, each of other sizes; one call each if it has no states.

    What it only reads is there from the start, as another function may have left it.

    Raises:
        LlmcError: no call fits the bounds of the dims and what the graph asks of them.
    """
    found: list[list[Sizes]] = []
    _add(graph, tried(graph), found)
    if not found:  # no such sizes fit each other
        _add(graph, [(BATCH, (n,)) for n in _ANY], found)
    if not found:
        raise _untried(graph)
    return found


def _untried(graph: Graph) -> LlmcError:
    """What is not tried is not checked."""
    dims = ", ".join(f"{name} in [{low}, {high}]" for name, (low, high) in graph.dims.items())
    ends = ({name: bounds[i] for name, bounds in graph.dims.items()} for i in (1, 0))
    refusals = (c.refusal(sizes) for sizes in ends for c in constraints(graph))
    told = next((refusal for refusal in refusals if refusal), "")
    return LlmcError(
        "no sizes within the bounds of the model's dims were found that it takes, so that it cannot be checked",
        found=dims + (f"; {told}" if told else ""),
        hint="give bounds that hold such sizes, or sizes: of an ONNX file by --dim",
    )


def _add(graph: Graph, shapes: Iterable[Tried], found: list[list[Sizes]]) -> None:
    for batch, others in shapes:
        begun = _begun(graph, batch, others[0])
        made = [sizes for _, sizes in calls(Module.of(graph), batch, others, begun)]
        if made and made not in found:  # bounds make many the same
            found.append(made)


def tried(graph: Graph) -> tuple[Tried, ...]:
    """What to try a function with: small sizes, 65 if that is no trouble, and the largest that is quick."""
    if graph.states:
        return with_states([graph])
    if not _others(graph):
        return *_SMALL, *_largest(graph, [(n, (n,)) for n in _LARGER], _QUICK)
    shapes = [(BATCH, (n,)) for n in _LARGER]
    usual = _largest(graph, [shape for shape in shapes if shape[1] <= (_USUAL,)], _TROUBLE)
    quick = _largest(graph, shapes, _QUICK)
    return *_SMALL, *usual, *(shape for shape in quick if shape > max(usual))


def with_states(graphs: Sequence[Graph]) -> tuple[Tried, ...]:
    """What to try functions with that share sessions: fewer and shorter calls where the largest takes seconds."""
    largest = ({name: _wanted(graph, name, BATCH, _USUAL) for name in graph.dims} for graph in graphs)
    slow = sum(work(graph, sizes) for graph, sizes in zip(graphs, largest, strict=True)) > _SLOW
    return _LONG if slow else _SESSIONS


def _others(graph: Graph) -> list[str]:
    """The dims that inputs and states tell, all but the batch."""
    return [name for name in given_dims(graph) if name != "batch"]


def _largest(graph: Graph, shapes: Sequence[Tried], most: int) -> list[Tried]:
    """The last of `shapes` until one is more work than `most`."""
    fits: list[Tried] = []
    for batch, others in shapes:
        sizes = {name: _wanted(graph, name, batch, others[0]) for name in given_dims(graph)}
        if work(graph, sizes) > most:
            break
        fits = [(batch, others)]
    return fits


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
    tried = (_sizes(graph, batch, other, held, apart, step) for step in _STEPS for apart in (1, 0))
    found = next((sizes for sizes in tried if _fits(graph, sizes, held)), None)
    if found is not None or not constraints(graph):
        return found
    wanted = _sizes(graph, batch, other, held, 1, 1)
    free = [name for name in given_dims(graph) if name not in {*_growing(graph), *held}]
    near = fitting(constraints(graph), wanted, free, graph.dims)
    return near if near is not None and _fits(graph, near, held) else None


def _sizes(graph: Graph, batch: int, other: int, held: Mapping[str, int], apart: int, step: int) -> Sizes:
    """Those sizes; of the dims that are neither the batch nor held, the next multiples of `step`."""
    sizes = {name: _wanted(graph, name, batch, other, apart, step) for name in graph.dims}
    return sizes | dict.fromkeys(_growing(graph), 0) | {n: size for n, size in held.items() if n in sizes}


def _fits(graph: Graph, sizes: Sizes, held: Mapping[str, int]) -> bool:
    """Whether a call of these sizes is possible in a session that holds those."""
    growing, after = _growing(graph), _after(graph, sizes)
    fits = all(graph.dims[n].low <= sizes[n] and after[n] <= graph.dims[n].high for n in growing)
    fits = fits and not any(constraint.refusal(sizes) for constraint in constraints(graph))
    given = {str(d) for node in graph.inputs if node.attributes["default"] is None for d in node.shape}
    return fits and after.keys() <= {*given, *growing, *held}


def _growing(graph: Graph) -> set[str]:
    return {State.of(node).length for node in graph.states} - {""}


def _wanted(graph: Graph, name: str, batch: int, other: int, apart: int = 1, step: int = 1) -> int:
    others = _others(graph)
    place = others.index(name) if name in others else 0
    size = batch if name == "batch" else (-(-other // step) + apart * place) * step
    return _within(size, graph.dims[name])


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
