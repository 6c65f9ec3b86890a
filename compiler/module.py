"""A module: functions over one set of weights, and the states that a session keeps between their calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from llmc.compiler.counted import given_dims
from llmc.compiler.dims import Bounds
from llmc.compiler.graph import Graph, Node, TensorType

FORWARD = "forward"  # the name of a function that has none


@dataclass(frozen=True)
class State:
    """What a session keeps under a name.

    Args:
        type: its dtype and shape.
        grows: the axis that gets longer from call to call, a named dim that is 0 at first; None: the shape is fixed,
            and the values are zeros at first.
    """

    name: str
    type: TensorType
    grows: int | None = None

    @staticmethod
    def of(node: Node) -> State:
        """What a `state` node declares."""
        return State(node.attributes["name"], node.type, node.attributes["grows"])

    @property
    def length(self) -> str:
        """The name of the dim that grows, "" if none does."""
        return "" if self.grows is None else str(self.type.shape[self.grows])

    def __str__(self) -> str:
        return f"{self.type}{f', axis {self.grows} grows' if self.grows is not None else ''}"


@dataclass(frozen=True, eq=False)
class Module:
    """Functions by name, the first is the main one. They share dims, states and weights; `verify_module` checks it."""

    functions: Mapping[str, Graph]

    def __post_init__(self) -> None:
        object.__setattr__(self, "functions", MappingProxyType(dict(self.functions)))

    @staticmethod
    def of(function: Graph | Module, name: str = FORWARD) -> Module:
        """A module of one function; a module is one already."""
        return function if isinstance(function, Module) else Module({name: function})

    @cached_property
    def states(self) -> Mapping[str, State]:
        """The states of all functions, in the order in which they name them."""
        found: dict[str, State] = {}
        for graph in self.functions.values():
            for node in graph.states:
                found.setdefault(node.attributes["name"], State.of(node))
        return MappingProxyType(found)

    @cached_property
    def dims(self) -> Mapping[str, Bounds]:
        """The bounds of the dims that callers and states decide, of all functions."""
        found: dict[str, Bounds] = {}
        for graph in self.functions.values():
            for name in given_dims(graph):
                found.setdefault(name, graph.dims[name])
        return MappingProxyType(found)

    def each(self, change: Callable[[str, Graph], Graph]) -> Module:
        """The module of `change(name, function)`."""
        return Module({name: change(name, graph) for name, graph in self.functions.items()})

    def __str__(self) -> str:
        from llmc.compiler.module_text import print_module

        return print_module(self)

    def _repr_html_(self) -> str:
        from llmc.compiler.text import table_of
        from llmc.html import Page

        facts: dict[str, object] = {f"state {name}": state for name, state in self.states.items()}
        facts |= {f"dim {name}": f"{low}..{high}" for name, (low, high) in self.dims.items()}
        tables = [table_of(graph, f"function {name}") for name, graph in self.functions.items()]
        return str(Page(f"module: {', '.join(self.functions)}", str(self), facts, tables))
