"""Loops and branches: meaning, text, refusals, passes inside bodies, and where the planner puts what they handle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from plan_lab import carry_out
from random_loops import BATCH, DIMS, SEQ, random_loop, random_values

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.equality import equal
from llmc.compiler.graph import Graph, Node, Results, TensorType, Weight
from llmc.compiler.ops import constant, input_, make, results
from llmc.compiler.parse import parse_graph
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.plan import make_plan
from llmc.compiler.plan_bodies import Move, Repeat
from llmc.compiler.text import weights_of
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.targets.cpu.backend import BACKEND
from llmc.targets.cuda.backend import BACKEND as GPU

SIZES = ((1, 1), (2, 5), (3, 2), (8, 9))


def t(name: str, *shape: Any, dtype: str = "f32") -> Node:
    return input_(name, dtype, shape)


def decay(count: Any = SEQ, reverse: bool = False) -> Node:
    """h' = h * k + x, stacked: h' and relu(h')"""
    x, h, k = t("x", BATCH, 4), t("h", BATCH, 4), t("k", 4)
    after = make("add", (make("mul", (h, k)), x))
    body = Graph((x, h, k), {"h": after, "all": after, "positive": make("relu", (after,))})
    operands = (t("x", count, BATCH, 4), t("h", BATCH, 4), t("k", 4))
    return make("loop", operands, body=body, count=count, scanned=1, carried=1, reverse=reverse)


def graph_of(node: Node) -> Graph:
    names = ("last", "all", "positive", "more")
    inputs = tuple(dict.fromkeys(i for i in node.inputs if i.op == "input"))
    return Graph(inputs, dict(zip(names, results(node), strict=False)), DIMS)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_loop_is_a_scan(reverse: bool) -> None:
    rng = np.random.default_rng(0)
    x, h, k = (rng.normal(size=s).astype(np.float32) for s in ((5, 2, 4), (2, 4), (4,)))
    found = interpret.run(graph_of(decay(reverse=reverse)), {"x": x, "h": h, "k": k})
    state, stacked = h, np.zeros_like(x)
    for at in range(5)[:: -1 if reverse else 1]:
        state = state * k + x[at]
        stacked[at] = state
    np.testing.assert_array_equal(found["last"], state)
    np.testing.assert_array_equal(found["all"], stacked)
    np.testing.assert_array_equal(found["positive"], np.maximum(stacked, 0))


def test_a_loop_that_never_runs_hands_on_what_it_was_given() -> None:
    node = decay(count=0)
    graph = graph_of(node)
    verify(graph)
    h = np.ones((2, 4), np.float32)
    found = interpret.run(graph, {"x": np.zeros((0, 2, 4), np.float32), "h": h, "k": h[0]})
    np.testing.assert_array_equal(found["last"], h)
    assert found["all"].shape == (0, 2, 4)


@pytest.mark.parametrize(("value", "expected"), [(3.0, 4.0), (-3.0, 9.0)])
def test_a_branch_runs_one_of_its_bodies(value: float, expected: float) -> None:
    x = t("x", 1)
    inner = t("x", 1)
    then = Graph((inner,), {"y": make("add", (inner, constant(np.float32(1))))})
    otherwise = Graph((inner,), {"y": make("mul", (inner, inner))})
    condition = make("gt", (make("sum", (x,), axes=(0,), keepdims=False), constant(np.float32(0))))
    (y,) = results(make("branch", (condition, x), then=then, otherwise=otherwise))
    graph = Graph((x,), {"y": y})
    verify(graph)
    assert interpret.run(graph, {"x": np.array([value], np.float32)})["y"] == [expected]


# --- text


@pytest.mark.parametrize("seed", range(30))
def test_text_round_trip(seed: int) -> None:
    graph = random_loop(seed)
    verify(graph)
    again = parse_graph(str(graph), weights_of(graph))
    verify(again)
    assert equal(graph, again, sources=True)
    assert str(again) == str(graph)


def test_text(golden: Any) -> None:
    golden(graph_of(decay()))


def test_bodies_that_differ_make_graphs_that_differ() -> None:
    assert equal(graph_of(decay()), graph_of(decay()))
    assert not equal(graph_of(decay()), graph_of(decay(reverse=True)))
    text = str(graph_of(decay()))
    assert not equal(parse_graph(text), parse_graph(text.replace("relu(", "abs(")))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("graph 0\n", "graph zero\n", "not the number of a body"),
        ("body=graph(0)", "body=graph(1)", "graph 1 is not defined above"),
        ("graph 0\n", "graph 0\n  dims batch=1..2\n", "no `return` line before this one"),
        ("graph 0\n", "graph 0\n  return {}\ngraph 0\n", "defined twice"),
        (" : (f32[batch, 4], ", " : (f32[batch, 5], ", "the type is"),
        ("{index=2}", "{index=3}", "there is no result 3"),
    ],
)
def test_text_that_is_wrong(old: str, new: str, message: str) -> None:
    text = str(graph_of(decay()))
    assert old in text
    with pytest.raises(LlmcError, match=message):
        parse_graph(text.replace(old, new, 1))


