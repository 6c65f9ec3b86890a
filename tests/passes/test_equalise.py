"""`equalise` and `correct-bias`: rows and columns as large, and means that rounding keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.columns import pairs
from llmc.passes.compress.equalise import CorrectBias, Equalise

B = symbol("batch")
CONV = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1)}
POOL = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0, 0, 0)}


def weights(seed: int, *shape: int, uneven: bool = True) -> Node:
    rng = np.random.default_rng(seed)
    array = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    if uneven:
        array *= np.exp2(rng.integers(-3, 4, (shape[0], *(1,) * (len(shape) - 1))))
    return constant(array.astype(np.float32), f"w{seed}")


def network(last: bool = True, activation: str = "relu") -> Graph:
    """A convolution, one by channel, one of all channels, and two products."""
    shape = (B, 4, 4, 3) if last else (B, 3, 4, 4)
    x = input_("x", "f32", shape)

    def conv(x: Node, w: Node, groups: int, steps: tuple[str, ...]) -> Node:
        bias = weights(50 + groups, int(w.shape[0]), uneven=False)
        source = Source(w.source.path)
        return make("conv2d", (x, w, bias), source, groups=groups, epilogue=steps, channels_last=last, **CONV)

    y = conv(x, weights(1, 8, 3, 3, 3), 1, ("bias", activation))
    y = conv(y, weights(2, 8, 1, 3, 3), 8, ("bias",))
    y = make("max_pool2d", (make("relu", (y,)),), channels_last=last, **POOL)
    y = conv(y, weights(3, 6, 8, 3, 3), 1, ("bias", "relu"))
    pooled = make("mean", (y,), axes=(1, 2) if last else (2, 3), keepdims=False)
    a = make("linear", (pooled, weights(4, 20, 6), weights(5, 20)), Source("a"), epilogue=("bias", "relu"))
    return Graph((x,), {"y": make("linear", (a, weights(6, 5, 20)), Source("b"))}, {"batch": (1, 8)})


@pytest.mark.parametrize("last", [True, False])
def test_rows_and_columns_become_as_large(last: bool, same_output: Any, golden: Any) -> None:
    graph = network(last)
    assert len(list(pairs(graph))) == 3
    after = same_output(Equalise(), graph)
    first, channel, second = (n.inputs[1].attributes["value"].array for n in after.nodes if n.op == "conv2d")
    rows = np.abs(first).reshape(8, -1).max(1)
    np.testing.assert_allclose(rows, np.abs(channel).reshape(8, -1).max(1), rtol=1e-2)
    np.testing.assert_allclose(rows, np.abs(second).max((0, 2, 3)), rtol=1e-2)
    if last:
        golden(after)


def test_what_stays() -> None:
    graph = network()
    again = Equalise().run(graph)
    for one, change, changed in (
        (again, Equalise(), 0),
        (graph, Equalise(skip=("w1", "w2", "a")), 0),
        (network(activation="relu6"), Equalise(), 2),
        (network(activation="gelu"), Equalise(skip=("w2", "a")), 0),
    ):
        with listening() as heard:
            after = change.run(one)
        assert heard[0].changed == changed
        assert changed or after is one


def test_what_others_read_as_well_is_no_pair() -> None:
    graph = network()
    (inner,) = [n for n in graph.nodes if n.source.path == "a"]
    assert len(list(pairs(Graph(graph.inputs, {**graph.outputs, "a": inner}, graph.dims)))) == 2
    read = make("add", (graph.outputs["y"], make("mean", (inner,), axes=(1,), keepdims=True)))
    assert len(list(pairs(Graph(graph.inputs, {"y": read}, graph.dims)))) == 2


# --- biases


def dense(bias: bool) -> Graph:
    x = input_("x", "f32", (B, 64))
    own = (weights(11, 32, uneven=False),) if bias else ()
    y = make(
        "linear",
        (x, weights(10, 32, 64), *own),
        Source("a"),
        epilogue=("bias", "relu") if bias else ("relu",),
    )
    return Graph((x,), {"y": make("linear", (y, weights(12, 5, 32)), Source("b"))}, {"batch": (1, 64)})


def samples(graph: Graph) -> Iterator[Mapping[str, Any]]:
    rng = np.random.default_rng(7)
    for _ in range(3):
        yield {"x": (rng.normal(size=(64, 64)) + 2).astype(np.float32)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", [(8, 0, "largest"), (4, 16, "search")])
def test_means_stay(bias: bool, how: tuple[int, int, str]) -> None:
    graph, (bits, block, rounding) = dense(bias), how
    (inner,) = [n for n in graph.nodes if n.source.path == "a"]
    plain = make("linear", inner.inputs, inner.source, epilogue=inner.attributes["epilogue"][:-1])
    graph = Graph(graph.inputs, {"y": plain}, graph.dims)
    text = f'blockwise{{bits={bits},block={block},scales="{rounding}"}}'
    (sample, *_) = samples(graph)
    one = Given(lambda graph: iter([sample]))
    expected, off = run(graph, sample)["y"].mean(0), []
    for change in (text, f'correct-bias{{bits={bits},block={block},rounding="{rounding}"}},{text}'):
        with giving(one):
            after, _ = Pipeline.parse(change, PASSES).run(graph)
        off.append(np.abs(run(after, sample)["y"].mean(0) - expected).max())
    assert off[1] < 0.05 * off[0]


def test_products_left_alone_and_told() -> None:
    graph = dense(True)
    with giving(Given(samples)), listening() as heard:
        after = CorrectBias().run(graph)
        assert CorrectBias(skip=("a",)).run(graph) is graph
    assert heard[0].left == {"with fewer than 16 output columns": 1}
    assert "named by skip" in heard[1].left
    assert [n.op for n in after.nodes] == [n.op for n in graph.nodes]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bits": 3}, "bits is 4 or 8"),
        ({"block": 3}, "even number"),
        ({"rounding": "gptq"}, "no rounding 'gptq'"),
    ],
)
def test_mistakes(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(LlmcError, match=problem):
        CorrectBias(**options)
