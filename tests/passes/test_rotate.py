"""`rotate`: residual streams in other columns compute what they did; what touches one otherwise keeps it as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes.compress.rotate import Rotate, turned

B = symbol("batch")
WIDTH, WORDS = 24, 40
Change = Callable[[Node], Node]


def weights(seed: int, *shape: int) -> Node:
    array = np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])
    return constant(array.astype(np.float32), f"w{seed}")


def norm(x: Node, seed: int, kind: str) -> Node:
    own = [constant(np.random.default_rng(seed).uniform(0.5, 2, WIDTH).astype(np.float32), f"gain{seed}")]
    own += [weights(seed + 1, WIDTH)] if kind == "layer_norm" else []
    return make(kind, (x, *own), Source(f"norm{seed}"), eps=1e-5)


def decoder(kind: str = "rms_norm", tied: bool = False, spy: Change = lambda node: node) -> Graph:
    """Look-ups with positions, a block that adds to them, a head behind rows that are picked."""
    ids = input_("ids", "i64", (B, 3), low=0, high=WORDS - 1)
    table = weights(1, WORDS, WIDTH)
    x = make("embedding", (table, ids), Source("table"))
    positions = constant(np.random.default_rng(2).normal(size=(1, 3, WIDTH)).astype(np.float32), "positions")
    x = make("add", (x, make("expand", (positions,), shape=x.shape)), Source("sum"))
    a = norm(x, 10, kind)
    up = make("linear", (a, weights(3, 32, WIDTH), weights(4, 32)), Source("up"), epilogue=("bias", "gelu"))
    gate = make("linear", (a, weights(5, 32, WIDTH)), Source("gate"))
    both, down = make("mul", (up, gate)), (weights(6, WIDTH, 32), weights(7, WIDTH))
    x = spy(make("linear", (both, *down, x), Source("down"), epilogue=("bias", "residual")))
    last = make("transpose", (norm(x, 20, kind),), perm=(1, 0, 2))
    picked = make("slice", (last,), Source("picked"), axis=0, start=2, stop=3)
    head = table if tied else weights(8, WORDS, WIDTH)
    return Graph((ids,), {"logits": make("linear", (picked, head), Source("head"))}, {"batch": (1, 8)})


def _text(graph: Graph) -> str:
    """Without digests: sines are not the same to the last bit everywhere."""
    return re.sub('"[0-9a-f]{16}"', '"..."', str(graph))


def ids(seed: int = 0) -> dict[str, Any]:
    return {"ids": np.random.default_rng(seed).integers(0, WORDS, (2, 3))}


@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_no_op_more(kind: str, golden: Any, same_output: Any) -> None:
    graph = decoder(kind)
    after = same_output(Rotate(), graph, ids())
    assert [n.op for n in after.nodes if n.op != "constant"] == [
        n.op.replace("layer_norm", "rms_norm") for n in graph.nodes if n.op != "constant"
    ]
    golden(_text(after))


def test_a_table_that_is_a_head_as_well_stays_one(golden: Any, same_output: Any) -> None:
    after = same_output(Rotate(), decoder(tied=True), ids())
    assert len({n for n in after.nodes if n.op == "constant" and n.shape == (WORDS, WIDTH)}) == 1
    golden(_text(after))


@pytest.mark.parametrize("size", [1, 7, 8, 24, 576, 640])
def test_the_matrix_is_orthogonal_and_without_large_values(size: int) -> None:
    q = turned(np.eye(size, dtype=np.float32), 3).astype(np.float64)
    np.testing.assert_allclose(q @ q.T, np.eye(size), atol=1e-6)
    assert np.abs(q).max() < 1.4143 / np.sqrt(size)
    centred = turned(np.eye(size, dtype=np.float32), 3, centred=True)
    np.testing.assert_allclose(centred.sum(0), np.zeros(size), atol=1e-5)


def test_no_value_stays_far_larger_than_the_others() -> None:
    graph = decoder()
    spike = next(n for n in graph.nodes if n.source.path == "w1")
    large = np.array(spike.attributes["value"].array)
    large[:, 5] *= 300
    new = constant(large, "w1")
    graph = graph.replace(lambda n: new if n is spike else n)
    after = Rotate().run(graph)

    def peak(g: Graph) -> float:
        (x,) = [n.inputs[0] for n in g.nodes if n.source.path == "norm10" and n.op == "rms_norm"]
        values = run(Graph(g.inputs, {"x": x}, g.dims), ids())["x"]
        return float((np.abs(values).max(-1) / np.sqrt(np.square(values).mean(-1))).mean())

    assert peak(after) < 0.7 * peak(graph)


def _post(node: Node) -> Node:
    return norm(node, 30, "rms_norm")


def _mixed(node: Node) -> Node:
    other = make(
        "linear", (norm(node, 40, "layer_norm"), weights(9, WIDTH, WIDTH), node), epilogue=("residual",)
    )
    return make("add", (node, other))


def _doubled(node: Node) -> Node:
    return make("add", (node, make("tanh", (node,))))


def _columns(node: Node) -> Node:
    by = constant(np.arange(WIDTH, dtype=np.float32), "by")
    return make("mul", (node, make("expand", (by,), shape=node.shape)))


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (decoder(spy=_post), "that rms_norm makes"),
        (decoder(spy=_mixed), "of two kinds of norms"),
        (decoder(spy=_doubled), "that tanh"),
        (decoder(spy=_columns), "that mul"),
        (decoder("layer_norm", tied=True), "with a table that is a head as well"),
    ],
)
def test_what_touches_a_stream_keeps_it(graph: Graph, reason: str) -> None:
    with listening() as heard:
        assert Rotate().run(graph) is graph
    assert any(reason in why for why in heard[0].left), heard[0].left
    assert heard[0].changed == 0


def test_a_stream_that_the_caller_reads() -> None:
    graph = decoder()
    (x,) = [n for n in graph.nodes if n.source.path == "down"]
    with listening() as heard:
        after = Rotate().run(Graph(graph.inputs, {**graph.outputs, "hidden": x}, graph.dims))
    assert heard[0].left == {"where the stream is one that the caller reads": 2}
    assert after.outputs["hidden"] is x


def test_scaled_streams_are_turned(same_output: Any) -> None:
    half = constant(np.float32(0.5), "half")
    graph = decoder(spy=lambda node: make("mul", (node, make("expand", (half,), shape=node.shape))))
    after = same_output(Rotate(), graph, ids())
    assert after is not graph


def test_skip_and_seed() -> None:
    graph = decoder()
    with listening() as heard:
        assert Rotate(skip=("norm2*",)).run(graph) is graph
    assert heard[0].left == {"named by skip": 2}
    assert (
        Rotate().run(Graph(graph.inputs, {"y": graph.inputs[0]}, graph.dims)).outputs["y"] is graph.inputs[0]
    )
    first, second = (Rotate(seed=s).run(graph) for s in (0, 1))
    verify(first)
    assert str(first) != str(second)
    assert str(first) == str(Rotate().run(graph)), "the same bits each time"
    with pytest.raises(LlmcError, match="a seed is not negative"):
        Rotate(seed=-1)
