"""Whether a function computes each sample of a batch for itself, so that a large batch may run in smaller ones.

A value is followed from the inputs to the outputs. It is the same for all samples, or holds those of one sample after
the other along its first axis, or the rows of their tokens (`ops/ragged.py`), which lie in the order of the samples
too. What finds tokens is known by the mask that it was made of: in a smaller batch it is made anew. Anything else,
an op that does not say what it does along its first axis among it, and the function runs whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy

from llmc.compiler.constraints import constraints
from llmc.compiler.counted import counted_dims
from llmc.compiler.dims import Dim, dim, dim_names, product, symbol
from llmc.compiler.graph import Graph, Node, Results, Weight
from llmc.compiler.ops import OPS
from llmc.compiler.ops.rules import same_dim
from llmc.compiler.verify_dims import symbols_in


@dataclass(frozen=True)
class _Kind:
    """What lies along the first axis of a value; `mask` is what says where tokens are."""

    name: str
    mask: Node | None = None


_COMMON, _SAMPLES = _Kind("common"), _Kind("samples")
_FINDS = {"pack_index": "index", "pack_offsets": "offsets", "pack_places": "places"}


class _Apart(Exception):
    """A node that is none of this; its text says why."""


def sample_dim(graph: Graph) -> str:
    """The dim of the samples; empty if some value mixes them, or nothing shows that none does."""
    names = {
        str(node.shape[0]) for node in graph.inputs if node.shape and isinstance(node.shape[0], sympy.Symbol)
    }
    return next((name for name in sorted(names) if not why_whole(graph, name)), "")


def why_whole(graph: Graph, name: str) -> str:
    """Why the samples along the dim `name` cannot run one after the other; empty if they can."""
    try:
        _Samples(graph, name).check()
    except _Apart as error:
        return str(error)
    return ""


class _Samples:
    """The analysis of one function for one dim."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.dim = graph, symbol(name)
        self.masks = counted_dims(graph)
        self.moving = frozenset({name, *self.masks})  # sizes that a smaller batch has other ones of
        self.kinds: dict[Node, _Kind] = {}

    def check(self) -> None:
        if self.graph.states:
            raise _Apart("it keeps states")
        if self.graph.dims[str(self.dim)].low > 1:
            raise _Apart(f"{self.dim} is never 1")
        for constraint in constraints(self.graph):
            mentioned = dim_names(constraint.low) | dim_names(constraint.high)
            if mentioned & self.moving and constraint.low != 1:  # each sample has a row, and a token
                raise _Apart(f"what sizes must satisfy depends on {self.dim}")
        for node in self.graph.nodes:
            self.kinds[node] = self._checked(node, self._kind(node))
        for output, node in self.graph.outputs.items():
            if self.kinds[node] not in (_COMMON, _SAMPLES):
                raise _Apart(f"output {output} has no samples along its first axis")

    def _checked(self, node: Node, kind: _Kind) -> _Kind:
        """`kind`, if sizes are as it says."""
        if isinstance(node.type, Results):
            raise self._other(node, "it has several results")
        # what the type shows, what is counted anew, and of what picks the first tokens
        told = {"shape", OPS[node.op].counts} | ({"stop"} if kind.name == "ranks" else set())
        values = tuple(value for name, value in node.attributes.items() if name not in told)
        if {str(found) for found in symbols_in(values)} & self.moving:
            raise self._other(node, f"an attribute depends on {self.dim}")
        behind = {name for d in node.shape[kind != _COMMON :] for name in dim_names(d)}
        if behind & self.moving:
            raise self._other(node, f"its shape has {self.dim} behind the first axis")
        if kind == _SAMPLES and dim_names(dim(sympy.cancel(node.shape[0] / self.dim))) & self.moving:
            raise self._other(node, f"its first axis is no multiple of {self.dim}")
        return kind

    def _other(self, node: Node, why: str) -> _Apart:
        return _Apart(f"{node.op} {node.source}: {why}".replace("  ", " "))

    def _kind(self, node: Node) -> _Kind:
        kinds = [self.kinds[x] for x in node.inputs]
        if node.op in ("input", "state") or all(kind == _COMMON for kind in kinds):
            return self._of_nothing(node)
        if node.bodies:
            raise self._other(node, "it has a body")
        if node.op in _FINDS and kinds == [_SAMPLES] and node.inputs[0] in self.masks.values():
            return _Kind(_FINDS[node.op], node.inputs[0])
        return self._of_tokens(node, kinds) or self._of_rows(node, kinds)

    def _of_nothing(self, node: Node) -> _Kind:
        """What is read from inputs, or made of nothing but what all samples share."""
        if not node.shape or not dim_names(node.shape[0]) & self.moving:
            return _COMMON
        if node.op == "expand" and (
            node.inputs[0].type.rank < node.type.rank or same_dim(node.inputs[0].shape[0], 1)
        ):
            return _SAMPLES  # each the same
        if node.op in ("input", "full"):
            return _SAMPLES
        raise self._other(node, f"its values depend on {self.dim}")

    def _of_tokens(self, node: Node, kinds: list[_Kind]) -> _Kind | None:
        """What goes from samples to the rows of their tokens and back, or from one of these to another."""
        masks = {kind.mask for kind in kinds} - {None}
        if len(masks) > 1:
            raise self._other(node, "its tokens are those of two masks")
        if not masks:
            return None
        (mask,) = masks
        assert mask is not None
        match node.op, [kind.name for kind in kinds]:
            case "embedding" | "gather", ["samples", "index"] if self._places(node, product(mask.shape)):
                return _Kind("tokens", mask)
            case "mod", ["index", "common"] if self._is_size(node.inputs[1], mask.shape[1]):
                return _Kind("tokens", mask)  # where each stands in its sequence
            case "embedding" | "gather" | "unpack_rows", ["tokens", found] if self._finds(node, found):
                return _SAMPLES
            case "add", ["ranks", "samples"] if same_dim(node.shape[0], mask.shape[0]):
                return _Kind("ranks", mask)  # the token behind one's first
            case "slice", ["offsets"] if self._firsts(node, mask):
                return _Kind("ranks", mask)
            case "ragged_mha", ["tokens", "tokens", "tokens", "tokens", "index", "offsets", *bias]:
                if all(
                    self._fits(node.inputs[6 + i], _Kind(b), mask.shape[0], 4) for i, b in enumerate(bias)
                ):
                    return _Kind("tokens", mask)
        return None

    def _finds(self, node: Node, found: str) -> bool:
        """Whether rows of tokens are looked up; a place without one, -1, is the first of all samples to most ops."""
        return found == ("places" if node.op == "unpack_rows" else "ranks") and self._places(node, None)

    def _places(self, node: Node, count: Dim | None) -> bool:
        """Whether places along the first axis are picked, of which there are `count`."""
        first = node.inputs[0].shape[0]
        return node.attributes.get("axis", 0) == 0 and (count is None or same_dim(first, count))

    def _is_size(self, node: Node, size: Dim) -> bool:
        """Whether a node is the number `size`."""
        value: Any = node.attributes.get("value")
        known = value.array.item() if isinstance(value, Weight) and value.array.size == 1 else value
        return (
            node.op in ("constant", "dim") and isinstance(known, int | sympy.Expr) and same_dim(known, size)
        )

    def _firsts(self, node: Node, mask: Node) -> bool:
        a = node.attributes
        return bool(
            a["axis"] == 0 and a["step"] == 1 and a["start"] == 0 and same_dim(a["stop"], mask.shape[0])
        )

    def _of_rows(self, node: Node, kinds: list[_Kind]) -> _Kind:
        """An op of which each place along the first axis is computed from that place of its operands."""
        along = {kind for kind in kinds if kind != _COMMON}
        kind = next(iter(along))
        if len(along) > 1 or kind.name not in ("samples", "tokens"):
            raise self._other(node, "it mixes samples, or nothing shows that it does not")
        if OPS[node.op].view and (kind == _SAMPLES or self._fits(node.inputs[0], kind, node.shape[0], 0)):
            return kind  # in the order of the samples still
        read = OPS[node.op].along_first(node)
        fits = all(
            self._fits(x, known, node.shape[0], node.type.rank) if at in read else known == _COMMON
            for at, (x, known) in enumerate(zip(node.inputs, kinds, strict=True))
        )
        if not node.shape or not fits:
            raise self._other(node, "it mixes samples, or nothing shows that it does not")
        return kind

    def _fits(self, x: Node, kind: _Kind, size: Dim, rank: int) -> bool:
        """Whether an operand has the places of the result along its first axis, or is the same for all of them."""
        if kind == _COMMON:
            return x.type.rank < rank or same_dim(x.shape[0], 1)
        return bool(x.shape) and same_dim(x.shape[0], size)
