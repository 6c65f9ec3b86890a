"""Inputs to try a graph with: legal ones, drawn with a fixed seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler import interpret
from llmc.compiler.dims import evaluate
from llmc.compiler.graph import DTYPES, Graph, Node, Weight
from llmc.compiler.ops import OPS
from llmc.compiler.sequences import Sizes, sessions

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

_MOST = 1 << 16  # of integers that nothing bounds
_FEW = 2  # numbers that an input is compared with are no table
_KEPT = 0.7  # share of ones in a mask with holes
_EMPTY = 2  # the session in which a mask has an empty row


@dataclass(frozen=True)
class Session:
    """What is tried: the inputs of calls that follow each other, and the states before the first.

    States are as the first axis grows, if one does: the order of a state's axes is a pass's to choose.
    """

    states: Arrays
    calls: Sequence[Arrays]


def samples(graph: Graph, empty: bool = True) -> list[Session]:
    """Sessions of several sizes (`sequences.tried`); of a graph without states one call each.

    Masks have rows without zeros, with holes, and with an end of zeros; in one session a row has nothing but zeros, if
    the outputs show which part of them that row is (`without_empty`).

    Args:
        empty: whether there may be such a row.
    """
    empty = empty and _has_rows(graph)
    return [
        _session(graph, sizes, np.random.default_rng(n), empty and n == _EMPTY)
        for n, sizes in enumerate(sessions(graph))
    ]


def _session(graph: Graph, sizes: Sequence[Sizes], rng: np.random.Generator, empty: bool) -> Session:
    states = {node.attributes["name"]: _begun(node, sizes[0], rng) for node in graph.states}
    return Session(states, [draw(graph, s, rng, empty) for s in sizes])


def draw(
    graph: Graph, sizes: Mapping[str, int], rng: np.random.Generator, empty: bool = False
) -> dict[str, Array]:
    """Legal inputs of one call.

    Args:
        empty: masks have a row that is empty.
    """
    shapes = ((n, [evaluate(d, sizes) for d in n.shape]) for n in graph.inputs)
    return {n.attributes["name"]: _draw(graph, n, shape, rng, empty) for n, shape in shapes}


def _draw(graph: Graph, node: Node, shape: list[int], rng: np.random.Generator, empty: bool) -> Array:
    a, kind = node.attributes, DTYPES[node.dtype]
    if kind.kind == "f" and a["high"] is None:  # else they are indices that a graph casts
        return rng.standard_normal(shape).astype(kind)
    if _is_mask(node):
        return _mask(shape, rng, empty).astype(kind)
    low, high = a["low"] or 0, _looked_up(graph, node) if a["high"] is None else a["high"]
    value = rng.integers(low, high + 1, shape).astype(kind)
    if a["default"] is not None and value.ndim:
        value[:1] = a["default"]
    return value


def _looked_up(graph: Graph, node: Node) -> int:
    """The largest number that an input without bounds is drawn from: of those that one-hot rows compare it with."""
    found, reached = [1], [node]
    for x in reached:
        for user in graph.users[x]:
            if OPS[user.op].view or user.op == "cast":
                reached.append(user)
            elif user.op == "eq":
                found += [_largest(other) for other in user.inputs if other is not x]
    return min(max(found), _MOST)


def _largest(node: Node) -> int:
    """Of a table of integers; 1 of anything else."""
    value: Any = node.attributes.get("value")
    if node.op == "iota" and isinstance(node.attributes["length"], int):
        start, step = node.attributes["start"], node.attributes["step"]
        return int(start + (node.attributes["length"] - 1) * step) if isinstance(start, int) else 1
    table = isinstance(value, Weight) and value.array.size > _FEW and value.array.dtype.kind in "iu"
    return int(value.array.max()) if table else 1


def _is_mask(node: Node) -> bool:
    """Whether the input says which places of a row count: absent it is all ones, and it may hold zeros."""
    a = node.attributes
    return node.type.rank == 2 and a["default"] == 1 and a["high"] in (1, None) and a["low"] in (0, None)


def _mask(shape: list[int], rng: np.random.Generator, empty: bool) -> Array:
    value = np.ones(shape, np.int64)
    length = shape[1]
    for number, row in enumerate(value):
        if number % 3 == 1:
            row[:] = rng.random(length) < _KEPT
            row[length // 2] = 1
        if number % 3:
            row[length - length // 4 :] = 0
        if number % 3 == 2 and empty:
            row[:] = 0
    return value


def _has_rows(graph: Graph) -> bool:
    """Whether every output has an axis of rows as the mask has."""
    masks = [node for node in graph.inputs if _is_mask(node)]
    kinds = [node.type for node in graph.outputs.values()]
    return not graph.states and all(k.shape[:1] == m.shape[:1] for m in masks for k in kinds)


def without_empty(graph: Graph, inputs: Arrays, outputs: Arrays) -> dict[str, Array]:
    """The outputs with zeros for each row in which a mask has no place.

    A mean over nothing is what a model makes of it: with a mask that is added, one over all padding, which depends on
    the longest row beside it; with one of flags zeros, or NaN. No two ways of computing need agree on that.
    """
    masks = (node.attributes["name"] for node in graph.inputs if _is_mask(node)) if _has_rows(graph) else ()
    for name in masks:
        kept = inputs[name].any(axis=1) if name in inputs else np.True_
        if not np.all(kept):
            outputs = {
                n: np.where(kept.reshape(-1, *(1,) * (v.ndim - 1)), v, v.dtype.type(0))
                for n, v in outputs.items()
            }
    return dict(outputs)


def _begun(state: Node, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    shape = [evaluate(d, sizes) for d in state.shape]
    if state.attributes["grows"] is not None:
        shape.insert(0, shape.pop(state.attributes["grows"]))
    values = rng.standard_normal(shape) if DTYPES[state.dtype].kind == "f" else rng.integers(0, 2, shape)
    return values.astype(DTYPES[state.dtype])


def of_call(name: str, number: int) -> str:
    """What `play` calls an output of a call, of which 1 is the first."""
    return f"{name} of call {number}" if number > 1 else name


def play(graph: Graph, session: Session, watch: interpret.Watch | None = None) -> dict[str, Array]:
    """The outputs of the calls of a session, and the states after the last, by names that tell them apart.

    A state that a pass has stored in another dtype begins as a session does, and has a name of its own afterwards.
    """
    found: dict[str, Array] = {}
    grows = {node.attributes["name"]: node.attributes["grows"] or 0 for node in graph.states}
    kinds = {node.attributes["name"]: DTYPES[node.dtype] for node in graph.states}
    given = {n: v for n, v in session.states.items() if v.dtype == kinds[n]}
    states: Arrays = {n: np.moveaxis(v, 0, grows[n]) if v.ndim else v for n, v in given.items()}
    for number, inputs in enumerate(session.calls, 1):
        outputs, states = interpret.step(graph, inputs, states, watch)
        outputs = without_empty(graph, inputs, outputs)
        found |= {of_call(name, number): v for name, v in outputs.items()}
    names = {n: f"state {n}" if n in given else f"state {n} of {kinds[n]}" for n in states}
    last = {names[n]: np.moveaxis(v, grows[n], 0) if v.ndim else v for n, v in states.items()}
    return found | last
