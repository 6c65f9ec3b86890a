"""The walk that gives every value its slot, into the bodies of loops and branches too.

A body's values take slots of the same arena as all others, once for all iterations. No copies are made on the way
in and out: a slice of a scanned or stacked tensor is an address that moves, a captured value is where it is. A
carried value alternates between two places, the last iteration writing to where the result is; or it is what the
iteration before has stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmc.compiler.calls import Call, Operand, Region
from llmc.compiler.dims import Dim
from llmc.compiler.graph import Graph, Node, Results
from llmc.compiler.ops import results
from llmc.compiler.slots import Place, Slots, nbytes, root


@dataclass(frozen=True, eq=False)
class Move:
    """A value that is there already, copied to where a body's output goes."""

    node: Node
    to: Place


@dataclass(frozen=True)
class Body:
    """The placed calls of a body.

    Args:
        places: of its own values; its inputs have the places of what they stand for.
        steps: in order.
    """

    places: Mapping[Node, Place]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Moving:
    """A pointer to the slice of an iteration: `base` and `step` bytes for each slice before it."""

    pointer: int
    base: Place
    step: Dim


@dataclass(frozen=True)
class Carried:
    """A value handed from one iteration to the next.

    Args:
        now, after: the pointers to it before and after an iteration; `now` becomes `after`.
        first: where it is before the loop; `last`: where it belongs after it.
        spare: takes turns with `last`; None: `after` is the pointer to a stacked slice.
        bytes: its size.
    """

    now: int
    after: int
    first: Place
    last: Place
    spare: Place | None
    bytes: Dim


@dataclass(frozen=True, eq=False)
class Repeat:
    """A placed loop."""

    node: Node
    body: Body
    moving: tuple[Moving, ...]
    carried: tuple[Carried, ...]


@dataclass(frozen=True, eq=False)
class Choice:
    """A placed branch."""

    node: Node
    condition: Place
    bodies: tuple[Body, ...]


Step = Call | Move | Repeat | Choice


def leaves(steps: Iterable[Any]) -> Iterator[Any]:
    """The steps that are no loop or branch, in order."""
    for step in steps:
        if isinstance(step, Repeat):
            yield from leaves(step.body.steps)
        elif isinstance(step, Choice):
            for body in step.bodies:
                yield from leaves(body.steps)
        else:
            yield step