def test_weights_inside_bodies_are_found() -> None:
    inner = t("h", 3, 12)
    w = constant(np.arange(144, dtype=np.float32).reshape(12, 12), "inside")
    body = Graph((inner,), {"h": make("linear", (inner, w))})
    h = t("h", 3, 12)
    graph = graph_of(make("loop", (h,), body=body, count=2, carried=1))
    assert [weight.name for weight in weights_of(graph).values()] == ["inside"]
    assert equal(graph, parse_graph(str(graph), weights_of(graph)))


# --- refusals


def body(*outputs: str, inputs: tuple[Node, ...] = ()) -> Graph:
    """Inputs x, h [4]; outputs by what they are."""
    x, h = inputs or (t("x", 4), t("h", 4))
    made = {"x": x, "h": h, "flag": make("gt", (x, x)), "wide": make("concat", (x, h), axis=0)}
    return Graph((x, h), {f"{i}": made[name] for i, name in enumerate(outputs)})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"count": None}, "a loop without bound: count is None"),
    ({"count": "seq"}, "a loop without bound"),
    ({"count": 2.0}, "a loop without bound"),
    ({"count": True}, "a loop without bound"),
    ({"count": -1}, "a loop without bound"),
    ({"count": 4}, "scanned operand 0 is .*: its axis 0 has not the size 4"),
    ({"body": "no graph"}, "not a graph"),
    ({"body": body("wide")}, r"carried value 0 is f32\[4\] before an iteration and f32\[8\] after it"),
    ({"body": body("flag")}, r"carried value 0 is f32\[4\] before an iteration and bool\[4\] after it"),
    ({"body": Graph((), {"y": constant(1.0)})}, "the body has 0 inputs, it is given 2"),
    ({"body": body("x", inputs=(t("x", 5), t("h", 4)))}, "for its input 0, which is"),
    ({"carried": 3}, "1 scanned and 3 carried operands are announced, given are 2"),
    ({"scanned": -1}, "scanned is -1"),
    ({"reverse": 1}, "reverse is 1"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_loops_that_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"body": body("h", "x"), "count": SEQ, "scanned": 1, "carried": 1}
    operands = (t("x", SEQ, 4), t("h", 4))
    assert str(make("loop", operands, **good).type) == "(f32[4], f32[seq, 4])"
    with pytest.raises(LlmcError, match=message):
        make("loop", operands, **good | change)


def test_branches_that_are_refused() -> None:
    flag, x, h = t("flag", dtype="bool"), t("x", 4), t("h", 4)
    make("branch", (flag, x, h), then=body("x"), otherwise=body("h"))
    with pytest.raises(LlmcError, match=r"the condition is bool\[4\], not bool\[\]"):
        make("branch", (t("flag", 4, dtype="bool"), x, h), then=body("x"), otherwise=body("h"))
    with pytest.raises(LlmcError, match=r"result 0 is f32\[4\] of then and f32\[8\] of otherwise"):
        make("branch", (flag, x, h), then=body("x"), otherwise=body("wide"))
    with pytest.raises(LlmcError, match="then has 1 outputs, otherwise 2"):
        make("branch", (flag, x, h), then=body("x"), otherwise=body("x", "h"))
    inner = t("x", 4)
    with pytest.raises(LlmcError, match="otherwise has 2 inputs, it is given 1"):
        make("branch", (flag, x), then=Graph((inner,), {"y": inner}), otherwise=body("x"))


def test_results_are_read_by_result_only() -> None:
    node = decay()
    with pytest.raises(LlmcError, match="several results") as caught:
        make("relu", (node,))
    assert caught.value.hint == "pick one of them with result{index}"
    with pytest.raises(LlmcError, match="a tensor, not a node with several results"):
        make("result", (t("x", 4),), index=0)
    with pytest.raises(LlmcError, match="there is no result 3"):
        make("result", (node,), index=3)


def breach(change: Any) -> Graph:
    """The decay loop with its body changed behind the builders' back."""
    node = decay()
    inner = node.attributes["body"]
    broken = Node("loop", node.inputs, {**node.attributes, "body": change(inner)}, node.type)
    return Graph(node.inputs, {"last": make("result", (broken,), index=0)}, DIMS)


