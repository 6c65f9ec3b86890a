"""`awq`: columns that are read much take more levels; floats stay what they were, rounding loses less."""

from __future__ import annotations

import re
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
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.columns import gates
from llmc.passes.compress.awq import Awq

B = symbol("batch")
WIDTH, INNER, ROWS = 32, 48, 64


def weights(seed: int, *shape: int) -> Node:
    array = np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])
    return constant(array.astype(np.float32), f"w{seed}")


def gain(large: float) -> Node:
    """Of a norm, with some large columns; 0: all alike."""
    values = np.random.default_rng(1).uniform(0.5, 1, WIDTH) if large else np.ones(WIDTH)
    values[[3, 9, 20]] *= large or 1
    return constant(values.astype(np.float32), "gain")


def block(large: float = 20, residual: bool = False, bias: bool = True) -> Graph:
    """A norm, gated products behind it, and what else reads it."""
    x = input_("x", "f32", (B, WIDTH))
    y = make("rms_norm", (x, gain(large)), Source("norm"), eps=1e-5)
    gate = make("linear", (y, weights(2, INNER, WIDTH)), Source("gate"), epilogue=("silu",))
    up = make("linear", (y, weights(3, INNER, WIDTH), *((weights(4, INNER),) if bias else ())), Source("up"),
              epilogue=("bias",) if bias else ())  # fmt: skip
    down = make("linear", (make("mul", (gate, up)), weights(5, WIDTH, INNER), *((y,) if residual else ())),
                Source("down"), epilogue=("residual",) if residual else ())  # fmt: skip
    return Graph((x,), {"y": down}, {"batch": (1, ROWS)})


def samples(graph: Graph) -> Iterator[Mapping[str, Any]]:
    rng = np.random.default_rng(7)
    for _ in range(4):
        yield {"x": rng.normal(size=(ROWS, WIDTH)).astype(np.float32)}


GIVEN = Given(samples)


def changed(change: Awq, graph: Graph) -> Graph:
    with giving(GIVEN):
        after = change.run(graph)
    verify(after)
    return after


@pytest.mark.parametrize("rounding", ["largest", "search", "gptq"])
def test_rounding_loses_less(rounding: str) -> None:
    graph = block()
    after = changed(Awq(rounding=rounding), graph)
    text = "gptq" if rounding == "gptq" else f'blockwise{{bits=4,block=32,scales="{rounding}"}}'
    (sample, *_) = samples(graph)
    expected = run(graph, sample)["y"]
    np.testing.assert_allclose(run(after, sample)["y"], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    losses = []
    for one in (graph, after):
        with giving(GIVEN):
            rounded, _ = Pipeline.parse(text, PASSES).run(one)
        losses.append(np.square(run(rounded, sample)["y"] - expected).sum())
    assert losses[1] < 0.95 * losses[0]


def test_no_op_more_unless_others_read_the_norm(golden: Any) -> None:
    after = changed(Awq(rounding="largest"), block())
    assert [n.op for n in after.nodes] == [n.op for n in block().nodes]
    with_others = changed(Awq(rounding="largest"), block(residual=True))
    assert [n.op for n in with_others.nodes].count("mul") == 2
    golden(re.sub('"[0-9a-f]{16}"', '"..."', str(with_others)))  # moments' last bits are those of the BLAS


def test_of_a_gate_the_rows_of_the_plain_product_are_divided() -> None:
    graph = block()
    (site,) = gates(graph)
    assert site.maker is not None
    assert (site.maker.source.path, [p.source.path for p in site.products]) == ("up", ["down"])
    for unfit in (
        Graph(graph.inputs, {**graph.outputs, "inner": site.value}, graph.dims),
        Graph(graph.inputs, {**graph.outputs, "up": site.maker}, graph.dims),
        block().replace(lambda n: make("abs", (n,)) if n.source.path == "up" and n.op == "linear" else n),
    ):
        assert not list(gates(unfit))


def test_what_stays() -> None:
    for graph, change in (
        (block(large=0), Awq(skip=("down",))),
        (block(), Awq(skip=("gate", "down"))),
        (Graph((x := input_("x", "f32", (B, WIDTH)),), {"y": x}, {"batch": (1, ROWS)}), Awq()),
    ):
        with giving(GIVEN), listening() as heard:
            assert change.run(graph) is graph
        assert heard[0].changed == 0


def test_nothing_is_read() -> None:
    """Values that are all zero say nothing of columns."""
    zeros = Given(lambda graph: iter([{"x": np.zeros((ROWS, WIDTH), np.float32)}]))
    with giving(zeros):
        graph = block()
        assert Awq().run(graph) is graph


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bits": 3}, "bits is 4 or 8"),
        ({"block": 5}, "even number"),
        ({"rounding": "best"}, "no rounding 'best'"),
    ],
)
def test_mistakes(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(LlmcError, match=problem):
        Awq(**options)


def test_too_few_samples_are_refused() -> None:
    wide = make("rms_norm", (w := input_("w", "f32", (B, 128)), constant(np.ones(128, np.float32))), eps=1e-5)
    y = make("linear", (wide, weights(6, 16, 128)), Source("wide"))
    one = Given(lambda graph: iter([{"w": np.ones((1, 128), np.float32)}]))
    with giving(one), pytest.raises(LlmcError, match="too few samples"):
        Awq().run(Graph((w,), {"y": y}, {"batch": (1, 8)}))
