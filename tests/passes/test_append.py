"""`append` makes states grow at their end, and every pass keeps outputs and next states, call after call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stateful_graphs import (
    BATCH,
    EVERY,
    PAST,
    SEQ,
    accumulator,
    causal,
    random_stateful,
)

from llmc.compiler.equality import equal
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.ops import input_, make, state_
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.promises import run_verified
from llmc.compiler.samples import play, samples
from llmc.compiler.verify import verify_module
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.append import Append, append_steps
from llmc.passes.quantise import Quantize

KEEPING = [name for name, kind in PASSES.items() if kind.keeps.kind != "lossy"]
X = input_("x", "f32", (BATCH, SEQ, 4))
BOUNDS = {"batch": (1, 3), "seq": (1, 9), "past": (0, 30)}


def through(*steps: str) -> Pipeline:
    return Pipeline.parse(",".join(steps), PASSES)


def same_sessions(before: Graph, after: Graph, sessions: Any, limit: float = 2e-5) -> None:
    for session in sessions:
        a, b = play(before, session), play(after, session)
        assert list(a) == list(b)
        for name, value in a.items():
            scale = float(np.abs(value).max(initial=0)) or 1.0
            np.testing.assert_allclose(b[name], value, rtol=0, atol=limit * scale, err_msg=name)


def growing(axis: int = 1, name: str = "s") -> Node:
    shape = [BATCH, 4]
    shape.insert(axis, PAST)
    return state_(name, "f32", tuple(shape), grows=axis)


def one(update: Node, *states: Node, output: Node | None = None) -> Graph:
    outputs = {"y": make("neg", (update if output is None else output,))}
    return Graph((X,), outputs, BOUNDS, states, {states[0].attributes["name"]: update})


def rowed(axis: int) -> Node:
    perm = {0: (1, 0, 2), 1: (0, 1, 2), 2: (0, 2, 1)}[axis]
    return make("transpose", (X,), perm=perm)


# --- what it does


def test_a_causal_layer(golden: Any) -> None:
    golden(Append().run(causal()))


def test_batches(golden: Any) -> None:
    golden(Append().run(causal(BATCH)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis(axis: int) -> None:
    state = growing(axis)
    before = one(make("concat", (state, rowed(axis)), axis=axis), state)
    after, _ = Pipeline.of(Append()).run(before)
    assert after.states[0].attributes["grows"] == 0
    assert after.states[0].shape == (PAST, BATCH, 4)
    assert after.updates["s"].op == "append"
    same_sessions(before, after, samples(before), 0)


def test_several_new_parts_are_one() -> None:
    state = growing()
    before = one(make("concat", (state, X, X), axis=1), state)
    after, _ = Pipeline.of(Append()).run(before)
    assert after.updates["s"].op == "append"
    assert after.updates["s"].inputs[1].shape == (2 * SEQ, BATCH, 4)
    same_sessions(before, after, samples(before), 0)


OTHERS = {
    "begun anew": lambda s: X,
    "before what is there": lambda s: make("concat", (X, s), axis=1),
    "twice what is there": lambda s: make("concat", (s, s), axis=1),
    "shorter": lambda s: make("slice", (make("concat", (s, X), axis=1),), axis=1, start=SEQ, stop=PAST + SEQ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_only_add_is_moved_and_no_more(name: str) -> None:
    state = growing()
    before = one(OTHERS[name](state), state)
    after, _ = Pipeline.of(Append()).run(before)
    assert after.states[0].shape == (PAST, BATCH, 4)
    assert "append" not in {node.op for node in after.nodes} or name == "twice what is there"
    same_sessions(before, after, samples(before), 0)


def test_a_state_that_is_only_read_is_moved_too() -> None:
    """Another function of the module may append to it."""
    state = growing()
    graph = Graph((X,), {"y": make("sum", (state,), axes=(1,), keepdims=False)}, BOUNDS, (state,))
    after, _ = Pipeline.of(Append()).run(graph)
    assert after.states[0].shape == (PAST, BATCH, 4)
    assert not after.updates


def test_untouched() -> None:
    state = state_("s", "f32", (PAST, 4), grows=0)
    new = input_("new", "f32", (SEQ, 4))
    appended = Graph((new,), {}, BOUNDS, (state,), {"s": make("append", (state, new))})
    for graph in (accumulator(), appended, Append().run(causal()), Graph((X,), {"x": X}, BOUNDS)):
        assert Append().run(graph) is graph


def test_it_runs_where_a_state_grows() -> None:
    assert str(append_steps(Module.of(causal()))) == "append"
    assert not append_steps(Module.of(accumulator())).steps


def test_functions_agree_afterwards() -> None:
    module = EVERY["encoder and decoder"]()
    after, reports = Pipeline.of(Append()).run_module(module)
    verify_module(after)
    assert list(reports) == ["encode", "step"]
    assert after.states["keys"].grows == 0
    with pytest.raises(LlmcError) as caught:
        through("factorize{energy=2.0}").run_module(module)
    assert caught.value.problem


def test_a_fault_names_the_function() -> None:
    module = Module({"one": accumulator(), "two": causal()})
    with pytest.raises(LlmcError) as caught:
        through('prune{skip=["nothing"]}').run_module(module)
    assert str(caught.value.at).startswith("function one")


# --- every pass keeps states


@pytest.mark.parametrize("name", KEEPING)
def test_passes_keep_states(name: str) -> None:
    for seed in range(4):
        graph, session = random_stateful(seed)
        after, _ = through(*(("append", name) if seed % 2 else (name,))).run(graph)
        same_sessions(graph, after, [session, *samples(graph)[:1]])
        assert list(after.updates) == list(graph.updates)


@pytest.mark.parametrize("name", sorted(set(PASSES) - set(KEEPING)))
def test_lossy_passes_carry_states(name: str) -> None:
    """They change values, not which states there are and what they become."""
    change = {
        "factorize": "factorize{energy=0.9}",
        "share": "share{clusters=4}",
        "only": 'only{layers=["*"],passes="share{clusters=4}"}',
    }.get(name, name)
    for graph in (causal(), random_stateful(3)[0]):
        before, _ = through("append", LEVELS[3]).run(graph)
        with giving(Given(lambda graph: (session.calls[0] for session in samples(graph)))):
            after, _ = through(change).run(before)
        assert list(after.updates) == list(graph.updates)
        assert [n.attributes["name"] for n in after.states] == [n.attributes["name"] for n in graph.states]
        assert len(play(after, samples(after)[0])) == len(play(graph, samples(graph)[0]))


def test_quantised_projections_still_append() -> None:
    graph, _ = through("append", LEVELS[3]).run(causal())
    after = Quantize(min_columns=1).run(graph)
    assert {n.op for n in after.nodes} >= {"append", "row_scale"}
    same_sessions(graph, after, samples(graph), 0.05)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("name", EVERY)
def test_levels_keep_sessions(name: str, level: int) -> None:
    module = Module.of(EVERY[name]())
    after, _ = through(*(p for p in ("append", LEVELS[level]) if p)).run_module(module)
    for function, graph in module.functions.items():
        same_sessions(graph, after.functions[function], samples(graph))


def test_a_second_run_changes_nothing() -> None:
    once, _ = through("append", LEVELS[3]).run(causal())
    twice, _ = through("append", LEVELS[3]).run(once)
    assert equal(once, twice)


def test_promises_are_held_over_sessions() -> None:
    said: list[str] = []
    run_verified(through("append", LEVELS[3]), causal(), say=said.append)
    assert said[0].startswith("append: ")
    assert said[0].endswith("promised exact")


class Forgetful(Append):
    """Appends zeros instead."""

    name = "forgetful"

    def run(self, graph: Graph) -> Graph:
        return graph.replace(
            lambda n: (
                make("append", (n.inputs[0], make("sub", (n.inputs[1],) * 2))) if n.op == "append" else n
            )
        )


def test_a_breach_that_only_later_calls_show_is_found() -> None:
    state = state_("s", "f32", (PAST, 4), grows=0)
    new = input_("new", "f32", (SEQ, 4))
    y = make("sum", (state,), axes=(0,), keepdims=False)
    graph = Graph((new,), {"y": y}, BOUNDS, (state,), {"s": make("append", (state, new))})
    with pytest.raises(LlmcError, match="promises exact and breaks it") as caught:
        run_verified(Pipeline.of(Forgetful()), graph)
    assert "of call" in str(caught.value.found) or "state s" in str(caught.value.found)


def test_dims_that_may_be_0_are_not_taken_for_more() -> None:
    """`0 < past + i` is not true of the first place of a session."""
    places = make("iota", (), length=SEQ, start=PAST)
    after_first = make("gt", (places, make("full", (), shape=(SEQ,), value=0, dtype="i64")))
    state = state_("s", "f32", (PAST, 4), grows=0)
    new = input_("new", "f32", (SEQ, 4))
    graph = Graph((new,), {"y": after_first}, BOUNDS, (state,), {"s": make("append", (state, new))})
    after, _ = through("simplify").run(graph)
    same_sessions(graph, after, samples(graph), 0)
    assert after.outputs["y"].op == "gt"
    sure = make("ge", (places, make("full", (), shape=(SEQ,), value=0, dtype="i64")))
    after, _ = through("simplify").run(Graph((new,), {"y": sure}, BOUNDS, (state,), graph.updates))
    assert "ge" not in {n.op for n in after.nodes}
