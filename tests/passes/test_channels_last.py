"""`channels-last`: what moves, what it becomes, where it stays away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.verify import verify
from llmc.passes.layout.channels_last import ChannelsLast, channels_last_steps

B = symbol("batch")
RNG = np.random.default_rng(0)
X = input_("x", "f32", (B, 6, 9, 8))


def weight(*shape: int) -> Node:
    return constant(RNG.standard_normal(shape).astype(np.float32))


def conv(x: Node, o: int = 6, kernel: int = 3, groups: int = 1, **more: Any) -> Node:
    w = weight(o, int(x.shape[1]) // groups, kernel, kernel)
    return make("conv2d", (x, w), padding=(kernel // 2,) * 4, groups=groups, **more)


def changed(*outputs: Node) -> Graph:
    """The graph after the pass and those behind it, which computes the same."""
    graph = Graph((X,), {f"y{i}": node for i, node in enumerate(outputs)}, {"batch": (1, 4)})
    after = graph
    for step in channels_last_steps(graph).steps:
        after = step.change.run(after)
        verify(after)
    inputs = {"x": RNG.standard_normal((2, 6, 9, 8)).astype(np.float32)}
    expected, found = run(graph, inputs), run(after, inputs)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)
    return after


def turns(graph: Graph) -> int:
    return sum(node.op == "transpose" for node in graph.nodes)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes if node.op not in ("constant", "input")]


def test_a_network_turns_at_its_ends_only() -> None:
    a = conv(X, 12, kernel=1, epilogue=("relu6",))
    b = conv(make("relu", (conv(a, 12, groups=12),)), 6, kernel=1)
    pool = make("max_pool2d", (make("add", (b, X)),), kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    graph = changed(make("mean", (pool,), axes=(2, 3)))
    assert ops(graph) == ["transpose", "linear", "conv2d", "relu", "linear", "add", "max_pool2d", "mean"]


def test_convolutions_of_one_tap_are_products_unless_they_step() -> None:
    assert "conv2d" not in ops(changed(conv(X, kernel=1)))
    assert "conv2d" in ops(changed(conv(X, kernel=1, stride=(2, 2))))


def by_channel(x: Node) -> Node:
    squeezed = make("mean", (x,), axes=(2, 3), keepdims=True)
    return make("mul", (x, make("sigmoid", (conv(squeezed, kernel=1),))))


def cut(x: Node) -> Node:
    return make("slice", (x,), axis=2, start=1, stop=10)


BETWEEN = {
    "scale by channel": lambda x: make("mul", (x, weight(6, 1, 1))),
    "scale by pixel": lambda x: make("mul", (x, weight(9, 8))),
    "scale by place": lambda x: make("mul", (x, weight(1, 6, 9, 8))),
    "scalar": lambda x: make("add", (x, weight())),
    "squeeze and excite": by_channel,
    "size that is asked for": lambda x: make(
        "add", (x, make("ensure_shape", (conv(x),), shape=(B, 6, 9, 8)))
    ),
    "concat": lambda x: make("slice", (make("concat", (x, x), axis=1),), axis=1, start=3, stop=9),
    "pad": lambda x: cut(make("pad", (x,), before=(0, 0, 1, 0), after=(0, 0, 0, 2))),
    "max over columns": lambda x: make("add", (x, make("max", (x,), axes=(3,), keepdims=True))),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_lies_between_goes_along(name: str) -> None:
    between = BETWEEN[name](conv(X))
    graph = changed(
        make("mean", (conv(between, kernel=3) if between.shape[3] == 8 else between,), axes=(2, 3))
    )
    assert turns(graph) == 1  # of the input


@pytest.mark.parametrize(
    ("axes", "keepdims"),
    [((1,), False), ((2,), False), ((0, 3), False), ((1, 2), True), ((0, 1, 2, 3), False)],
)
def test_reductions(axes: tuple[int, ...], keepdims: bool) -> None:
    changed(make("sum", (conv(X),), axes=axes, keepdims=keepdims))


def test_a_classifier_behind_takes_its_weight_in_that_order() -> None:
    flat = make("reshape", (conv(X),), shape=(B, 6 * 9 * 8))
    assert turns(changed(make("linear", (flat, weight(5, 6 * 9 * 8))))) == 1


def test_pixels_become_a_sequence() -> None:
    tokens = make("reshape", (conv(X),), shape=(B, 6, 72))
    assert turns(changed(make("transpose", (tokens,), perm=(0, 2, 1)))) == 1


def test_groups_go_along() -> None:
    assert turns(changed(conv(conv(X, groups=2), groups=3))) == 2


def test_a_weight_that_is_computed_stays() -> None:
    graph = changed(make("conv2d", (X, make("exp", (make("slice", (X,), axis=0, start=0, stop=1),)))))
    assert not channels_last_steps(graph).steps


def test_what_cannot_turn_stops_it() -> None:
    rows = make("cumsum", (conv(X),), axis=3)
    assert turns(changed(conv(rows))) == 4


def test_a_graph_without_windows_is_left_alone() -> None:
    graph = Graph((X,), {"y": make("relu", (make("transpose", (X,), perm=(0, 3, 1, 2)),))}, {"batch": (1, 4)})
    assert not channels_last_steps(graph).steps
    plain = Graph((X,), {"y": make("relu", (X,))}, {"batch": (1, 4)})
    assert ChannelsLast().run(plain) is plain
