"""Carry out a plan on memory of NumPy: what a program would do, with the ops' references for kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmc.compiler.calls import Call
from llmc.compiler.dims import evaluate
from llmc.compiler.graph import DTYPES, Graph, Node, TensorType, results_of
from llmc.compiler.ops import OPS
from llmc.compiler.plan import Copy, Plan
from llmc.compiler.plan_bodies import Choice, Move, Repeat
from llmc.compiler.slots import Place, nbytes, root

Array = np.ndarray[Any, Any]
POISON = 0xA5


def carry_out(
    graph: Graph, plan: Plan, inputs: Mapping[str, Array], sizes: Mapping[str, int]
) -> dict[str, Array]:
    """The outputs of `graph` by `plan`; memory that holds no value is poisoned."""
    machine = _Machine(graph, plan, inputs, sizes)
    machine.steps(plan, plan.steps)
    values = zip(graph.outputs.items(), machine.outputs, strict=True)
    return {name: machine.typed(memory, node.type).copy() for (name, node), memory in values}


class _Machine:
    def __init__(
        self, graph: Graph, plan: Plan, inputs: Mapping[str, Array], sizes: Mapping[str, int]
    ) -> None:
        self.sizes = sizes
        given = (np.ascontiguousarray(inputs[n.attributes["name"]]) for n in graph.inputs)
        self.inputs = [value.reshape(-1).view(np.uint8) for value in given]
        self.slots = [self.memory(size) for size in plan.slots]
        self.outputs = [self.memory(nbytes(node)) for node in graph.outputs.values()]
        self.weights = [stored.array().reshape(-1).view(np.uint8) for stored in plan.weights]
        self.pointers: dict[int, Array] = {}

    def memory(self, size: Any) -> Array:
        return np.full(evaluate(size, self.sizes), POISON, np.uint8)

    def at(self, place: Place) -> Array:
        if place.kind == "pointer":
            return self.pointers[place.index]
        rooms = {"input": self.inputs, "slot": self.slots, "output": self.outputs, "weight": self.weights}
        return rooms[place.kind][place.index]

    def typed(self, memory: Array, kind: TensorType) -> Array:
        shape = [evaluate(d, self.sizes) for d in kind.shape]
        size = int(np.prod(shape, dtype=np.int64)) * DTYPES[kind.dtype].itemsize
        assert len(memory) >= size, "a place is smaller than its value"
        return memory[:size].view(DTYPES[kind.dtype]).reshape(shape)

    def steps(self, plan: Plan, steps: Sequence[Any]) -> None:
        for step in steps:
            match step:
                case Call():
                    self.call(plan, step)
                case Copy(node=node, output=output):
                    self.copy(plan, node, Place("output", output))
                case Move(node=node, to=to):
                    self.copy(plan, node, to)
                case Choice(condition=condition, bodies=bodies):
                    body = bodies[0] if self.at(condition)[0] else bodies[1]
                    self.steps(plan.within(body), body.steps)
                case Repeat():
                    self.loop(plan, step)

    def copy(self, plan: Plan, node: Node, to: Place) -> None:
        size = evaluate(nbytes(node), self.sizes)
        self.at(to)[:size] = self.at(plan.place(node))[:size]

    def call(self, plan: Plan, call: Call) -> None:
        node = call.operands[-1]
        assert isinstance(node, Node)
        written = plan.written(node)
        read = [plan.place(i) for i in node.inputs]
        assert not set(written) & set(read), "a call writes what it reads"
        arrays = [self.typed(self.at(p), i.type) for p, i in zip(read, node.inputs, strict=True)]
        extra = {"sizes": self.sizes} if OPS[node.op].symbolic else {}
        value = OPS[node.op].reference(*arrays, **node.attributes, **extra)
        parts = value if isinstance(value, tuple) else (value,)
        for part, place, kind in zip(parts, written, results_of(node.type), strict=True):
            self.typed(self.at(place), kind)[...] = part

    def loop(self, plan: Plan, loop: Repeat) -> None:
        trips = evaluate(loop.node.attributes["count"], self.sizes)
        for c in loop.carried:
            self.pointers[c.now] = self.at(c.first)
        for trip in range(trips):
            at = trips - 1 - trip if loop.node.attributes["reverse"] else trip
            for m in loop.moving:
                step = evaluate(m.step, self.sizes)
                self.pointers[m.pointer] = self.at(m.base)[at * step : (at + 1) * step]
            for c in loop.carried:
                if c.spare is not None:
                    self.pointers[c.after] = self.at(c.last if (trips - trip) % 2 else c.spare)
                assert not np.shares_memory(self.pointers[c.after], self.pointers[c.now])
            self.steps(plan.within(loop.body), loop.body.steps)
            for c in loop.carried:
                self.pointers[c.now] = self.pointers[c.after]
        for c in loop.carried:
            size = evaluate(c.bytes, self.sizes)
            self.at(c.last)[:size] = self.pointers[c.now][:size].copy()


def placed(plan: Plan, node: Node) -> Place:
    """Where a value of the outermost graph is."""
    return plan.places[root(node)]
