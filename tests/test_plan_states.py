"""Where states live: what is added is written behind what is there, everything else into memory of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stateful_graphs import BATCH, EVERY, PAST, SEQ, accumulator, causal, encoder_decoder, random_stateful

from llmc.compiler.calls import Call
from llmc.compiler.dims import dim, evaluate, symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make, state_
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.plan import Copy, Plan, make_plan, make_plans
from llmc.compiler.plan_bodies import Move
from llmc.compiler.plan_states import held, state_use
from llmc.compiler.slots import Place, nbytes, root
from llmc.compiler.verify import verify
from llmc.passes import LEVELS, PASSES
from llmc.targets.cpu.backend import BACKEND

POISON = object()
X = input_("x", "f32", (SEQ, 4))
DIMS = {"seq": (1, 9), "past": (0, 20)}


def passed(graph: Graph, level: int = 3) -> Graph:
    return Pipeline.parse(",".join(p for p in ("append", LEVELS[level]) if p), PASSES).run(graph)[0]


def planned(graph: Graph) -> Plan:
    verify(graph)
    plan = make_plan(graph, BACKEND.lower(graph))
    for alone in (True, False):
        simulate(graph, plan, alone)
    check_company(plan)
    return plan


def check_company(plan: Plan) -> None:
    """What one call reads or writes for all sessions of a run is not where each has its own."""
    if plan.together is None:
        return
    for call in filter(plan.together.serves_all, (s for s in plan.steps if isinstance(s, Call))):
        places = [place_in(plan, operand, alone=False) for operand in call.operands]
        assert not {"own", "state", "next"} & {place.kind for place in places}, call.source


def simulate(graph: Graph, plan: Plan, alone: bool) -> None:
    """Run the program on names of values instead of values; memory that holds none is poisoned.

    Args:
        alone: as of a run of one session; else as of one of several.
    """
    names = [node.attributes["name"] for node in graph.states]
    memory: dict[tuple[str, int, Any], object] = {}
    for i, node in enumerate(graph.states):
        memory["state", i, 0] = node
    for i, node in enumerate(graph.inputs):
        memory["input", i, 0] = node
    for step in plan.steps:
        carry_out(plan, step, memory, alone)
    for i, node in enumerate(graph.outputs.values()):
        assert memory["output", i, 0] in (root(node), held(node))
    for name, update in graph.updates.items():
        i = names.index(name)
        match state_use(graph, name):
            case "appended":
                assert memory["state", i, nbytes(update.inputs[0])] in (
                    root(update.inputs[1]),
                    held(update.inputs[1]),
                )
            case "replaced":
                assert memory["next", i, 0] in (root(update), held(update))
            case use:
                assert use in ("read", "unused")


def carry_out(plan: Plan, step: Any, memory: dict[Any, object], alone: bool) -> None:
    if isinstance(step, Call):
        for operand in step.operands[:-1]:
            check_read(place_in(plan, operand, alone), operand, memory)
        written = step.operands[-1]
        write(memory, place_in(plan, written, alone), root(written))
        return
    assert isinstance(step, Copy | Move)
    to = step.to if isinstance(step, Move) else Place("output", step.output)
    place = place_in(plan, step.node, alone)
    if place != to:
        check_read(place, step.node, memory)
        write(memory, to, held(step.node))


def place_in(plan: Plan, operand: Any, alone: bool) -> Place:
    place = plan.place(operand)
    return place.alone if alone and place.alone is not None else replace(place, alone=None)


def write(memory: dict[Any, object], place: Place, value: object) -> None:
    slots = ("slot", "own")
    assert place.kind in (*slots, "output", "next") or (place.kind == "state" and place.offset != 0), place
    assert place.kind in slots or (place.kind, place.index, place.offset) not in memory, "written twice"
    memory[place.kind, place.index, place.offset] = value


def check_read(place: Place, operand: Any, memory: dict[Any, object]) -> None:
    if place.kind == "weight":
        return
    assert memory.get((place.kind, place.index, place.offset), POISON) is root(operand), (
        f"{operand} is not there"
    )
    while operand is not root(operand):
        if operand.op == "append":
            behind = ("state", place.index, nbytes(operand.inputs[0]))
            assert memory.get(behind, POISON) in (root(operand.inputs[1]), held(operand.inputs[1])), (
                "not added yet"
            )
        operand = operand.inputs[0]


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("name", EVERY)
def test_examples(name: str, level: int) -> None:
    for graph in Module.of(EVERY[name]()).functions.values():
        planned(passed(graph, level))
        if not level:
            planned(graph)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed: int) -> None:
    graph = passed(random_stateful(seed)[0], 3 if seed % 2 else 0)
    planned(graph)


def test_a_causal_layer_copies_nothing() -> None:
    """Keys and values are computed where they belong, and attention reads them there; in company values are moved."""
    graph = passed(causal())
    plan = planned(graph)
    moved = [step for step in plan.steps if not isinstance(step, Call)]
    assert all(isinstance(step, Move) and plan.place(step.node).alone == step.to for step in moved)
    calls = [step for step in plan.steps if isinstance(step, Call)]
    touching = [c for c in calls if any(_state_of(plan, o) for o in c.operands)]
    assert [c.kernel.family for c in touching] == ["linear", "linear", "attention"]
    ends = [place_in(plan, c.operands[-1], True) for c in touching[:2]]
    assert ends == [Place("state", i, 128 * PAST) for i in (0, 1)]
    largest = {"past": 40, "seq": 1}
    cache = evaluate(nbytes(graph.updates["keys"]), largest)
    assert sum(evaluate(size, largest) for size in plan.slots) < cache


def _state_of(plan: Plan, operand: Any) -> bool:
    return place_in(plan, operand, True).kind == "state"


def test_a_fixed_state_is_written_once_beside_itself() -> None:
    plan = planned(passed(accumulator()))
    assert [plan.place(s.operands[-1]) for s in plan.steps if isinstance(s, Call)] == [
        Place("next", 0),
        Place("output", 0),
    ]
    assert not any(isinstance(step, Copy | Move) for step in plan.steps)


def rows(name: str) -> Node:
    return state_(name, "f32", (PAST, 4), grows=0)


def of(outputs: dict[str, Node], states: tuple[Node, ...], **updates: Node) -> Graph:
    return Graph((X,), outputs, DIMS, states, updates)


def added(value: Callable[[Node], Node], read: bool = True) -> Graph:
    """A state that `value(state)` is added to, whose sum is read."""
    state = rows("s")
    whole = make("append", (state, value(state)))
    total = make("sum", (whole,), axes=(0,), keepdims=False)
    return of({"y": total if read else make("neg", (X,))}, (state,), s=whole)


def moves(plan: Plan) -> list[tuple[int, str, Place]]:
    """Number of the step, op of the value, place."""
    return [(i, s.node.op, s.to) for i, s in enumerate(plan.steps) if isinstance(s, Move)]


def test_what_no_call_writes_is_copied_before_it_is_read() -> None:
    behind = Place("state", 0, 16 * PAST)
    assert moves(planned(added(lambda s: X))) == [(0, "input", behind)]
    assert moves(planned(added(lambda s: constant(np.ones((2, 4), np.float32))))) == [(0, "constant", behind)]
    assert moves(planned(added(lambda s: s))) == [(0, "state", behind)]
    assert moves(planned(added(lambda s: make("reshape", (make("neg", (X,)),), shape=(SEQ, 4))))) == []
    assert moves(planned(added(lambda s: X, read=False))) == [(1, "input", behind)]


def test_one_value_for_two_states_and_an_output() -> None:
    a, b, new = rows("a"), rows("b"), make("neg", (X,))
    pair = {"a": make("append", (a, new)), "b": make("append", (b, new))}
    both = make("add", (pair["a"], pair["b"]))
    plan = planned(of({"y": both, "new": new, "whole": pair["a"], "old": b}, (a, b), **pair))
    assert moves(plan) == [(1, "neg", Place("state", 1, 16 * PAST))]
    copied = [(s.node.op, s.output) for s in plan.steps if isinstance(s, Copy)]
    assert copied == [("neg", 1), ("append", 2), ("state", 3)]


def test_what_is_added_session_by_session_and_read_for_all_at_once() -> None:
    """It lies side by side, and is moved: the rows of one session are not those of the next."""
    x, state = input_("x", "f32", (1, SEQ, 4)), rows("s")
    added = make("reshape", (make("cumsum", (x,), axis=1),), shape=(SEQ, 4))
    graph = Graph((x,), {"y": make("neg", (added,))}, DIMS, (state,), {"s": make("append", (state, added))})
    plan = planned(graph)
    assert plan.together is not None
    assert [m[1:] for m in moves(plan)] == [("cumsum", Place("state", 0, 16 * PAST))]
    assert plan.place(added).alone == Place("state", 0, 16 * PAST)


def test_states_that_change_places() -> None:
    a, b = (state_(name, "f32", (4, 4)) for name in "ab")
    swapped = Graph((), {"y": make("add", (a, b))}, {}, (a, b), {"a": b, "b": a})
    assert [m[1:] for m in moves(planned(swapped))] == [
        ("state", Place("next", 0)),
        ("state", Place("next", 1)),
    ]


def test_a_state_that_stays_costs_nothing() -> None:
    a = state_("a", "f32", (4, 4))
    view = make("reshape", (make("reshape", (a,), shape=(16,)),), shape=(4, 4))
    plan = planned(Graph((), {"y": make("neg", (a,))}, {}, (a,), {"a": view}))
    assert not moves(plan)


USES: dict[str, tuple[Callable[[Node], Graph], str]] = {
    "listed": (lambda s: of({"x": make("neg", (X,))}, (s,)), "unused"),
    "read": (lambda s: of({"y": make("neg", (s,))}, (s,)), "read"),
    "given out": (lambda s: of({"s": s}, (s,)), "read"),
    "kept": (lambda s: of({"x": make("neg", (X,))}, (s,), s=s), "unused"),
    "appended": (lambda s: of({}, (s,), s=make("append", (s, X))), "appended"),
    "begun anew": (lambda s: of({}, (s,), s=X), "replaced"),
    "read and replaced": (lambda s: of({}, (s,), s=make("concat", (X, s), axis=0)), "replaced"),
}


@pytest.mark.parametrize("name", USES)
def test_what_a_function_does_to_a_state(name: str) -> None:
    build, use = USES[name]
    graph = build(rows("s"))
    assert state_use(graph, "s") == use
    assert state_use(graph, "another") == "unused"
    planned(graph)


def test_functions_share_weights() -> None:
    module = encoder_decoder().each(lambda name, graph: passed(graph))
    calls = {name: BACKEND.lower(graph) for name, graph in module.functions.items()}
    plans = make_plans(module, calls)
    first, second = plans.values()
    assert first.weights is second.weights
    alone = sum(make_plan(g, BACKEND.lower(g)).weights_bytes for g in module.functions.values())
    assert first.weights_bytes == alone - 4096  # w21, which both have
    places = {plans["step"].place(node).index for node in module.functions["step"].states}
    assert places == {0, 1, 2, 3}


def test_slots_are_as_large_where_nothing_is_held() -> None:
    """A dim that may be 0 is not taken to be at least 1 when sizes are compared."""
    state, more = rows("s"), input_("more", "f32", (PAST, 4))
    small = make("add", (make("neg", (X,)), constant(np.ones(4, np.float32))))
    large = make("add", (make("neg", (more,)), make("sum", (make("abs", (small,)),), axes=(0,))))
    graph = Graph(
        (X, more), {"y": make("abs", (large,))}, DIMS, (state,), {"s": make("concat", (state, X), axis=0)}
    )
    plan = planned(graph)
    for sizes in ({"seq": 9, "past": 0}, {"seq": 1, "past": 20}, {"seq": 1, "past": 0}):
        for node, place in plan.places.items():
            if place.kind == "slot":
                assert evaluate(nbytes(node), sizes) <= evaluate(plan.slots[place.index], sizes)


def test_batches_are_transposed_only_once() -> None:
    """Positions come first in memory: keys of several sequences are turned before attention, nothing else is."""
    plan = planned(passed(causal(BATCH)))
    assert sum(s.kernel.family == "move" for s in plan.steps if isinstance(s, Call)) == 8


def test_a_state_that_tells_sizes_of_others_is_read() -> None:
    """Whoever knows how many frames a sound had knows how many vectors were made of them."""
    frames = symbol("frames")
    known, made_of = state_("known", "bool", (frames,)), state_("made", "f32", (dim(frames / 2),))
    sum_of = make("sum", (made_of,), axes=(0,))
    graph = Graph((), {"sum": sum_of}, {"frames": (2, 8)}, (known, made_of))
    assert [state_use(graph, name) for name in ("known", "made")] == ["read", "read"]
    plain = state_("made", "f32", (frames,))
    graph = Graph((), {"sum": make("sum", (plain,), axes=(0,))}, {"frames": (2, 8)}, (known, plain))
    assert state_use(graph, "known") == "unused"
