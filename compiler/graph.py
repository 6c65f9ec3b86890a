"""The graph IR: immutable typed nodes, each one value, or several that `result` nodes pick from.

A `Graph` is a list of roots, outputs and next values of states; everything else is reached through `Node.inputs`.
Nodes compare by identity and are never edited: a rewrite makes new nodes and `Graph.replace` rebuilds what depends
on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from llmc.compiler.dims import Bounds, Dim
from llmc.compiler.tensors import DTYPES, Results, Source, TensorType, Weight, dtype_name, results_of
from llmc.errors import LlmcError

__all__ = [
    "DECLARED",
    "DTYPES",
    "Attributes",
    "Graph",
    "Node",
    "Results",
    "Source",
    "TensorType",
    "Weight",
    "dtype_name",
    "following",
    "make",
    "results_of",
    "unplaced",
]

# name -> what an op declares. The ops fill it (ops/declare.py, where `OPS` is its typed name): graphs ask by the name.
DECLARED: dict[str, Any] = {}

Attributes = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Node:
    """`op` applied to `inputs`. Attribute values are hashable (str, int, float, bool, tuple, Weight, Graph)."""

    op: str
    inputs: tuple[Node, ...]
    attributes: Attributes
    type: TensorType
    source: Source = field(default_factory=Source)

    __match_args__ = ("op", "inputs", "attributes")

    def __post_init__(self) -> None:
        if not isinstance(self.attributes, MappingProxyType):
            object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def bodies(self) -> tuple[Graph, ...]:
        """The attributes that are graphs: what a loop repeats, what a branch chooses from."""
        return tuple(value for value in self.attributes.values() if isinstance(value, Graph))

    def with_inputs(self, inputs: Iterable[Node]) -> Node:
        """The same op, attributes and source on other inputs; the type is inferred again."""
        return make(self.op, tuple(inputs), self.source, **self.attributes)

    def __repr__(self) -> str:
        return f"<{self.op} {self.type} {self.source}>"


def make(
    op: str, inputs: tuple[Node, ...] | list[Node], source: Source | None = None, /, **attributes: Any
) -> Node:
    """A node of `op`, the only way one is built; missing attributes take the op's defaults.

    Raises:
        LlmcError: no such op or attribute, or the type rule refuses the inputs.
    """
    declared = DECLARED.get(op)
    if declared is None:
        hint = "docs/ir.md lists the ops; one of an extension needs --extension FILE, or llmc.load_extension"
        raise LlmcError(f"there is no op {op!r}", at=str(source or "") or None, hint=hint)
    full = declared.complete(attributes)
    place = source or (inputs[0].source if inputs else Source())
    result = declared.infer(tuple(i.type for i in inputs), full, place)
    node = Node(op, tuple(inputs), full, result, place)
    if source is None and (made := _unplaced.get()) is not None:
        made.add(node)
    return node


_unplaced: ContextVar[set[Node] | None] = ContextVar("unplaced", default=None)


@contextmanager
def unplaced() -> Iterator[set[Node]]:
    """The nodes made inside the block without a source of their own: they have that of their first input."""
    made: set[Node] = set()
    token = _unplaced.set(made)
    try:
        yield made
    finally:
        _unplaced.reset(token)


_follow: ContextVar[Callable[[Node, Node], None] | None] = ContextVar("follow", default=None)


@contextmanager
def following(follow: Callable[[Node, Node], None]) -> Iterator[None]:
    """`follow(before, after)` is told of every node of a graph that is rebuilt inside the block."""
    token = _follow.set(follow)
    try:
        yield
    finally:
        _follow.reset(token)


@dataclass(frozen=True, eq=False)
class Graph:
    """A function: from named inputs and states to named outputs and the next values of states.

    Args:
        inputs: `input` nodes, in the order of the signature.
        outputs: name -> node.
        dims: name -> inclusive bounds; a body has none, its dims are those of the graph around it.
        states: `state` nodes, all that the function reads or updates.
        updates: name of a state -> its next value; a state without one keeps its value.
    """

    inputs: tuple[Node, ...]
    outputs: Mapping[str, Node]
    dims: Mapping[str, Bounds] = field(default_factory=dict)
    states: tuple[Node, ...] = ()
    updates: Mapping[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", MappingProxyType(dict(self.outputs)))
        object.__setattr__(self, "updates", MappingProxyType(dict(self.updates)))
        object.__setattr__(self, "dims", MappingProxyType({k: Bounds(*v) for k, v in self.dims.items()}))

    @property
    def roots(self) -> tuple[Node, ...]:
        """The nodes whose values leave the function: outputs and next values of states."""
        return *self.outputs.values(), *self.updates.values()

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node, inputs and states first, each after what it reads."""
        seen: dict[Node, None] = dict.fromkeys((*self.inputs, *self.states))
        for root in self.roots:
            _visit(root, seen)
        return tuple(seen)

    @cached_property
    def users(self) -> Mapping[Node, tuple[Node, ...]]:
        """node -> the nodes that read it, once for each read; being a root adds nothing."""
        table: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for read in node.inputs:
                table[read].append(node)
        return {node: tuple(users) for node, users in table.items()}

    def replace(self, change: Callable[[Node], Node]) -> Graph:
        """Rebuild bottom-up: `change` sees each node with its inputs already replaced and returns it or another.

        Returns:
            This graph itself if nothing changed.
        """
        return self.rebuild(lambda before, node: change(node))

    def rebuild(self, change: Callable[[Node, Node], Node]) -> Graph:
        """As `replace`; `change` sees the node as it is in this graph too, before the one on replaced inputs."""
        done: dict[Node, Node] = {}
        follow = _follow.get()
        for node in self.nodes:
            inputs = tuple(done[i] for i in node.inputs)
            same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
            moved = node if same else node.with_inputs(inputs)
            if follow is not None:
                follow(node, moved)
            done[node] = change(node, moved)
            if follow is not None:
                follow(moved, done[node])
        if all(a is b for a, b in done.items()):
            return self
        return self.exchanged(done.__getitem__)

    def exchanged(self, new: Callable[[Node], Node]) -> Graph:
        """The same signature and dims with `new(node)` for each input, state and root."""
        return replace(
            self,
            inputs=tuple(map(new, self.inputs)),
            outputs={name: new(node) for name, node in self.outputs.items()},
            states=tuple(map(new, self.states)),
            updates={name: new(node) for name, node in self.updates.items()},
        )

    def everywhere(self) -> Iterator[Node]:
        """Every node, those of bodies after the node that has them."""
        for node in self.nodes:
            yield node
            for body in node.bodies:
                yield from body.everywhere()

    def nx(self) -> Any:
        """A networkx.MultiDiGraph of nodes with `op`, `type`, `source`; edges carry the input position."""
        import networkx

        view = networkx.MultiDiGraph()
        for node in self.nodes:
            view.add_node(node, op=node.op, type=str(node.type), source=str(node.source))
            for position, read in enumerate(node.inputs):
                view.add_edge(read, node, position=position)
        return view

    def __str__(self) -> str:
        from llmc.compiler.text import print_graph

        return print_graph(self)

    def _repr_html_(self) -> str:
        from llmc.compiler.text import facts_of, table_of
        from llmc.html import Page

        return str(Page(f"graph of {len(self.nodes)} nodes", str(self), facts_of(self), (table_of(self),)))


def _visit(root: Node, seen: dict[Node, None]) -> None:
    """Depth-first post-order without recursion: deep models would exceed Python's stack."""
    stack: list[tuple[Node, Iterator[Node]]] = [(root, iter(root.inputs))]
    while stack:
        node, pending = stack[-1]
        following = next((i for i in pending if i not in seen), None)
        if following is not None:
            stack.append((following, iter(following.inputs)))
            continue
        stack.pop()
        seen.setdefault(node)
