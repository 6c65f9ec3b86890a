"""`split`: what becomes products of parts, what stays, and how near the answers are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from random_encoders import Encoder

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node, Source, Weight
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.quantise.split import Split

RNG = np.random.default_rng(12)
B = symbol("batch")
FUSED = Pipeline.parse(LEVELS[3], PASSES)


def weights(*shape: int) -> Node:
    return constant(Weight((RNG.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32), f"w{shape[0]}"))


def split(graph: Graph, text: str = "split") -> Graph:
    return Pipeline.parse(text, PASSES).run(graph)[0]


def count(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.nodes if n.op not in ("input", "constant"))


def network(**changed: Any) -> Graph:
    """Two products of the same rows, a third of theirs with a residual, and a head of two columns."""
    x = input_("x", "f32", (B, 40))
    first = changed.get("first", weights(48, 40))
    a = make("linear", (x, first, weights(48)), Source("layer.0.a"), epilogue=("bias", "gelu"))
    b = make("linear", (x, weights(48, 40)), Source("layer.0.b"))
    c = make("linear", (a, weights(48, 48), b), Source("layer.1.c"), epilogue=("residual",))
    head = make("linear", (c, weights(2, 48)), Source("head"))
    return Graph((x,), {"y": head, "c": c}, {"batch": (1, 8)})


X = {"x": RNG.normal(size=(5, 40)).astype(np.float32)}


def test_what_is_split() -> None:
    graph = network()
    after = split(graph)
    assert count(after) == {"split_linear": 3, "split_rows": 2, "linear": 1}  # two read one split row
    assert [n.attributes["epilogue"] for n in after.nodes if n.op == "split_linear"] == [
        ("bias", "gelu"),
        (),
        ("residual",),
    ]
    assert split(after) == after
    for name, expected in run(graph, X).items():
        np.testing.assert_allclose(run(after, X)[name], expected, rtol=0, atol=4e-6)


def test_random_encoder() -> None:
    graph = FUSED.run(
        Encoder(7, linear="whole", norm="post", sum="ab", attention="explicit", activation="gelu",
                positions="buffer", scale="div", bias="no", mask="fill").graph()
    )[0]  # fmt: skip
    after = split(graph, "split{min_columns=1}")
    assert count(after)["split_linear"] == count(graph)["linear"] > 0


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('split{skip=["layer.0.*"]}', 3),
        ('split{skip=["*"]}', 4),
        ("split{min_columns=45}", 3),
        ("split{min_columns=1}", 0),
    ],
)
def test_options(text: str, left: int) -> None:
    assert count(split(network(), text))["linear"] == left


def test_what_stays() -> None:
    """A weight that is not finite, one in half precision, one computed at run time, and rows too long for int32."""
    endless = np.ones((48, 40), np.float32)
    endless[3, 3] = np.inf
    for first in (constant(endless), constant(np.ones((48, 40), np.float16))):
        assert count(split(network(first=first)))["linear"] == 2
    x, w = input_("x", "f32", (B, 40)), input_("w", "f32", (48, 40))
    long = input_("long", "f32", (B, 2**14 + 1))
    outputs = {
        "y": make("linear", (x, w)),
        "z": make("linear", (long, constant(np.ones((32, 2**14 + 1), np.float32)))),
    }
    graph = Graph((x, w, long), outputs, {"batch": (1, 8)})
    assert split(graph) == graph


def test_mistakes() -> None:
    with pytest.raises(LlmcError, match="min_columns must be positive"):
        Split(min_columns=0)