def with_a_stranger(inner: Graph) -> Graph:
    """An output that reads an input which is not the body's."""
    made = dict(inner.outputs)
    return Graph(inner.inputs, made | {"all": make("add", (made["all"], t("other", 4)))})


BREACHES: list[tuple[Any, str]] = [
    (lambda b: Graph(b.inputs, b.outputs, DIMS), "a body has dims of its own"),
    (with_a_stranger, "used and not listed"),
    (lambda b: Graph(b.inputs, {}), "no outputs|the body has 0 outputs"),
    (lambda b: Graph((*b.inputs[:2], b.inputs[1]), b.outputs), "the body|two inputs are called"),
]


@pytest.mark.parametrize(("change", "message"), BREACHES)
def test_the_verifier_enters_bodies(change: Any, message: str) -> None:
    with pytest.raises(LlmcError, match=message):
        verify(breach(change))


def test_an_input_of_a_body_has_no_default() -> None:
    inner = input_("h", "f32", (4,), default=0)
    node = make("loop", (t("h", 4),), body=Graph((inner,), {"h": inner}), count=2, carried=1)
    with pytest.raises(LlmcError, match="default or a range"):
        verify(graph_of(node))


def test_a_dim_of_a_body_is_known_outside() -> None:
    inner = t("h", 4)
    more = make("sum", (make("full", (), shape=(symbol("other"), 4), value=1.0, dtype="f32"),), axes=(0,))
    looped = Graph((inner,), {"h": make("add", (inner, make("reshape", (more,), shape=(4,))))})
    node = make("loop", (t("h", 4),), body=looped, count=2, carried=1)
    with pytest.raises(LlmcError, match="dim 'other' has no bounds"):
        verify(graph_of(node))
    counted = make("loop", (t("h", 4),), body=Graph((inner,), {"h": inner}), count=symbol("other"), carried=1)
    with pytest.raises(LlmcError, match="dim 'other' has no bounds"):
        verify(graph_of(counted))


def test_outputs_and_results_of_a_graph() -> None:
    node = decay()
    with pytest.raises(LlmcError, match="output 'y' is a node with several results"):
        verify(Graph(node.inputs, {"y": node}, DIMS))
    twice = [make("result", (node,), index=0) for _ in range(2)]
    with pytest.raises(LlmcError, match="result 0 of a node is picked twice"):
        verify(Graph(node.inputs, {"a": twice[0], "b": twice[1]}, DIMS))


def test_types_of_several_results() -> None:
    kind = Results((TensorType("f32", (2,)), TensorType("i64", ())))
    assert str(kind) == "(f32[2], i64[])"
    assert kind == Results((TensorType("f32", (2,)), TensorType("i64", ())))
    assert kind != Results((TensorType("f32", (2,)),))


# --- passes


def test_passes_enter_bodies() -> None:
    inner = t("h", BATCH, 4)
    one = constant(np.float32(1))
    w = constant(np.eye(4, dtype=np.float32))
    product = make("linear", (make("mul", (inner, one)), w))
    looped = Graph((inner,), {"h": make("tanh", (make("add", (product, make("add", (one, one)))),))})
    h = t("h", BATCH, 4)
    graph = graph_of(make("loop", (h,), body=looped, count=3, carried=1))
    after, _ = Pipeline.parse(LEVELS[3], PASSES).run(graph)
    (loop,) = (n for n in after.nodes if n.op == "loop")
    assert [n.op for n in loop.attributes["body"].nodes if n.op not in ("input", "constant")] == [
        "linear",
        "chain",
    ]
    value = {"h": np.ones((2, 4), np.float32)}
    np.testing.assert_allclose(interpret.run(after, value)["last"], interpret.run(graph, value)["last"], 1e-6)


def test_a_pass_without_work_in_a_body_returns_the_same_graph() -> None:
    graph = graph_of(decay())
    after, report = Pipeline.parse("simplify,fold,cse,tie", PASSES).run(graph)
    assert after is graph
    assert not any(run.changed for run in report.runs)


def test_int8_enters_bodies() -> None:
    rng = np.random.default_rng(3)
    inner = t("h", BATCH, 32)
    w = constant((rng.normal(size=(32, 32)) / 8).astype(np.float32))
    looped = Graph((inner,), {"h": make("tanh", (make("linear", (inner, w)),))})
    graph = graph_of(make("loop", (t("h", BATCH, 32),), body=looped, count=3, carried=1))
    after, _ = Pipeline.parse(f"{LEVELS[3]},quantize,qfuse", PASSES).run(graph)
    ops = {n.op for n in after.everywhere()}
    assert {"qlinear", "quantize_rows"} <= ops
    assert "linear" not in ops
    value = {"h": rng.normal(size=(2, 32)).astype(np.float32)}
    np.testing.assert_allclose(
        interpret.run(after, value)["last"], interpret.run(graph, value)["last"], atol=0.02
    )


