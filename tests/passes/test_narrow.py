"""`narrow`: what is computed at the places that are read alone, and what stays."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.passes import PASSES
from llmc.passes.rows.narrow import Narrow

RNG = np.random.default_rng(13)
B, S = symbol("batch"), symbol("seq")
DIMS = {"batch": (1, 8), "seq": (1, 16)}


def weights(*shape: int) -> Node:
    return constant((RNG.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32))


def first(node: Node, start: Any = 0, stop: Any = 1) -> Node:
    return make("slice", (node,), axis=1, start=start, stop=stop)


def block(x: Node, attended: Node) -> Node:
    """What follows the attention of a layer."""
    y = make(
        "linear", (attended, weights(12, 12), weights(12), x), Source("out"), epilogue=("bias", "residual")
    )
    y = make("layer_norm", (y, weights(12), weights(12)), Source("norm"), eps=1e-5)
    inner = make("linear", (y, weights(20, 12), weights(20)), Source("inner"), epilogue=("bias", "gelu"))
    outer = make("linear", (inner, weights(12, 20), weights(12)), Source("outer"), epilogue=("bias",))
    return make("add_norm", (outer, y, weights(12), weights(12)), Source("last"), eps=1e-5)


def inputs() -> tuple[Node, Node]:
    return input_("x", "f32", (B, S, 12)), input_("attended", "f32", (B, S, 12))


def shapes(graph: Graph) -> Counter[tuple[str, str]]:
    """How often (op, size of axis 1)."""
    return Counter(
        (n.op, str(n.shape[1])) for n in graph.nodes if n.op in ("linear", "add_norm", "layer_norm", "slice")
    )


def same_answers(before: Graph, after: Graph) -> None:
    values = {n.attributes["name"]: RNG.normal(size=(3, 7, *map(int, n.shape[2:]))).astype(np.float32)
              for n in before.inputs}  # fmt: skip
    expected = run(before, values)
    for name, found in run(after, values).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6)


def layer(*spans: tuple[Any, Any], **more: Any) -> Graph:
    """A block whose result is read at `spans`; `more` names outputs by their source."""
    x, attended = inputs()
    last = block(x, attended)
    outputs = {f"y{i}": first(last, *span) for i, span in enumerate(spans)}
    found = {node.source.path: node for node in Graph((x, attended), {"last": last}, DIMS).nodes}
    outputs |= {name: found[path] for name, path in more.items()}
    return Graph((x, attended), outputs, DIMS)


@pytest.mark.parametrize("span", [(0, 1), (1, 3), (2, S)])
def test_a_layer_whose_places_are_read_at_one_span(span: tuple[Any, Any]) -> None:
    graph = layer(span)
    after = Narrow().run(graph)
    count = str(span[1] - span[0])
    assert shapes(after) == {
        ("slice", count): 2, ("linear", count): 3, ("layer_norm", count): 1, ("add_norm", count): 1
    }  # fmt: skip
    assert {n.inputs[0].op for n in after.nodes if n.op == "slice"} == {"input"}
    assert Narrow().run(after) is after
    same_answers(graph, after)


def test_two_readers_of_the_same_span() -> None:
    after = Narrow().run(layer((0, 1), (0, 1)))
    assert shapes(after)["linear", "1"] == 3


@pytest.mark.parametrize(
    "graph",
    [layer((0, 1), (1, 2)), layer((0, 1), whole="last"), layer(whole="last")],
    ids=["two spans", "also an output", "no slice"],
)
def test_what_is_read_elsewhere_too_stays(graph: Graph) -> None:
    assert Narrow().run(graph) is graph


def test_it_stops_where_the_rest_is_read() -> None:
    """The inner product is an output: it and what it reads stay whole, what follows does not."""
    graph = layer((0, 1), inner="inner")
    after = Narrow().run(graph)
    assert shapes(after) == {
        ("slice", "1"): 2, ("linear", "1"): 1, ("linear", "seq"): 2, ("layer_norm", "seq"): 1, ("add_norm", "1"): 1
    }  # fmt: skip
    same_answers(graph, after)


def test_operands_that_broadcast() -> None:
    """With the places, without an axis for them, and with one of size 1."""
    x = input_("x", "f32", (3, 7, 12))
    others = [
        input_(f"p{i}", "f32", s)
        for i, s in enumerate([(7, 12), (1, 7, 12), (12,), (3, 1, 12), (), (3, 7, 1)])
    ]
    y = make("linear", (x, weights(12, 12)))
    for other in others:
        y = make("add", (y, other))
    graph = Graph((x, *others), {"y": first(y, 2, 5)}, {})
    after = Narrow().run(graph)
    assert shapes(after)["linear", "3"] == 1
    assert {n.inputs[0].attributes["name"] for n in after.nodes if n.op == "slice"} == {"x", "p0", "p1", "p5"}
    values = {n.attributes["name"]: RNG.normal(size=n.shape).astype(np.float32) for n in graph.inputs}
    np.testing.assert_allclose(run(after, values)["y"], run(graph, values)["y"], rtol=1e-5, atol=1e-6)


def test_an_operand_with_an_axis_less() -> None:
    """Its places are on its first axis, though its sizes are those of the reader's first two."""
    x, low = input_("x", "f32", (7, 7, 7, 12)), input_("low", "f32", (7, 7, 12))
    product = make("linear", (low, weights(12, 12)), Source("low"))
    total = make("add", (make("linear", (x, weights(12, 12)), Source("high")), product))
    graph = Graph((x, low), {"y": first(total, 2, 5)}, {})
    after = Narrow().run(graph)
    assert {n.source.path: n.shape for n in after.nodes if n.op == "linear"} == {
        "high": (7, 3, 7, 12),
        "low": (7, 7, 12),
    }
    values = {n.attributes["name"]: RNG.normal(size=n.shape).astype(np.float32) for n in graph.inputs}
    np.testing.assert_allclose(run(after, values)["y"], run(graph, values)["y"], rtol=1e-5, atol=1e-6)


def test_attention_and_what_mixes_places_stop_it() -> None:
    x, _ = inputs()
    joint = make("linear", (x, weights(24, 12)))
    attended = make("mha", (joint, joint, joint), heads=1, head_dim=8, scale=1.0, offsets=(0, 8, 16))
    summed = make("cumsum", (make("linear", (x, weights(8, 12))),), axis=1)
    both = make("linear", (make("add", (attended, summed)), weights(4, 8)))
    graph = Graph((x,), {"y": first(both)}, DIMS)
    after = Narrow().run(graph)
    assert shapes(after) == {("linear", "seq"): 2, ("linear", "1"): 1, ("slice", "1"): 2}
    same_answers(graph, after)


def test_without_a_product_there_is_nothing_to_gain() -> None:
    x, _ = inputs()
    graph = Graph((x,), {"y": first(make("exp", (x,)))}, DIMS)
    assert Narrow().run(graph) is graph


def test_rows_of_two_axes_are_no_places() -> None:
    x = input_("x", "f32", (B, 12))
    graph = Graph((x,), {"y": first(make("linear", (x, weights(12, 12))), 0, 4)}, {"batch": (1, 8)})
    assert Narrow().run(graph) is graph


def test_by_name() -> None:
    after, _ = Pipeline.parse("narrow,cse", PASSES).run(layer((0, 1)))
    assert shapes(after)["linear", "1"] == 3
