"""Nodes of the IR, written in order as nodes of ONNX.

The same op on the same values is written once. Exporters (`table.py`) say how a node of the IR is written: by calls
of `op` here, or by other nodes of the IR that mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.ranges import Ranges
from llmc.compiler.frontends.report import Problem, UnsupportedError
from llmc.compiler.graph import DTYPES, Graph, Node, Source, Weight
from llmc.compiler.ops import OPS, constant, make
from llmc.compiler.to_onnx.packed_rows import finds_scales
from llmc.compiler.to_onnx.sizes import Sizes
from llmc.compiler.to_onnx.table import Exporter, Written, exporters
from llmc.compiler.to_onnx.tensors import Tensors, kind_of

OPSET = 20  # has Gelu; ONNX Runtime reads it since 1.17
OPSET_BLOCKS = 21  # has numbers of 4 bits and scales by blocks; since 1.20
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """A node of the file; an attribute that is a `Body` is a graph."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Attributes
    name: str


@dataclass(frozen=True, eq=False)
class Body:
    """What a loop repeats or a branch does: it sees the values around it.

    Args:
        inputs: name and type of each.
        outputs: name and type of each.
    """

    inputs: Sequence[tuple[str, Node]]
    outputs: Sequence[tuple[str, Node]]
    steps: Sequence[Step]


@dataclass(eq=False)
class Scope:
    """What has been written of a graph, or of a body in it."""

    outer: Scope | None = None
    steps: list[Step] = field(default_factory=list)
    values: dict[Node, tuple[str, ...]] = field(default_factory=dict)
    made: dict[Hashable, tuple[str, ...]] = field(default_factory=dict)

    def find(self, key: Hashable) -> tuple[str, ...] | None:
        """The values of a step that is seen from here."""
        scope: Scope | None = self
        while scope is not None:
            if key in scope.made:
                return scope.made[key]
            scope = scope.outer
        return None