@pytest.mark.parametrize("seed", range(30))
def test_passes_keep_the_meaning_of_random_loops(seed: int) -> None:
    graph = random_loop(seed)
    after, _ = Pipeline.parse(LEVELS[3], PASSES).run(graph)
    values = random_values(graph, 2, 4)
    expected = interpret.run(graph, values)
    for name, value in interpret.run(after, values).items():
        np.testing.assert_array_equal(value, expected[name])


# --- where values live


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("seed", range(40))
def test_plans_of_random_loops(seed: int, level: int) -> None:
    graph, _ = Pipeline.parse(LEVELS[level], PASSES).run(random_loop(seed))
    plan = make_plan(graph, BACKEND.lower(graph))
    for batch, seq in SIZES:
        values = random_values(graph, batch, seq)
        expected = interpret.run(graph, values)
        found = carry_out(graph, plan, values, {"batch": batch, "seq": seq})
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{name} at {batch} x {seq}")


def test_slices_are_not_copied_and_a_stacked_state_needs_no_buffer() -> None:
    graph = graph_of(decay())
    plan = make_plan(graph, BACKEND.lower(graph))
    (loop,) = plan.steps
    assert isinstance(loop, Repeat)
    assert not any(isinstance(step, Move) for step in loop.body.steps)
    (carried,) = loop.carried
    assert carried.spare is None  # the next state is the slice that has been stacked
    assert plan.slots == (16 * BATCH,)  # h * k


def test_a_state_that_is_not_stacked_alternates_between_two_places() -> None:
    inner = t("h", BATCH, 4)
    looped = Graph((inner,), {"h": make("tanh", (inner,))})
    graph = graph_of(make("loop", (t("h", BATCH, 4),), body=looped, count=5, carried=1))
    plan = make_plan(graph, BACKEND.lower(graph))
    (loop,) = plan.steps
    assert isinstance(loop, Repeat)
    (carried,) = loop.carried
    assert (carried.last.kind, carried.first.kind) == ("output", "input")
    assert carried.spare is not None
    assert plan.slots == (16 * BATCH,)


def test_arena_of_a_loop_does_not_grow_with_its_iterations() -> None:
    inner = y = t("h", BATCH, 4)
    for _ in range(6):
        y = make("tanh", (y,))
    graph = graph_of(make("loop", (t("h", BATCH, 4),), body=Graph((inner,), {"h": y}), count=100, carried=1))
    assert make_plan(graph, BACKEND.lower(graph)).slots == (16 * BATCH,) * 3


def test_sizes_of_nothing_and_something_share_a_slot() -> None:
    inner = t("h", BATCH, 4)
    looped = Graph((inner,), {"h": make("tanh", (inner,)), "all": make("relu", (inner,))})
    h = t("h", BATCH, 4)
    last, stacked = results(make("loop", (h,), body=looped, count=0, carried=1))
    total = make("sum", (stacked,), axes=(0,), keepdims=False)
    graph = Graph((h,), {"y": make("neg", (make("add", (total, make("exp", (last,)))),))}, DIMS)
    plan = make_plan(graph, BACKEND.lower(graph))
    value = {"h": np.ones((2, 4), np.float32)}
    found = carry_out(graph, plan, value, {"batch": 2, "seq": 1})
    np.testing.assert_array_equal(found["y"], interpret.run(graph, value)["y"])


def test_constants_of_bodies_and_operands_are_stored() -> None:
    inner, k = t("h", 4), t("k", 4)
    looped = Graph((inner, k), {"h": make("add", (inner, k)), "k": constant(np.ones(4, np.float32))})
    first, held = constant(np.zeros(4, np.float32)), constant(np.full(4, 2, np.float32))
    graph = graph_of(make("loop", (first, held), body=looped, count=3, carried=1))
    plan = make_plan(graph, BACKEND.lower(graph))
    found = carry_out(graph, plan, {}, {})
    np.testing.assert_array_equal(found["last"], np.full(4, 6))
    np.testing.assert_array_equal(found["all"], np.ones((3, 4)))
    assert len(plan.weights) == 3


def test_a_branch_on_a_gpu_is_refused_with_a_sentence() -> None:
    flag, x, h = t("flag", dtype="bool"), t("x", 4), t("h", 4)
    (y,) = results(make("branch", (flag, x, h), then=body("x"), otherwise=body("h")))
    with pytest.raises(LlmcError, match="a branch cannot run on a GPU yet"):
        GPU.lower(Graph((flag, x, h), {"y": y}))


def test_a_weight_is_no_body() -> None:
    assert make("constant", (), value=Weight(np.ones(2, np.float32))).bodies == ()
