"""`append`: states grow along their first axis, and what is only added to them is written behind what they hold.

Positions come first in memory (position-major), so that new ones lie behind the old ones and nothing moves as a state
grows. Every function of a module must run this pass, or none: they share the states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmc.compiler.dims import Dim
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.ops import make
from llmc.compiler.pipeline import Pass, Pipeline
from llmc.compiler.rewrite import note, rewrite
from llmc.passes.match import reshaped
from llmc.passes.simplify.shapes import transpose_of_transpose

Perm = tuple[int, ...]


@dataclass(frozen=True)
class Append(Pass):
    """Move the axis that grows to the front of every state, and say `append` where a state is only added to."""

    name = "append"

    def run(self, graph: Graph) -> Graph:
        """For all states that grow."""
        if not _wanted(graph):
            return graph
        return rewrite(_Appender(graph).graph(), (transpose_of_transpose, ones_in_place))


def append_steps(module: Module) -> Pipeline:
    """The passes that the states of a module need in every function; none where no state grows."""
    return Pipeline.of(Append()) if any(s.grows is not None for s in module.states.values()) else Pipeline(())


def append_behind(node: Node) -> None:
    """concat(state, new), the state's next value -> append(state, new): the name by which the journal knows it."""


def ones_in_place(node: Node) -> Node | None:
    """transpose(x) that moves axes of size 1 -> transpose(reshape(x)) that does not, or reshape(x)"""
    match node:
        case Node("transpose", (x,), {"perm": perm}):
            ones = [axis for axis, d in enumerate(node.shape) if d == 1]
            long = iter(axis for axis, d in enumerate(x.shape) if d != 1)
            order = [axis if axis in ones else next(long) for axis in range(len(perm))]
            shape = tuple(1 if axis in ones else x.shape[order[axis]] for axis in range(len(perm)))
            at = {old: new for new, old in enumerate(order) if new not in ones}
            kept = tuple(axis if axis in ones else at[p] for axis, p in enumerate(perm))
            if kept == perm:
                return None
            viewed = reshaped(x, shape)
            return (
                viewed
                if kept == tuple(range(len(perm)))
                else make("transpose", (viewed,), node.source, perm=kept)
            )


def _wanted(graph: Graph) -> bool:
    """Whether a state grows along another axis than the first, or by a concat."""
    growing = [s for s in graph.states if s.attributes["grows"] is not None]
    return any(s.attributes["grows"] for s in growing) or any(_added(graph, s) for s in growing)


def _added(graph: Graph, state: Node) -> tuple[Node, ...]:
    """What is added behind a state to give its next value; empty where that is not all that happens."""
    match graph.updates.get(state.attributes["name"]):
        case Node("concat", (first, *new), {"axis": axis}) if (
            first is state and axis == state.attributes["grows"]
        ):
            return tuple(new)
    return ()


class _Appender:
    """Rewrites one graph; every node is made once."""

    def __init__(self, graph: Graph) -> None:
        self.before = graph
        self.stored: dict[Node, Node] = {}  # state or next value -> the same, the axis that grows first
        self.done: dict[Node, Node] = {}  # node -> the same on what its inputs have become

    def graph(self) -> Graph:
        """The graph with states that grow along their first axis."""
        growing = {s for s in self.before.states if s.attributes["grows"] is not None}
        added = {self._update(s): s for s in growing if _added(self.before, s)}
        for node in self.before.nodes:
            self.done[node] = self._made(node, growing, added)
        states = tuple(self.stored.get(s, s) for s in self.before.states)
        updates = {n: self._stored_update(n, growing) for n in self.before.updates}
        outputs = {n: self.done[node] for n, node in self.before.outputs.items()}
        inputs = tuple(self.done[i] for i in self.before.inputs)
        return replace(self.before, inputs=inputs, outputs=outputs, states=states, updates=updates)

    def _update(self, state: Node) -> Node:
        return self.before.updates[state.attributes["name"]]

    def _made(self, node: Node, growing: set[Node], added: Mapping[Node, Node]) -> Node:
        if node in growing:
            axis = node.attributes["grows"]
            shape = moved_first(node.shape, axis)
            made = make("state", (), node.source, **{**node.attributes, "shape": shape, "grows": 0})
            return self._read(node, node if axis == 0 else made, axis)
        if node in added:
            state = added[node]
            axis = state.attributes["grows"]
            new = tuple(self.done[i] for i in _added(self.before, state))
            whole = new[0] if len(new) == 1 else make("concat", new, node.source, axis=axis)
            note(append_behind, node)
            pair = (self.stored[state], _transposed(whole, _first(node.type.rank, axis)))
            return self._read(node, make("append", pair, node.source), axis)
        inputs = tuple(self.done[i] for i in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        return node if same else node.with_inputs(inputs)

    def _read(self, node: Node, stored: Node, axis: int) -> Node:
        """What reads `node` is given: `stored` with its axes where they were."""
        self.stored[node] = stored
        return _transposed(stored, _back(node.type.rank, axis))

    def _stored_update(self, name: str, growing: set[Node]) -> Node:
        update = self.before.updates[name]
        state = next(s for s in self.before.states if s.attributes["name"] == name)
        if state not in growing:
            return self.done[update]
        if update in self.stored:
            return self.stored[update]
        return _transposed(self.done[update], _first(update.type.rank, state.attributes["grows"]))


def moved_first(shape: tuple[Dim, ...], axis: int) -> tuple[Dim, ...]:
    """`shape` with an axis in front of the others."""
    return tuple(shape[p] for p in _first(len(shape), axis))


def _first(rank: int, axis: int) -> Perm:
    return (axis, *(a for a in range(rank) if a != axis))


def _back(rank: int, axis: int) -> Perm:
    perm = _first(rank, axis)
    return tuple(perm.index(a) for a in range(rank))


def _transposed(node: Node, perm: Perm) -> Node:
    return node if perm == tuple(range(len(perm))) else make("transpose", (node,), node.source, perm=perm)
