"""Where values live: nothing is overwritten while it is needed, at any size."""

from __future__ import annotations

import ast
import itertools
from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import evaluate, symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.plan import ALIGNMENT, Copy, Plan, make_plan, nbytes, root
from llmc.compiler.program import c_string
from llmc.passes import LEVELS, PASSES
from llmc.targets.cpu.backend import BACKEND

B, S = symbol("batch"), symbol("seq")
POISON = object()


def planned(graph: Graph, level: int = 0) -> Plan:
    graph, _ = Pipeline.parse(LEVELS[level], PASSES).run(graph)
    plan = make_plan(graph, BACKEND.lower(graph))
    simulate(graph, plan)
    return plan


def simulate(graph: Graph, plan: Plan) -> None:
    """Run the program on names of values instead of values; memory that holds none is poisoned."""
    arena: list[object] = [POISON] * len(plan.slots)
    outputs: list[object] = [POISON] * len(graph.outputs)
    for step in plan.steps:
        if isinstance(step, Copy):
            assert outputs[step.output] is POISON
            check_read(plan, step.node, arena, outputs)
            outputs[step.output] = step.node
            continue
        *read, written = step.operands
        assert isinstance(written, Node)
        place = plan.place(written)
        for operand in read:
            check_read(plan, operand, arena, outputs)
            assert plan.place(operand) != place, "a call writes what it reads"
        assert place.kind in ("slot", "output")
        (arena if place.kind == "slot" else outputs)[place.index] = root(written)
    assert outputs == [root(node) for node in graph.outputs.values()]


def check_read(plan: Plan, operand: Any, arena: list[object], outputs: list[object]) -> None:
    place = plan.place(operand)
    if place.kind == "slot":
        assert arena[place.index] is root(operand), f"{operand} was overwritten"
    if place.kind == "output":
        assert outputs[place.index] is root(operand), f"{operand} is not written yet"


def check_sizes(graph: Graph, plan: Plan) -> None:
    """Every slot holds each of its values at every size, and the weights do not overlap."""
    for values in itertools.product(*({low, low + 2, high} for low, high in graph.dims.values())):
        sizes = dict(zip(graph.dims, values, strict=True))
        for node, place in plan.places.items():
            if place.kind == "slot":
                assert evaluate(nbytes(node), sizes) <= evaluate(plan.slots[place.index], sizes)
    end = 0
    for stored in plan.weights:
        assert stored.offset >= end
        assert stored.offset % ALIGNMENT == 0
        end = stored.offset + stored.array().nbytes
    assert end <= plan.weights_bytes


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("level", [0, 3])
def test_random_graphs(seed: int, level: int, random_graph: Any) -> None:
    graph, _ = random_graph(seed)
    check_sizes(graph, planned(graph, level))


@pytest.mark.parametrize("seed", range(10))
def test_random_encoders(seed: int, random_encoder: Any) -> None:
    graph, _ = random_encoder(seed)
    plan = planned(graph, 3)
    check_sizes(graph, plan)
    values = sum(1 for place in plan.places.values() if place.kind == "slot")
    assert len(plan.slots) < values / 2 or values < 6  # memory is used again


def test_a_chain_needs_two_slots() -> None:
    x = y = input_("x", "f32", (B, S))
    for _ in range(9):
        y = make("tanh", (y,))
    plan = planned(Graph((x,), {"y": y}, {"batch": (1, 4), "seq": (1, 9)}))
    assert plan.slots == (4 * B * S, 4 * B * S)


def test_sizes_that_cannot_be_compared_share_a_slot_of_the_larger() -> None:
    x, z = input_("x", "f32", (B, 8)), input_("z", "f32", (S, 8))
    row = constant(np.ones(8, np.float32))
    sums = make("sum", (make("add", (x, row)),), axes=(0,), keepdims=False)
    other = make("sum", (make("add", (z, sums)),), axes=(0,), keepdims=False)
    graph = Graph((x, z), {"y": other}, {"batch": (1, 400), "seq": (1, 400)})
    plan = planned(graph)
    check_sizes(graph, plan)
    assert sum(evaluate(s, {"batch": 7, "seq": 300}) for s in plan.slots) <= 32 * (7 + 300 + 1)


def test_outputs_that_no_call_writes() -> None:
    x = input_("x", "f32", (B, 4))
    two = constant(np.arange(4, dtype=np.float32))
    y = make("add", (x, two))
    outputs = {"x": x, "two": two, "y": y, "again": y, "view": make("reshape", (y,), shape=(2 * B, 2))}
    plan = planned(Graph((x,), outputs, {"batch": (1, 4)}))
    assert [(s.node.op, s.output) for s in plan.steps if isinstance(s, Copy)] == [
        ("input", 0),
        ("constant", 1),
        ("add", 3),
        ("add", 4),
    ]
    assert plan.slots == ()


def test_equal_weights_are_stored_once() -> None:
    x = input_("x", "f32", (B, 4))
    a, b = (constant(np.arange(4, dtype=np.float32), name) for name in "ab")
    plan = planned(Graph((x,), {"y": make("mul", (make("add", (x, a)), b))}, {"batch": (1, 4)}))
    assert len(plan.weights) == 1
    assert plan.weights_bytes == ALIGNMENT


@pytest.mark.parametrize(
    "text", ["plain", 'a "quoted" \\ name', "trigraph ??/", "tab\tand\nline", "naïve 模型 1", "\0017"]
)
def test_c_string(text: str) -> None:
    literal = c_string(text)
    assert literal.isascii()
    assert "??" not in literal
    assert ast.literal_eval(f"b{literal}") == text.encode()


def test_a_view_of_a_constant_is_read_from_the_weights() -> None:
    """As a segment's only row that is added to all tokens."""
    row = make("reshape", (constant(np.ones((1, 32), np.float32)),), shape=(1, 1, 32))
    x = input_("x", "f32", (B, S, 32))
    plan = planned(Graph((x,), {"y": make("add", (x, row))}, {"batch": (1, 4), "seq": (1, 9)}))
    (call,) = (step for step in plan.steps if not isinstance(step, Copy))
    assert plan.place(row).kind == "weight"
    assert [plan.place(operand).kind for operand in call.operands] == ["input", "weight", "output"]
