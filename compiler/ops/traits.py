"""What other code must know of an op: part of its declaration, so that no pass needs to know its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.graph import Node

Known = np.ndarray[Any, Any] | None  # a value, or not known
Constraints = Callable[..., Iterable["AtMost"]]
Partial = Callable[..., Known]
Positions = Collection[int] | Callable[[Node], Collection[int]]
FirstAxis = Callable[[Node], Collection[int]]


@dataclass(frozen=True)
class AtMost:
    """A constraint on sizes, without which a node has no value: `low <= high`.

    Args:
        low, high: dims.
        low_name, high_name: what they are, for messages: "its stop", "the size of axis 1".
        times: how often the node computes anything; where that is 0 it needs nothing.
    """

    low: Dim
    high: Dim
    low_name: str = ""
    high_name: str = ""
    times: Dim = 1


def _same(node: Node, lead: tuple[Dim, ...]) -> Mapping[str, Any]:
    return node.attributes


@dataclass(frozen=True)
class Rows:
    """An op of which each row, one place of the first two axes, is computed from that row of its operands.

    Args:
        inputs: positions of the operands `[batch, seq, ...]` that are read row by row, or a function of the node
            that gives them. The others are read whole. None: this node mixes rows.
        attributes: (node, lead) -> the attributes of the same op on rows that lie along the axes `lead` instead
            of the first two: (batch, 1) for the first row of each sequence, (tokens,) for packed ones.
        sliced: fewer rows are worth a slice of each operand: slice(f(x)) -> f(slice(x)).
        broadcast: those operands broadcast against each other, as NumPy has it, to what has batch and seq first.
    """

    inputs: Positions
    attributes: Callable[[Node, tuple[Dim, ...]], Mapping[str, Any]] = _same
    sliced: bool = False
    broadcast: bool = False

    def positions(self, node: Node) -> frozenset[int]:
        """Of the operands of `node` that are read row by row."""
        return frozenset(self.inputs(node) if callable(self.inputs) else self.inputs)

    def missing(self, node: Node, position: int) -> int:
        """How many axes are before the first of an operand, one of `positions`, when it is broadcast."""
        if not self.broadcast:
            return 0
        return max(node.inputs[at].type.rank for at in self.positions(node)) - node.inputs[position].type.rank


def all_inputs(node: Node) -> range:
    """The positions of all operands."""
    return range(len(node.inputs))


def first_input(node: Node) -> Collection[int]:
    """The position of the first operand."""
    return (0,)


def beside_first(name: str, inputs: FirstAxis = first_input) -> FirstAxis:
    """Operands of an op that works along the axis or axes that its attribute `name` holds, if the first is none."""

    def positions(node: Node) -> Collection[int]:
        axes = node.attributes[name]
        return () if 0 in (axes if isinstance(axes, tuple) else (axes,)) else inputs(node)

    return positions


ELEMENTWISE = Rows(all_inputs, sliced=True, broadcast=True)


class Packing(Protocol):
    """The rows of the tokens of a padded batch `[batch, seq]`, side by side."""

    @property
    def index(self) -> Node:
        """i64[tokens]: the place of each token."""

    @property
    def offsets(self) -> Node:
        """i64[batch + 1]: the first token of each sequence."""

    @property
    def seq(self) -> Dim:
        """How long the padded sequences are."""

    def rows(self, x: Node) -> Node:
        """[tokens, ...] of a node [batch, seq, ...]."""

    def padded(self, x: Node) -> Node:
        """The value of `x` at every place."""


@dataclass(frozen=True)
class Sequences:
    """An op of which a row reads all rows of its sequence, but those that a mask of keys leaves out.

    Args:
        inputs: positions of the operands `[batch, seq, ...]`.
        keys: position of the mask, bool `[batch, seq]`, one of `inputs`; None: this node has none.
        refusal: why a node cannot do without the rows at padding whatever its mask; empty if it can.
        packed: (node, packing) -> the rows `[tokens, ...]` of its result.
    """

    inputs: Collection[int]
    keys: Callable[[Node], int | None]
    refusal: Callable[[Node], str]
    packed: Callable[[Node, Packing], Node]


def last_axes(name: str) -> Rows:
    """Rows of an op along the axis or axes that its attribute `name` holds, all behind the first two."""

    def inputs(node: Node) -> Collection[int]:
        axes = node.attributes[name]
        return (0,) if (min(axes) if isinstance(axes, tuple) else axes) >= 2 else ()

    def attributes(node: Node, lead: tuple[Dim, ...]) -> Mapping[str, Any]:
        axes, shift = node.attributes[name], len(lead) - 2
        moved = tuple(a + shift for a in axes) if isinstance(axes, tuple) else axes + shift
        return {**node.attributes, name: moved}

    return Rows(inputs, attributes)


def _whole_rows(node: Node) -> Collection[int]:
    return (0,) if node.inputs[0].shape[:2] == node.shape[:2] else ()


def _shape_behind(node: Node, lead: tuple[Dim, ...]) -> Mapping[str, Any]:
    return {**node.attributes, "shape": (*lead, *node.shape[2:])}


SHAPED = Rows(_whole_rows, _shape_behind)  # of an op that states the shape of its result
