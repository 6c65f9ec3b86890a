"""`only`: passes on some layers, the others as they were."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.only import Only


def layers(*sizes: int) -> Graph:
    """Products one after the other."""
    rng = np.random.default_rng(1)
    x = input_("x", "f32", (symbol("batch"), sizes[0]))
    y: Node = x
    for number, (k, n) in enumerate(pairwise(sizes)):
        w = constant(rng.normal(size=(n, k)).astype(np.float32), f"w{number}")
        y = make("linear", (y, w), Source(f"layer.{number}"))
    return Graph((x,), {"y": y}, {"batch": (1, 8)})


def parsed(text: str) -> Pipeline:
    return Pipeline.parse(text, PASSES)


def weights(graph: Graph) -> list[str]:
    """How the weight of each product is stored."""
    return [node.inputs[1].op for node in graph.nodes if node.op == "linear"]


@pytest.mark.parametrize(("layer", "at"), [("layer.1", 1), ("w2", 2), ("layer.[0]", 0)])
def test_one_layer_changes(layer: str, at: int) -> None:
    graph = layers(64, 64, 64, 64)
    after, report = Only((layer,), "share{clusters=16}").run(graph), None
    expected = ["constant"] * 3
    expected[at] = "codebook"
    assert weights(after) == expected
    text = f'only{{layers=["{layer}"],passes="share{{clusters=16}}"}}'
    after, report = parsed(text).run(graph)
    assert weights(after) == expected
    (effect,) = report.runs[0].effects
    assert (effect.changed, effect.left) == (1, {"of other layers": 2})
    assert str(parsed(text)) == text, "what is written is read back"


def test_it_is_what_the_pass_does_to_that_layer() -> None:
    graph = layers(64, 64, 64)
    x = {"x": np.random.default_rng(2).normal(size=(3, 64)).astype(np.float32)}
    skipped, _ = parsed('prune{sparsity=0.5,skip=["layer.0"]}').run(graph)
    only, _ = parsed('only{layers=["layer.1"],passes="prune{sparsity=0.5}"}').run(graph)
    assert np.array_equal(interpret.run(skipped, x)["y"], interpret.run(only, x)["y"])


def test_what_is_not_changed_stays_the_very_node() -> None:
    graph = layers(64, 64, 64, 64)
    after = Only(("layer.1",), "share{clusters=16}").run(graph)
    before = set(graph.nodes)
    assert [node.source.path for node in after.nodes if node.op == "linear" and node in before] == ["layer.0"]
    assert Only(("layer.1",), "cse").run(graph) is graph


def test_tables_of_one_look_up_apart() -> None:
    rng = np.random.default_rng(0)
    word, place = (
        constant(rng.normal(size=(n, 64)).astype(np.float32), w) for n, w in ((300, "a"), (290, "b"))
    )
    one, zero = (constant(np.full(64, v, np.float32)) for v in (1, 0))
    at = input_("at", "i64", (symbol("n"),))
    y = make("embed_norm", (word, at, place, at, one, zero), Source("table"), tables=2, eps=1e-5)
    graph = Graph((at,), {"y": y}, {"n": (1, 8)})
    after, _ = parsed('only{layers=["b"],passes="quantize"},qfuse').run(graph)
    found = next(node for node in after.nodes if node.op == "embed_norm")
    assert [i.dtype for i in found.inputs[:3:2]] == ["f32", "u8"]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"layers": ("layer.7",), "passes": "share"}, "no weight fits 'layer.7'", "did you mean layer."),
        ({"layers": (), "passes": "share"}, "names no layers", "only{layers="),
        ({"layers": ("*",), "passes": ""}, "or no passes", "only{layers="),
    ],
)
def test_mistakes(options: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(LlmcError, match=message) as caught:
        Only(**options).run(layers(64, 64, 64))
    assert hint in str(caught.value.hint)


def test_a_pass_that_wants_samples_says_so() -> None:
    assert Only(("*",), "gptq").wants_samples
    assert not Only(("*",), "share").wants_samples