class Walk:
    """Goes over a program once, taking slots and giving them back.

    Args:
        weight: constant -> its place in the weights file.
        zero: the dims that may be 0.
        own: whether a value is one that each session has for itself (together.py): these have slots of their own.
    """

    def __init__(
        self,
        weight: Callable[[Node], Place],
        zero: frozenset[str] = frozenset(),
        own: Callable[[Node], bool] = lambda node: False,
    ) -> None:
        self.slots, self.own_slots = Slots(zero), Slots(zero)
        self._own = own
        self.results: dict[Node, tuple[Node, ...]] = {}  # of nodes with several
        self._weight = weight
        self._pointers = 0

    def steps(
        self, graph: Graph, calls: Sequence[Call | Region], places: dict[Node, Place]
    ) -> tuple[Step, ...]:
        """Place what `calls` write; `places` has the inputs and outputs of `graph` and gets the rest."""
        picked = {(n.inputs[0], n.attributes["index"]): n for n in graph.nodes if n.op == "result"}
        last, owned, steps = _last_uses(calls), set[Node](), list[Step]()
        for position, call in enumerate(calls):
            written = self._written(call, picked)
            for result in written:
                if result not in places:
                    places[result] = self._place(result)
                    owned.add(result)
            steps.append(call if isinstance(call, Call) else self._region(call, written, places))
            done = [node for node in _read(call) if last[node] == position]
            done += [result for result in written if last.get(result, -1) <= position]
            for node in owned.intersection(done):
                self._slots_of(places[node].kind).give(places[node].index)
            owned.difference_update(done)
        return tuple(steps)

    def _place(self, node: Node) -> Place:
        kind = "own" if self._own(node) else "slot"
        return Place(kind, self._slots_of(kind).take(nbytes(node)))

    def _slots_of(self, kind: str) -> Slots:
        return self.own_slots if kind == "own" else self.slots

    def _take(self, size: Dim) -> Place:
        return Place("slot", self.slots.take(size))

    def _pointer(self) -> int:
        self._pointers += 1
        return self._pointers - 1

    def _written(self, call: Call | Region, picked: Mapping[tuple[Node, int], Node]) -> tuple[Node, ...]:
        """The nodes a call's results are placed for; one that is not picked is written all the same."""
        node = call.node if isinstance(call, Region) else call.operands[-1]
        assert isinstance(node, Node)
        if not isinstance(node.type, Results):
            return (root(node),)
        if node not in self.results:
            self.results[node] = tuple(picked.get((node, i), made) for i, made in enumerate(results(node)))
        return self.results[node]

    def _region(self, call: Region, written: tuple[Node, ...], places: Mapping[Node, Place]) -> Step:
        ends = [places[result] for result in written]
        return self._loop(call, ends, places) if call.node.op == "loop" else self._branch(call, ends, places)

    def _at(self, node: Node, places: Mapping[Node, Place]) -> Place:
        held = root(node)
        return self._weight(held) if held.op == "constant" else places[held]

    def _branch(self, call: Region, ends: list[Place], places: Mapping[Node, Place]) -> Choice:
        condition, *operands = (self._at(node, places) for node in call.node.inputs)
        bodies = []
        for body, calls in zip(call.node.bodies, call.bodies, strict=True):
            inner = dict(zip(body.inputs, operands, strict=True))
            moves = _claim(zip(body.outputs.values(), ends, strict=True), inner)
            bodies.append(Body(inner, (*self.steps(body, calls, inner), *moves)))
        return Choice(call.node, condition, tuple(bodies))

    def _loop(self, call: Region, ends: list[Place], places: Mapping[Node, Place]) -> Repeat:
        node, (body,), (calls,) = call.node, call.node.bodies, call.bodies
        scanned, count = node.attributes["scanned"], node.attributes["carried"]
        operands = [self._at(operand, places) for operand in node.inputs]
        slices = self._moving(body.inputs[:scanned], operands)
        now = [self._pointer() for _ in range(count)]
        pointers = [Place("pointer", p) for p in (*(m.pointer for m in slices), *now)]
        inner = dict(zip(body.inputs, (*pointers, *operands[scanned + count :]), strict=True))
        outputs = tuple(body.outputs.values())
        stacked = self._moving(outputs[count:], ends[count:])
        moves = _claim(
            zip(outputs[count:], (Place("pointer", m.pointer) for m in stacked), strict=True), inner
        )
        carried = []
        for i, output in enumerate(outputs[:count]):
            ridden = inner.get(root(output))
            riding = ridden is not None and ridden in [Place("pointer", m.pointer) for m in stacked]
            after = ridden.index if ridden is not None and riding else self._pointer()
            spare = None if riding else self._take(nbytes(output))
            if not riding:
                moves += _claim([(output, Place("pointer", after))], inner)
            carried.append(Carried(now[i], after, operands[scanned + i], ends[i], spare, nbytes(output)))
        steps = (*self.steps(body, calls, inner), *moves)
        for value in carried:
            if value.spare is not None:
                self.slots.give(value.spare.index)
        return Repeat(node, Body(inner, steps), (*slices, *stacked), tuple(carried))

    def _moving(self, values: Sequence[Node], bases: Sequence[Place]) -> list[Moving]:
        """Pointers to the slices of as many values."""
        return [Moving(self._pointer(), base, nbytes(v)) for v, base in zip(values, bases, strict=False)]


def _claim(wanted: Iterable[tuple[Node, Place]], places: dict[Node, Place]) -> list[Move]:
    """Have outputs computed where they belong; those that cannot are moved there."""
    moves = []
    for output, place in wanted:
        held = root(output)
        if held.op == "constant" or held in places:
            moves.append(Move(held, place))
        else:
            places[held] = place
    return moves


def _read(call: Call | Region) -> Iterator[Node]:
    """The nodes with memory of their own that a call reads, each once."""
    operands: Sequence[Operand] = call.node.inputs if isinstance(call, Region) else call.operands[:-1]
    nodes = (root(o) for o in operands if isinstance(o, Node) and root(o).op != "constant")
    return iter(dict.fromkeys(nodes))


def _last_uses(calls: Sequence[Call | Region]) -> dict[Node, int]:
    return {node: i for i, call in enumerate(calls) for node in _read(call)}
