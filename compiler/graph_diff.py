"""What two graphs differ in: nodes, weights, signature, and what they compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from llmc.compiler.align import Numbers, align
from llmc.compiler.differences import apart
from llmc.compiler.dims import Bounds
from llmc.compiler.equality import same_type, same_value
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.samples import Session, play, samples
from llmc.compiler.text import node_lines, value_text
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
FEW = 1e-4  # of a value's scale: what rounding in another order may make


@dataclass(frozen=True)
class Row:
    """A node of one graph or both, as text, and what differs."""

    a: str | None
    b: str | None
    changes: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        if self.a is None or self.b is None:
            return "-" if self.b is None else "+"
        return "~" if self.changes else "="


class Difference:
    """Two graphs side by side."""

    def __init__(self, a: Graph, b: Graph) -> None:
        self.a, self.b = a, b
        self.pairs = align(a, b)
        self._numbers = Numbers()

    @property
    def same(self) -> bool:
        """Whether they have the same nodes, weights, dims and outputs; sources may differ."""
        return not self.signature and all(row.mark == "=" for row in self.rows)

    @cached_property
    def rows(self) -> list[Row]:
        """In the order of the second graph; what only the first has follows what stands before it there."""
        before, after = node_lines(self.a), node_lines(self.b)
        twins = {b: a for a, b in self.pairs.items()}
        gone: dict[Node | None, list[Node]] = {}
        anchor: Node | None = None
        for node in self.a.nodes:
            if node in self.pairs:
                anchor = self.pairs[node]
            else:
                gone.setdefault(anchor, []).append(node)
        rows = [Row(before[n], None) for n in gone.get(None, ())]
        for node in self.b.nodes:
            twin = twins.get(node)
            changes = () if twin is None else tuple(self._changes(twin, node))
            rows.append(Row(None if twin is None else before[twin], after[node], changes))
            rows += [Row(before[n], None) for n in gone.get(node, ())]
        return rows

    def _changes(self, a: Node, b: Node) -> Iterator[str]:
        if not same_type(a.type, b.type):
            yield f"type {a.type} -> {b.type}"
        for name in dict.fromkeys((*a.attributes, *b.attributes)):
            yield from self._attribute(name, a.attributes.get(name), b.attributes.get(name))
        if len(a.inputs) != len(b.inputs):
            yield f"{len(a.inputs)} -> {len(b.inputs)} inputs"
            return
        for i, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=True)):
            if self.pairs.get(x) is not y:
                yield f"input {i}: {_short(x)} -> {_short(y)}"

    def _attribute(self, name: str, a: Any, b: Any) -> Iterator[str]:
        if same_value(a, b) or self._numbers.plain(a) == self._numbers.plain(b):
            return
        if isinstance(a, Weight) and isinstance(b, Weight):
            yield _values_apart(a, b)
        elif isinstance(a, Graph) or isinstance(b, Graph):
            yield f"{name}: another graph"
        else:
            yield f"{name} {value_text(a)} -> {value_text(b)}"

    @cached_property
    def signature(self) -> list[str]:
        """What differs in bounds, outputs and states."""
        found = [
            f"dim {name}: {_bounds(self.a, name)} -> {_bounds(self.b, name)}"
            for name in dict.fromkeys((*self.a.dims, *self.b.dims))
            if self.a.dims.get(name) != self.b.dims.get(name)
        ]
        for what in ("outputs", "updates"):
            found += self._roots(what.removesuffix("s"), getattr(self.a, what), getattr(self.b, what))
        if list(self.a.outputs) != list(self.b.outputs) and self.a.outputs.keys() == self.b.outputs.keys():
            found.append(
                f"outputs in another order: {', '.join(self.a.outputs)} -> {', '.join(self.b.outputs)}"
            )
        return found

    def _roots(self, what: str, a: Mapping[str, Node], b: Mapping[str, Node]) -> Iterator[str]:
        for name in dict.fromkeys((*a, *b)):
            if name not in a or name not in b:
                yield f"{what} {name!r} only in {'A' if name in a else 'B'}"
            elif self.pairs.get(a[name]) is not b[name]:
                yield f"{what} {name!r}: {_short(a[name])} -> {_short(b[name])}"

    @property
    def ops(self) -> dict[str, tuple[int, int]]:
        """How often each op is in either graph, where that differs."""
        a, b = (Counter(n.op for n in graph.nodes) for graph in (self.a, self.b))
        return {op: (a[op], b[op]) for op in sorted({*a, *b}) if a[op] != b[op]}

    @cached_property
    def weights(self) -> Weights:
        """Constants, compared."""
        pairs = [(a, b) for a, b in self.pairs.items() if a.op == "constant"]
        values = [(a.attributes["value"], b.attributes["value"]) for a, b in pairs]
        twins = set(self.pairs.values())
        return Weights(
            sum(x == y for x, y in values),
            {x.name or y.name: _furthest(x.array, y.array) for x, y in values if x != y},
            [_name(n) for n in self.a.nodes if n.op == "constant" and n not in self.pairs],
            [_name(n) for n in self.b.nodes if n.op == "constant" and n not in twins],
        )

    def numbers(self, sessions: Iterable[Session], tolerance: float) -> Compared:
        """Both graphs on the same data, by the interpreter."""
        found = Compared(tolerance)
        for session in sessions:
            self._run(session, found)
        return found

    def _run(self, session: Session, found: Compared) -> None:
        seen: dict[Node, list[Array]] = {}
        twins = {b: a for a, b in self.pairs.items() if _is_one_value(a, b)}
        watched, parted = set(twins.values()), dict[Node, float]()

        def note(node: Node, value: Array) -> None:
            if node in watched:
                seen.setdefault(node, []).append(value)

        def compare(node: Node, value: Array) -> None:
            if node not in twins or not seen.get(twins[node]):
                return
            earlier = seen[twins[node]].pop(0)
            if earlier.shape == value.shape and (share := apart(earlier, value)) > found.tolerance:
                parted.setdefault(node, share)

        before = play(self.a, session, note)
        after = play(self.b, session, compare)
        for name in dict.fromkeys((*before, *after)):
            if name in before and name in after:
                found.add(name, before[name], after[name])
            else:  # nothing is near what is not there
                found.outputs[name] = float("inf"), float("inf")
        found.samples += 1
        if found.first is None and not found.same and parted:
            node = next((n for n in parted if self._is_cause(twins[n], n, parted)), next(iter(parted)))
            found.first = (_short(twins[node]), _short(node), parted[node])

    def _is_cause(self, a: Node, b: Node, parted: Container[Node]) -> bool:
        """Whether what a pair reads is in pairs too, and has not parted before it."""
        reads = zip(a.inputs, b.inputs, strict=True)
        return all(self.pairs.get(x) is y and y not in parted for x, y in reads)


@dataclass(frozen=True)
class Weights:
    """How many constants are equal, name -> largest difference of others, and those that one graph alone has."""

    equal: int
    different: Mapping[str, float]
    only_a: Sequence[str]
    only_b: Sequence[str]


@dataclass
class Compared:
    """What both graphs computed from the same data.

    Args:
        tolerance: as a share of a value's scale; what is further apart differs.
        outputs: name -> the largest difference, and as a share of the scale; states after the last call, too.
        first: where outputs differ, the first pair of nodes whose values do, though what they read does not.
    """

    tolerance: float
    outputs: dict[str, tuple[float, float]] = field(default_factory=dict)
    first: tuple[str, str, float] | None = None
    samples: int = 0

    @property
    def same(self) -> bool:
        """Whether there was data, and no output differs."""
        return self.samples > 0 and all(share <= self.tolerance for _, share in self.outputs.values())

    def add(self, name: str, a: Array, b: Array) -> None:
        """One value of each graph."""
        share = apart(a, b) if a.shape == b.shape else float("inf")
        most, before = self.outputs.get(name, (0.0, 0.0))
        self.outputs[name] = (max(most, _furthest(a, b)), max(before, share))


def random_sessions(a: Graph, b: Graph, empty: bool = True) -> list[Session]:
    """Small data that both graphs take.

    Args:
        empty: as of `samples`.

    Raises:
        LlmcError: there is none.
    """
    want_same_inputs(a, b)
    dims = dict(a.dims)
    for name in a.dims.keys() & b.dims.keys():
        low, high = max(a.dims[name].low, b.dims[name].low), min(a.dims[name].high, b.dims[name].high)
        if low > high:
            raise LlmcError(
                f"no size of {name} suits both graphs", found=f"{_bounds(a, name)}, {_bounds(b, name)}"
            )
        dims[name] = Bounds(low, high)
    names = {n.attributes["name"] for n in b.inputs}
    found = samples(replace(a, dims=dims), empty)
    return [Session(s.states, [_only(call, names) for call in s.calls]) for s in found]


def _only(arrays: Mapping[str, Array], names: set[str]) -> dict[str, Array]:
    return {name: value for name, value in arrays.items() if name in names}


def want_same_inputs(a: Graph, b: Graph) -> None:
    """Check that data for one graph is data for the other.

    Raises:
        LlmcError: an input that one graph needs, the other has not.
    """
    mine, theirs = ({n.attributes["name"]: n for n in graph.inputs} for graph in (a, b))
    for name, node in (mine | theirs).items():
        if (name not in mine or name not in theirs) and node.attributes["default"] is None:
            raise LlmcError(
                f"the graphs take different inputs, so no data suits both: {name!r}",
                found=f"A: {', '.join(mine)}; B: {', '.join(theirs)}",
            )


def _is_one_value(a: Node, b: Node) -> bool:
    """Whether a pair is computed, and stands for the same: what one has fused in, the other has not."""
    fused = a.attributes.get("epilogue") != b.attributes.get("epilogue") or len(a.inputs) != len(b.inputs)
    return not fused and a.op not in ("input", "state", "constant", "chain")


def _short(node: Node) -> str:
    """An op and where it is from."""
    place = node.attributes["name"] if node.op in ("input", "state") else str(node.source)
    return f"{node.op} of {place}" if place else f"{node.op} {node.type}"


def _name(node: Node) -> str:
    return str(node.attributes["value"].name) or _short(node)


def _bounds(graph: Graph, name: str) -> str:
    bounds = graph.dims.get(name)
    return "none" if bounds is None else f"{bounds.low}..{bounds.high}"


def _values_apart(a: Weight, b: Weight) -> str:
    if a.array.shape != b.array.shape:
        return f"{a.name or 'a constant'}: values of another shape"
    return f"{a.name or 'a constant'}: largest difference {_furthest(a.array, b.array):.3g}"


def _furthest(a: Array, b: Array) -> float:
    """The largest difference; infinite where shapes differ, or one value alone is a number."""
    if a.shape != b.shape:
        return float("inf")
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        gaps = np.abs(x - y)[~((x == y) | (np.isnan(x) & np.isnan(y)))]
    return float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0))
