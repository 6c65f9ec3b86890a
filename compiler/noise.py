"""Where two versions of one model part: the noise of each value that both compute, on the same data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.compiler import interpret
from llmc.compiler.align import counterparts, modules_of
from llmc.compiler.graph import DTYPES, Graph, Node

Array = np.ndarray[Any, Any]


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

    def _comparing(self, name: str, seen: dict[Node, Array], ours: list[Array]) -> interpret.Watch:
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
        groups: dict[str, list[Pair]] = {}
        for pair in self.pairs[name]:
            if pair.compared:
                groups.setdefault(pair.a.source.path, []).append(pair)
        return [Layer(path, pairs) for path, pairs in groups.items()]

    def first_below(self, name: str, bound: float) -> Pair | None:
        """The first value, in the order of the first graph, whose ratio is below the bound."""
        return next((p for p in self.pairs[name] if p.compared and p.ratio.db < bound), None)

    def left_out(self, name: str) -> dict[str, str]:
        """Modules of which nothing was compared -> why."""
        done = {layer.path for layer in self.layers(name)}
        found: dict[str, str] = {}
        for pair in self.pairs[name]:
            if pair.reason and pair.a.source.path not in done:
                found.setdefault(pair.a.source.path, pair.reason)
        known = {"A": modules_of(self.a[name]), "B": modules_of(self.b[name])}
        for path in (p for p in (*known["A"], *known["B"]) if p not in done):
            lacks = next((who for who in known if path not in known[who]), None)
            why = (
                "other values there: one has more fused in"
                if lacks is None
                else f"no values there in {lacks}"
            )
            found.setdefault(path, why)
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
