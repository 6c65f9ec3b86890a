"""Where two versions of one model part: which values of their graphs are the same ones, and the noise of each.

Unlike `align.py`, which pairs nodes to show them side by side, a pair here is one value computed in two ways, across
passes that fuse, quantise or pack: what a product has fused in is part of it. Where that cannot be told, there is none.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.compiler import interpret
from llmc.compiler.align import align
from llmc.compiler.dims import Dim, dim_text
from llmc.compiler.graph import DTYPES, Graph, Node

Array = np.ndarray[Any, Any]
Key = Callable[[Node], Hashable]
_SILENT = ("input", "state", "constant")
_PRODUCTS = frozenset({"matmul", "split_linear"})  # and whatever has an epilogue
_ATTENTION, _NORM = "attention", "layer_norm"
_FAMILIES = {"mha": _ATTENTION, "ragged_mha": _ATTENTION, "embed_norm": _NORM, "add_norm": _NORM}
# What `fuse` makes of several nodes of one module: its value is that of the last.
_MADE = frozenset({_ATTENTION, _NORM, "rms_norm", "gelu", "silu", "softmax", "rotary", "lstm_cell", "gru_cell"})


def counterparts(a: Graph, b: Graph) -> dict[Node, Node]:
    """Node of `a` -> node of `b` that computes the same value, or would if its shape were the same."""
    ours, theirs = _values(a), _values(b)
    if not {n.source.path for n in ours} & {n.source.path for n in theirs}:  # of frontends that name otherwise
        wanted = set(theirs)
        return {x: y for x, y in align(a, b).items() if y in wanted and _kind(x) == _kind(y)}
    found = _Pairs(a, b, ours, theirs)
    found.outputs()
    for key in (_place_and_shape, _path_and_shape):
        found.in_order(key)
    found.across_epilogues()
    found.last_of_modules()
    found.in_order(_path_and_kind)
    return found.pairs


def is_value(node: Node) -> bool:
    """Whether a node is computed, and of real numbers."""
    return node.op not in _SILENT and node.type.dtype in ("f32", "f16")


def _values(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if is_value(node)]


def _kind(node: Node) -> Hashable:
    """What a node is for, whatever it does it with."""
    if _is_product(node):
        return "product", _steps(node)
    if node.op == "chain":  # the op of its last step
        return node.attributes["body"][-1][0]
    return _family(node)


def _family(node: Node) -> str:
    return _FAMILIES.get(node.op, node.op)


def _is_product(node: Node) -> bool:
    return "epilogue" in node.attributes or node.op in _PRODUCTS


def _steps(node: Node) -> tuple[str, ...]:
    """What a product does to its sums; `gelu_poly` and `gelu_tanh` are gelu."""
    return tuple(step.partition("_")[0] for step in node.attributes.get("epilogue", ()))


def weak_shape(shape: Sequence[Dim]) -> tuple[str, ...]:
    """A shape without axes of 1 and with one axis for all leading dims that have names: packed rows look as others."""
    sides = ["?" if not isinstance(d, int) else dim_text(d) for d in shape if d != 1]
    named = next((i for i, side in enumerate(sides) if side != "?"), len(sides))
    return (*sides[:named][:1], *sides[named:])


def _place_and_shape(node: Node) -> Hashable:
    return str(node.source), _kind(node), weak_shape(node.shape)


def _path_and_shape(node: Node) -> Hashable:
    return node.source.path, _kind(node), weak_shape(node.shape)


def _path_and_kind(node: Node) -> Hashable:
    return node.source.path, _kind(node)


def _path_of_product(node: Node) -> Hashable:
    return node.source.path, weak_shape(node.shape)


class _Pairs:
    """The pairs so far."""

    def __init__(self, a: Graph, b: Graph, ours: Sequence[Node], theirs: Sequence[Node]) -> None:
        self.a, self.b, self.ours, self.theirs = a, b, ours, theirs
        self.pairs: dict[Node, Node] = {}
        self._taken: set[Node] = set()

    def pair(self, a: Node, b: Node) -> None:
        if a not in self.pairs and b not in self._taken:
            self.pairs[a] = b
            self._taken.add(b)

    def outputs(self) -> None:
        """Outputs of one name are one value."""
        for name, node in self.a.outputs.items():
            twin = self.b.outputs.get(name)
            if twin is not None and is_value(node) and is_value(twin):
                self.pair(node, twin)

    def in_order(self, key: Key) -> None:
        """Nodes of equal keys, where both graphs have as many of them."""
        ours, theirs = self._left(key)
        for name, nodes in ours.items():
            if len(nodes) == len(others := theirs.get(name, ())):
                for a, b in zip(nodes, others, strict=True):
                    self.pair(a, b)

    def _left(self, key: Key) -> tuple[dict[Hashable, list[Node]], dict[Hashable, list[Node]]]:
        return (
            _grouped((n for n in self.ours if n not in self.pairs), key),
            _grouped((n for n in self.theirs if n not in self._taken), key),
        )

    def across_epilogues(self) -> None:
        """A product that has more fused in stands for what follows the other one."""
        ours, theirs = (
            _grouped(filter(_is_product, nodes), _path_of_product) for nodes in (self.ours, self.theirs)
        )
        for name, nodes in ours.items():
            if len(nodes) != len(others := theirs.get(name, ())):
                continue
            for a, b in zip(nodes, others, strict=True):
                more, fewer = _steps(b)[len(_steps(a)) :], _steps(a)[len(_steps(b)) :]
                x, y = _after(self.a, a, more), _after(self.b, b, fewer)
                same = (*_steps(a), *more) == (*_steps(b), *fewer)
                if same and x is not None and y is not None:
                    self.pair(x, y)

    def last_of_modules(self) -> None:
        """The last value of a module, where one graph has made one node of what gives it in the other."""
        ours, theirs = (
            {node.source.path: node for node in nodes if node.source.path}
            for nodes in (self.ours, self.theirs)
        )
        for path, a in ours.items():
            b = theirs.get(path)
            if b is None or weak_shape(a.shape) != weak_shape(b.shape):
                continue
            if (_family(a) in _MADE) != (_family(b) in _MADE) and not (_is_product(a) or _is_product(b)):
                self.pair(a, b)


def _grouped(nodes: Iterator[Node], key: Key) -> dict[Hashable, list[Node]]:
    groups: dict[Hashable, list[Node]] = defaultdict(list)
    for node in nodes:
        groups[key(node)].append(node)
    return groups


def _after(graph: Graph, node: Node | None, steps: Sequence[str]) -> Node | None:
    """What the steps of an epilogue make of a node where they are nodes of their own; None: they are not."""
    for step in steps:
        users = graph.users[node] if node is not None else ()
        op = "add" if step in ("bias", "residual") else step
        node = users[0] if len(users) == 1 and users[0].op == op else None
    return node


# --- the noise


@dataclass
class Ratio:
    """Signal to noise of a value, over all that was added; what is not finite in both alike is left out.

    Args:
        signal, noise: sums of a^2 and (a - b)^2, in float64.
        largest: the largest difference; infinite where one of the two alone is a number.
        odd: what was not finite -> how often: "NaN in A".
    """

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    count: int = 0
    odd: Counter[str] = field(default_factory=Counter)
    parted: bool = False

    @property
    def db(self) -> float:
        """10 log10(signal / noise); infinite where there is no noise, -infinite where there is nothing else."""
        if self.parted or not self.noise:
            return -math.inf if self.parted else math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    def add(self, a: Array, b: Array) -> None:
        """Values of one shape."""
        x, y = a.astype(np.float64), b.astype(np.float64)
        self.count += x.size
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            self._note(x, y)
            x, y = x[finite], y[finite]
        gaps = x - y
        self.signal += float(np.vdot(x, x))
        self.noise += float(np.vdot(gaps, gaps))
        self.largest = max(self.largest, float(np.abs(gaps).max(initial=0.0)))

    def _note(self, x: Array, y: Array) -> None:
        for what, mark in (("NaN", np.isnan), ("infinity", np.isinf)):
            both = mark(x) & mark(y)
            places = {"A and B": both, "A": mark(x) & ~both, "B": mark(y) & ~both}
            self.odd.update({f"{what} in {who}": int(n) for who, at in places.items() if (n := at.sum())})
        if not np.all((x == y) | (np.isnan(x) & np.isnan(y)) | (np.isfinite(x) & np.isfinite(y))):
            self.parted, self.largest = True, math.inf


@dataclass
class Pair:
    """A value of both graphs."""

    a: Node
    b: Node
    ratio: Ratio = field(default_factory=Ratio)
    reason: str = ""  # why it could not be compared, in one of the samples

    @property
    def compared(self) -> bool:
        return not self.reason and self.ratio.count > 0


@dataclass
class Layer:
    """A module: its values in the order of the first graph."""

    path: str
    pairs: list[Pair]

    @property
    def worst(self) -> Pair:
        return min(self.pairs, key=lambda pair: pair.ratio.db)


Given = tuple[str, Mapping[str, Array]]  # a function, and the inputs of a call


class Noise:
    """Two versions of one model, run on the same calls: by how much the values of each function part.

    Args:
        a, b: functions by name, the same.
    """

    def __init__(self, a: Mapping[str, Graph], b: Mapping[str, Graph]) -> None:
        self.a, self.b = a, b
        self.pairs = {name: [Pair(*two) for two in counterparts(a[name], b[name]).items()] for name in a}
        self.roots: dict[str, dict[str, Ratio]] = {name: {} for name in a}  # outputs, and states at the end
        self.odd_roots: dict[str, dict[str, str]] = {name: {} for name in a}  # those that are not comparable
        self.samples = dict.fromkeys(a, 0)

    def add(self, calls: Sequence[Given], states: Mapping[str, Array] = MappingProxyType({})) -> None:
        """Run the calls of one session on both; of the first graph's values one call's are held at a time.

        Args:
            states: what the session begins with, as of `samples.Session`.
        """
        ours, theirs = (laid(graphs, states) for graphs in (self.a, self.b))
        for name, inputs in calls:
            seen: dict[Node, Array] = {}
            places: list[Array] = []
            outputs, ours = interpret.step(self.a[name], inputs, ours, self._keeping(name, seen, places))
            others, theirs = interpret.step(self.b[name], inputs, theirs, self._comparing(name, seen, places))
            self._add_roots(name, outputs, others)
        for name in dict.fromkeys(function for function, _ in calls):
            self.samples[name] += 1
        last = calls[-1][0]
        mine, other = ended(self.a[last], ours), ended(self.b[last], theirs)
        self._add_roots(last, {n: v for n, v in mine.items() if n in other}, other)

    def _keeping(self, name: str, seen: dict[Node, Array], places: list[Array]) -> interpret.Watch:
        wanted = {pair.a for pair in self.pairs[name]}

        def keep(node: Node, value: Array) -> None:
            if node in wanted:
                seen[node] = value
            elif node.op == "pack_index":
                places.append(value)

        return keep

    def _comparing(self, name: str, seen: Mapping[Node, Array], ours: list[Array]) -> interpret.Watch:
        twins, theirs = {pair.b: pair for pair in self.pairs[name]}, list[Array]()

        def compare(node: Node, value: Array) -> None:
            if node.op == "pack_index":
                theirs.append(value)
            pair = twins.get(node)
            if pair is None or pair.reason:
                return
            before = seen.pop(pair.a)
            a, b = packed(before, value, theirs), packed(value, before, ours)
            if a.shape != b.shape and np.squeeze(a).shape == np.squeeze(b).shape:
                a, b = np.squeeze(a), np.squeeze(b)
            if a.shape == b.shape:
                pair.ratio.add(a, b)
            else:
                pair.reason = f"shapes differ: {pair.a.type} in A, {pair.b.type} in B"

        return compare

    def _add_roots(self, name: str, a: Mapping[str, Array], b: Mapping[str, Array]) -> None:
        for root in dict.fromkeys((*a, *b)):
            if root not in a or root not in b:
                if not root.startswith("state "):
                    self.odd_roots[name][root] = f"only in {'A' if root in a else 'B'}"
            elif a[root].shape != b[root].shape:
                shapes = f"{list(a[root].shape)} in A, {list(b[root].shape)} in B"
                self.odd_roots[name][root] = f"shapes differ: {shapes}"
            else:
                self.roots[name].setdefault(root, Ratio()).add(a[root], b[root])

    def layers(self, name: str) -> list[Layer]:
        """The modules of a function of which something was compared, in the order of the first graph."""
        order = {node: i for i, node in enumerate(self.a[name].nodes)}
        groups: dict[str, list[Pair]] = {}
        for pair in sorted(self.pairs[name], key=lambda p: order[p.a]):
            if pair.compared:
                groups.setdefault(pair.a.source.path, []).append(pair)
        return [Layer(path, pairs) for path, pairs in groups.items()]

    def first_below(self, name: str, bound: float) -> Pair | None:
        """The first value, in the order of the first graph, whose ratio is below the bound."""
        order = {node: i for i, node in enumerate(self.a[name].nodes)}
        below = [p for p in self.pairs[name] if p.compared and p.ratio.db < bound]
        return min(below, key=lambda p: order[p.a], default=None)

    def left_out(self, name: str) -> dict[str, str]:
        """Modules of which nothing was compared -> why."""
        done = {layer.path for layer in self.layers(name)}
        found: dict[str, str] = {}
        for pair in self.pairs[name]:
            if pair.reason and pair.a.source.path not in done:
                found.setdefault(pair.a.source.path, pair.reason)
        for who, graph in (("A", self.a[name]), ("B", self.b[name])):
            for path in dict.fromkeys(n.source.path for n in graph.nodes if is_value(n)):
                if path not in done:
                    found.setdefault(path, f"no value of {who} has one of its kind in the other")
        return found


def packed(value: Array, like: Array, places: Sequence[Array]) -> Array:
    """`value` with the rows alone that `like` has, if that is packed: those at `places` of batch and sequence."""
    if len(places) == 1 and value.ndim == like.ndim + 1 and len(like) == len(places[0]):
        return value.reshape(-1, *value.shape[2:])[places[0]]
    return value


def laid(graphs: Mapping[str, Graph], states: Mapping[str, Array]) -> dict[str, Array]:
    """States as a session begins, in the order of axes that graphs have."""
    found: dict[str, Array] = {}
    for node in (node for graph in graphs.values() for node in graph.states):
        value = states.get(node.attributes["name"])
        if value is not None and value.dtype == DTYPES[node.dtype]:
            grows = node.attributes["grows"] or 0
            found[node.attributes["name"]] = np.moveaxis(value, 0, grows) if value.ndim else value
    return found


def ended(graph: Graph, states: Mapping[str, Array]) -> dict[str, Array]:
    """States of real numbers after a session, the axis that grows first."""
    grows = {node.attributes["name"]: node.attributes["grows"] or 0 for node in graph.states}
    kept = {n: v for n, v in states.items() if n in grows and v.dtype.kind == "f"}
    return {f"state {n}": np.moveaxis(v, grows[n], 0) if v.ndim else v for n, v in kept.items()}
