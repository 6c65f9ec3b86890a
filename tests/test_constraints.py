"""Constraints on sizes: what bounds prove is no constraint, what is left is said once, in the interpreter's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sympy
from random_encoders import random_encoder
from stateful_graphs import EVERY

from llmc.compiler.bounded import never_negative
from llmc.compiler.constraints import constraints
from llmc.compiler.dims import Bounds, dim, dim_c, floor_div, parse_dim, symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.interpret import run, step
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make, state_
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.rows.blank import Blank
from llmc.passes.rows.ragged import Ragged

BOUNDS = {"a": Bounds(1, 512), "b": Bounds(1, 512), "past": Bounds(0, 512)}
A, B = symbol("a"), symbol("b")


@pytest.mark.parametrize(
    ("text", "proven"),
    [
        ("a - 1", True),
        ("a - 2", False),
        ("512 - a", True),
        ("511 - a", False),
        ("a - b", False),
        ("a*b - b", True),
        ("a*b - b - 1", False),
        ("a**2 - a", True),
        ("a - floor(a/2)", True),
        ("floor((a + 1)/2) - 1", True),
        ("floor(a/2) - 1", False),
        ("floor((a - 3)/2) + 1", True),
        ("Max(0, past - 4)", True),
        ("past - Max(0, past - 4)", True),
        ("past - Min(a, past)", True),
        ("Min(a, past) - past", False),
        ("c", True),
        ("c - 1", False),
    ],
)
def test_what_bounds_prove(text: str, proven: bool) -> None:
    assert never_negative(parse_dim(text), BOUNDS) is proven


def test_a_quotient_in_c_is_floor_below_zero_too() -> None:
    assert dim_c(parse_dim("floor((a - b)/2)")) == "llmc_floor((a + (-1 * b)), 2)"
    assert dim_c(parse_dim("floor((a - 3)/2)")) == "(-2 + ((1 + a) / 2))"  # a is no size below 0
    assert dim_c(parse_dim("floor((a + 3)/2)")) == "(1 + ((1 + a) / 2))"
    assert dim_c(parse_dim("a*b/4")) == "((a * b) / 4)"
    assert dim_c(parse_dim("a/b + 1")) == "((a + b) / b)"


def said(graph: Graph) -> list[str]:
    return [f"{c.head}_{c.middle}_" for c in constraints(graph)]


def of(*nodes: Node, dims: Any = None) -> Graph:
    found = Graph((), {str(i): node for i, node in enumerate(nodes)})
    inputs = tuple(node for node in found.nodes if node.op == "input")
    return Graph(inputs, found.outputs, dims or {"a": (1, 64), "b": (1, 64)})


def cut(x: Node, start: Any, stop: Any, step: int = 1) -> Node:
    return make("slice", (x,), axis=0, start=start, stop=stop, step=step)


def test_the_strongest_of_those_that_say_alike_is_left() -> None:
    x, y = input_("x", "f32", (A,)), input_("y", "f32", (B,))
    graph = of(cut(x, 0, B), cut(x, 1, B + 2), cut(x, 0, B), cut(x, B, A, 2), y)
    assert said(graph) == ["slice at x: its stop, b + 2 = _, is above the size of axis 0, a = _"]


def test_sizes_that_have_to_be_the_same_number() -> None:
    """Both ways; what is the larger at all sizes is asked for once."""
    half = 2 * floor_div(A, 2)
    x, y = input_("x", "f32", (A,)), input_("y", "f32", (B,))
    graph = of(make("ensure_shape", (x,), shape=(half,)), make("ensure_shape", (y,), shape=(A,)))
    name, what = "the size of axis 0", "what the size of axis 0 has to be"
    assert said(graph) == [
        f"ensure_shape at x: {name}, a = _, is above what it has to be, 2*floor(a/2) = _",
        f"ensure_shape at y: {name}, b = _, is above what it has to be, a = _",
        f"ensure_shape at y: {what}, a = _, is above what it is, b = _",
    ]
    assert run(graph, {"x": np.ones(4, np.float32), "y": np.ones(4, np.float32)})["0"].shape == (4,)
    assert refusal(graph, x=[5], y=[5]).endswith("a = 5, is above what it has to be, 2*floor(a/2) = 4")
    assert refusal(graph, x=[4], y=[2]).endswith("a = 4, is above what it is, b = 2")


def test_a_slice_of_nothing_by_steps() -> None:
    """Two slices become one that ends before it begins, and reads nothing."""
    past = symbol("past")
    seen = state_("seen", "f32", (past,), grows=0)
    half = cut(cut(seen, 0, past, 2), 0, dim(sympy.floor((past + 1) / 2)))
    dims = {"past": (0, 8)}
    graph = Graph((), {"0": half}, dims, (seen,))
    one = Pipeline.parse("simplify", PASSES).run(graph)[0]
    assert len(one.nodes) < len(graph.nodes)
    for length in (0, 1, 4):
        given = {"seen": np.arange(length, dtype=np.float32)}
        for each in (graph, one):
            np.testing.assert_array_equal(step(each, {}, given)[0]["0"], given["seen"][::2])


def test_an_encoder_has_none() -> None:
    """Before and after passes, packed rows too."""
    for seed in range(3):
        graph, _ = random_encoder(seed)
        packed = Ragged().run(Blank("mask").run(Pipeline.parse(LEVELS[3], PASSES).run(graph)[0]))
        assert constraints(graph) == constraints(packed) == ()


@pytest.mark.parametrize("name", EVERY)
def test_states_that_grow_have_none(name: str) -> None:
    assert not any(constraints(graph) for graph in Module.of(EVERY[name]()).functions.values())


def refusal(graph: Graph, **inputs: Any) -> str:
    with pytest.raises(LlmcError) as caught:
        run(graph, {name: np.zeros(shape, np.float32) for name, shape in inputs.items()})
    return caught.value.problem


def test_half_of_an_odd_size() -> None:
    x = input_("x", "f32", (A,))
    graph = of(make("reshape", (x,), shape=(A / 2, 2)))
    assert run(graph, {"x": np.zeros(6, np.float32)})["0"].shape == (3, 2)
    assert refusal(graph, x=[5]) == (
        "reshape at x: the size of axis 0, not whole: 2 times it, a = 5, is above 2*floor(a/2) = 4"
    )


def test_a_window_larger_than_its_image() -> None:
    x = input_("x", "f32", (1, 1, A, B))
    w = constant(np.ones((1, 1, 3, 1), np.float32))
    graph = of(make("conv2d", (x, w), padding=(1, 0, 0, 0)))
    assert said(graph) == ["conv2d at x: the padded size of axis 2, a + 1 = _, is below its window, _"]
    assert refusal(graph, x=[1, 1, 1, 4]).endswith("a + 1 = 2, is below its window, 3")
    assert run(graph, {"x": np.zeros((1, 1, 2, 4), np.float32)})["0"].shape == (1, 1, 1, 4)


def test_a_loop_that_does_not_run_needs_nothing() -> None:
    x, y = input_("x", "f32", (A,)), input_("y", "f32", (B,))
    now, table = input_("now", "f32", (1,)), input_("table", "f32", (A,))
    body = Graph((now, table), {"after": make("add", (now, cut(table, A - 3, A - 2)))})
    first = cut(x, 0, 1)
    loop = make("loop", (first, x), body=body, count=B - 1, carried=1)
    graph = of(make("result", (loop,), index=0), y)
    assert run(graph, {"x": np.zeros(1, np.float32), "y": np.zeros(1, np.float32)})["0"].shape == (1,)
    assert refusal(graph, x=[1], y=[2]) == "slice at table: its start, a - 3 = -2, is below 0"
