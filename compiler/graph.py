"""The graph IR: immutable typed nodes, each one value, or several that `result` nodes pick from.

A `Graph` is a list of roots, outputs and next values of states; everything else is reached through `Node.inputs`.
Nodes compare by identity and are never edited: a rewrite makes new nodes and `Graph.replace` rebuilds what depends
on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.compiler.dims import Bounds, Dim, dim, dim_text
from llmc.errors import LlmcError

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "f32": np.dtype(np.float32),
        "f16": np.dtype(np.float16),
        "i8": np.dtype(np.int8),
        "u8": np.dtype(np.uint8),
        "i32": np.dtype(np.int32),
        "i64": np.dtype(np.int64),
        "bool": np.dtype(np.bool_),
    }
)
_NAMES = {v: k for k, v in DTYPES.items()}


def dtype_name(dtype: Any) -> str:
    """llmc's short name of a NumPy dtype.

    Raises:
        LlmcError: llmc has no such dtype.
    """
    try:
        return _NAMES[np.dtype(dtype)]
    except (KeyError, TypeError) as error:
        raise LlmcError(f"dtype {dtype} is not supported", hint=f"use one of {', '.join(DTYPES)}") from error


@dataclass(frozen=True)
class TensorType:
    """dtype name and shape; a dim is an int or a sympy expression."""

    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise LlmcError(f"dtype {self.dtype!r} is not supported", hint=f"use one of {', '.join(DTYPES)}")
        object.__setattr__(self, "shape", tuple(dim(d) for d in self.shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(dim_text(d) for d in self.shape)}]"

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True, init=False)
class Results(TensorType):
    """What a node with several results gives: their types. Only the op `result` reads such a node."""

    types: tuple[TensorType, ...]

    def __init__(self, types: Iterable[TensorType]) -> None:
        object.__setattr__(self, "dtype", "results")  # no dtype of a tensor, so nobody takes it for one
        object.__setattr__(self, "shape", ())
        object.__setattr__(self, "types", tuple(types))

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.types))})"


def results_of(kind: TensorType) -> tuple[TensorType, ...]:
    """The types of all that a node of this type gives."""
    return kind.types if isinstance(kind, Results) else (kind,)


@dataclass(frozen=True)
class Source:
    """Where a node came from: module path (`encoder.layer.3.attention`) and `file:line`, either may be empty."""

    path: str = ""
    line: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.line})" if self.line else self.path


class Weight:
    """A constant's values and name. Equal contents have equal digests; the array is never written to."""

    __slots__ = ("_digest", "array", "name")

    def __init__(self, array: np.ndarray[Any, Any], name: str = "") -> None:
        self.array = array
        self.name = name
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """sha256 over dtype, shape and little-endian bytes, in hex."""
        if self._digest is None:
            head = f"{dtype_name(self.array.dtype)}{self.array.shape}".encode()
            self._digest = hashlib.sha256(head + np.ascontiguousarray(self.array).tobytes()).hexdigest()
        return self._digest

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Weight) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Weight({self.name or self.digest[:12]})"


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
        from llmc.compiler.ops import make

        return make(self.op, tuple(inputs), self.source, **self.attributes)

    def __repr__(self) -> str:
        return f"<{self.op} {self.type} {self.source}>"


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
        done: dict[Node, Node] = {}
        for node in self.nodes:
            inputs = tuple(done[i] for i in node.inputs)
            same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
            done[node] = change(node if same else node.with_inputs(inputs))
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
