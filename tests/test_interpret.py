"""The interpreter: binding of inputs, defaults, watching, memory."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.interpret import run, step
from llmc.compiler.ops import constant, input_, make, state_
from llmc.errors import LlmcError

BATCH, SEQ = symbol("batch"), symbol("seq")


def masked() -> Graph:
    """x where the mask is set; the mask is optional and has values 0 and 1."""
    x = input_("x", "f32", (BATCH, SEQ))
    mask = input_("mask", "i64", (BATCH, SEQ), default=1, low=0, high=1)
    kept = make("where", (make("cast", (mask,), dtype="bool"), x, constant(np.float32(-1.0))))
    return Graph((x, mask), {"y": kept, "x": x}, {"batch": (1, 4), "seq": (2, 8)})


X = np.arange(6, dtype=np.float32).reshape(2, 3)
MASK = np.array([[1, 0, 1], [0, 1, 1]])


def test_values_and_defaults():
    np.testing.assert_array_equal(run(masked(), {"x": X})["y"], X)
    np.testing.assert_array_equal(run(masked(), {"x": X, "mask": MASK})["y"], np.where(MASK, X, -1))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "input 'x' is missing"),
    ({"x": X, "ids": X}, "no input 'ids'"),
    ({"x": X.astype(np.float64)}, "has dtype float64, not float32"),
    ({"x": X, "mask": MASK.astype(np.int32)}, "input 'mask' has dtype int32"),
    ({"x": X[0]}, "has 1 axes, not 2"),
    ({"x": X[:, :1]}, "seq = 1"),
    ({"x": np.zeros((5, 3), np.float32)}, "batch = 5"),
    ({"x": X, "mask": MASK[:, :2]}, "another input has 3"),
    ({"x": X, "mask": MASK + 1}, "holds 2 at [0, 0]"),
    ({"x": X, "mask": -MASK}, "holds -1 at [0, 0]"),
]


@pytest.mark.parametrize(("inputs", "message"), REFUSED)
def test_refused_inputs(inputs: dict[str, Any], message: str):
    with pytest.raises(LlmcError) as caught:
        run(masked(), inputs)
    assert message in str(caught.value)
    assert caught.value.hint


def test_sizes_that_are_expressions_or_fixed():
    x = input_("x", "f32", (SEQ,))
    more = input_("more", "f32", (SEQ + 1, 2))
    graph = Graph((more, x), {"y": more}, {"seq": (1, 8)})
    run(graph, {"x": X[0], "more": np.zeros((4, 2), np.float32)})
    for shape in ((3, 2), (4, 3)):
        with pytest.raises(LlmcError, match="on axis"):
            run(graph, {"x": X[0], "more": np.zeros(shape, np.float32)})


def test_watch_sees_every_node_in_order(random_graph):
    graph, inputs = random_graph(3)
    seen: list[Node] = []
    run(graph, inputs, watch=lambda node, value: seen.append(node))
    assert tuple(seen) == graph.nodes


def test_values_are_freed_after_their_last_use():
    node = x = input_("x", "f32", (1000,))
    for _ in range(20):
        node = make("exp", (make("neg", (node,)),))
    alive: list[weakref.ref[Any]] = []
    most = 0

    def watch(node: Node, value: Any) -> None:
        nonlocal most
        if node.op != "input":
            alive.append(weakref.ref(value))
        most = max(most, sum(r() is not None for r in alive))

    run(Graph((x,), {"y": node}), {"x": np.ones(1000, np.float32)}, watch)
    assert len(alive) == 40
    assert most <= 2


def test_outputs_share_no_memory():
    given, w = X.copy(), np.ones((2, 3), np.float32)
    graph = masked()
    result = run(graph, {"x": given})
    result["x"][:] = 7
    np.testing.assert_array_equal(given, X)
    out = run(Graph((), {"y": make("transpose", (constant(w),), perm=(1, 0))}), {})["y"]
    out[:] = 7
    assert (w == 1).all()


def test_numpy_warnings_do_not_leak():
    values = constant(np.array([0.0, -1.0, 1e30, np.inf, np.nan], np.float32))
    smallest = constant(np.array([np.iinfo(np.int64).min], np.int64))
    outputs = {op: make(op, (values,)) for op in ("exp", "log", "sqrt", "rsqrt", "sigmoid", "silu", "gelu")}
    outputs["mul"] = make("mul", (values, values))
    outputs["div"] = make("div", (values, constant(np.zeros(5))))
    outputs["cast"] = make("cast", (values,), dtype="i32")
    outputs["scalar"] = make("exp", (constant(1e30),))
    outputs["zero"] = make("floordiv", (smallest, constant(np.array([0]))))
    outputs["wrap"] = make("abs", (make("reshape", (smallest,), shape=()),))
    result = run(Graph((), outputs), {})
    assert np.isposinf(result["scalar"])
    assert result["wrap"] == np.iinfo(np.int64).min


def test_an_input_may_be_an_output_and_unused():
    x = input_("x", "f32", (2,))
    unused = input_("unused", "i64", (3,), default=4)
    result = run(Graph((x, unused), {"y": x}), {"x": np.ones(2, np.float32)})
    np.testing.assert_array_equal(result["y"], [1, 1])


def test_random_graphs_run_to_finite_values_and_repeat(random_graph):
    for seed in range(60):
        graph, inputs = random_graph(seed)
        again, same = random_graph(seed)
        first, second = run(graph, inputs), run(again, same)
        assert 5 <= len(graph.nodes) <= 25
        for name, value in first.items():
            assert np.isfinite(value).all()
            np.testing.assert_array_equal(value, second[name])


@pytest.mark.parametrize(
    ("op", "attributes", "problem"),
    [
        ("max", {"axes": (0,)}, "the size of axis 0, past = 0, is below 1"),
        ("argmax", {"axis": 0}, "the size of axis 0, past = 0, is below 1"),
        (
            "slice",
            {"axis": 0, "start": 1, "stop": symbol("past")},
            "its stop, past = 0, is below its start, 1",
        ),
    ],
)
def test_what_has_no_value_while_a_state_is_empty_is_told(op, attributes, problem):
    seen = state_("seen", "f32", (symbol("past"), 4), grows=0)
    graph = Graph((), {"y": make(op, (seen,), **attributes)}, {"past": (0, 8)}, (seen,))
    with pytest.raises(LlmcError) as caught:
        run(graph, {})
    assert caught.value.problem == f"{op} at seen: {problem}"
    one = {"seen": np.ones((1, 4), np.float32)}
    assert step(graph, {}, one)[0]["y"].size == (0 if op == "slice" else 4)