class Emitter:
    """Writes one graph.

    Args:
        reserved: names that the signature has.
        places: named dim -> the input that has it as a size, and the axis.
        kept: digests of constants that must lie in the file as they are.
    """

    def __init__(
        self,
        graph: Graph,
        reserved: Sequence[str],
        places: Mapping[str, tuple[str, int]],
        kept: Collection[str] = (),
    ) -> None:
        self.graph, self.kept, self.opset = graph, kept, OPSET
        self.scope = self.root = Scope()
        self.problems: list[Problem] = []
        self.ranges = Ranges()
        self.packed: dict[tuple[Node, int], tuple[Node, Node]] = {}  # rows and their size -> their parts
        self.tensors = Tensors(self.free)
        self.sizes = Sizes(self, places)
        self._names, self._turned = set(reserved), dict[str, tuple[str, tuple[int, ...]]]()
        self._at = Source()

    @cached_property
    def exact(self) -> bool:
        """Whether float steps are written to the last bit, since levels are made of what they give."""
        return finds_scales(self.graph)

    # --- steps

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The value of an op with one result; an input "" is left out."""
        return self.several(kind, inputs, 1, **attributes)[0]

    def several(self, kind: str, inputs: Sequence[str], count: int, **attributes: Any) -> tuple[str, ...]:
        """The values of an op with `count` results."""
        key = (kind, tuple(inputs), count, tuple(sorted(attributes.items(), key=lambda item: item[0])))
        found = self.scope.find(key)
        if found is None:
            name = self.free(f"/{self._at.path or 'graph'}/{kind}")
            found = tuple(f"{name[1:]}_output_{i}" for i in range(count))
            self.scope.steps.append(Step(kind, tuple(inputs), found, attributes, name))
            self.scope.made[key] = found
        return found

    def copy(self, x: str, name: str) -> str:
        """x under a name of its own: what leaves a graph or body."""
        self.scope.steps.append(Step("Identity", (x,), (name,), {}, self.free(f"/{name}/Identity")))
        return name

    def free(self, name: str) -> str:
        """A name like this one that nothing has."""
        name, number, found = _spelled(name), 0, _spelled(name)
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found

    @contextmanager
    def within(self, scope: Scope) -> Iterator[Scope]:
        """What is written inside the block belongs there."""
        before, self.scope = self.scope, scope
        try:
            yield scope
        finally:
            self.scope = before

    # --- values of the IR

    def value(self, node: Node) -> str:
        """The value of a node with one result."""
        return self.values(node)[0]

    def values(self, node: Node) -> tuple[str, ...]:
        """The values of a node's results."""
        known = self.scope.values
        if node not in known:
            known[node] = self._written(node)
        return known[node]

    def inputs(self, node: Node) -> list[str]:
        """The values that a node reads."""
        return [self.value(i) for i in node.inputs]

    def _written(self, node: Node) -> tuple[str, ...]:
        """The values of a node; of one that cannot be written names without meaning, and a problem is noted."""
        before, self._at = self._at, node.source
        try:
            made = self._exporter(node)(self, node)
            parts = (made,) if isinstance(made, (str, Node)) else made
            return tuple(map(self.named, parts))
        except UnsupportedError as problem:
            self.problems.append(Problem(node.op, problem.reason, problem.advice, node.source))
            return ("",) * 8
        finally:
            self._at = before

    def _exporter(self, node: Node) -> Exporter:
        known = exporters()
        if node.op in known:
            return known[node.op]
        if OPS[node.op].stored or _is_constant(node):
            return computed
        raise UnsupportedError(*_MISSING)

    def rounded(self, x: Node) -> Node:
        """x rounded half to even, for which the IR has no op: a node that stands for it."""
        return self.standing(make("floor", (x,)), self.op("Round", self.value(x)))

    def standing(self, node: Node, value: str) -> Node:
        """A node for which `value` is written."""
        self.scope.values[node] = (value,)
        return node

    def named(self, written: Written) -> str:
        """The name of what an exporter gives."""
        return written if isinstance(written, str) else self.value(written)

    # --- constants and shapes

    def number(self, value: float | bool, dtype: str) -> str:
        """A rank-0 constant."""
        return self.array(np.asarray(value).astype(DTYPES[dtype]))

    def array(self, value: Any) -> str:
        """A constant."""
        return self.tensors.add(Weight(np.asarray(value)))

    def ints(self, values: Sequence[int]) -> str:
        """i64 [count]."""
        return self.array(np.asarray(values, np.int64).reshape(-1))

    def cast(self, x: str, before: str, dtype: str) -> str:
        """x of a dtype as another."""
        return x if before == dtype else self.op("Cast", x, to=kind_of(dtype))

    def reshape(self, x: str, before: Sequence[Dim], after: Sequence[Dim]) -> str:
        """x with the same elements in another shape."""
        if tuple(before) == tuple(after):
            return x
        shape, allow = self.sizes.reshaping(before, after)
        return self.op("Reshape", x, shape, **({"allowzero": 1} if allow else {}))

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        """x with its axes in another order; of two that follow each other one is left."""
        perm = tuple(perm)
        if x in self._turned:
            x, first = self._turned[x]
            perm = tuple(first[p] for p in perm)
        if perm == tuple(range(len(perm))):
            return x
        made = self.op("Transpose", x, perm=perm)
        self._turned[made] = (x, perm)
        return made

    def slice(self, x: str, axis: int, start: Dim, stop: Dim, step: int = 1) -> str:
        """x[start:stop:step] along an axis."""
        ends = [self.sizes.vector((d,)) for d in (start, stop)]
        return self.op("Slice", x, *ends, self.ints([axis]), self.ints([step]))

    def expand(self, x: str, shape: Sequence[Dim]) -> str:
        """x broadcast to a shape."""
        return self.op("Expand", x, self.sizes.vector(shape))


def _is_constant(node: Node) -> bool:
    return bool(node.inputs) and all(i.op == "constant" for i in node.inputs)


def computed(e: Emitter, node: Node) -> Node:
    """The value of an op on constants: of stored weights in a format that ONNX has no op for."""
    if not _is_constant(node):
        raise UnsupportedError("a stored weight whose parts are computed")
    arrays = [i.attributes["value"].array for i in node.inputs]
    name = node.inputs[0].attributes["value"].name
    return constant(np.asarray(OPS[node.op].reference(*arrays, **node.attributes)), name, node.source)


_MISSING = ("ONNX has no such op, and no exporter says it in others", "leave out the pass that makes it")


def _spelled(name: str) -> str:
    return re.sub(r"[^\w./:-]", "_", name)
