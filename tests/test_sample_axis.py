"""Which functions may run a large batch as smaller ones: found where it is so, refused where a sample reads another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from random_encoders import random_encoder
from random_graphs import random_graph, random_inputs

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.sample_axis import sample_dim, why_whole
from llmc.passes import LEVELS, PASSES
from llmc.passes.quantise import QUANTISATIONS
from llmc.passes.rows.blank import Blank
from llmc.passes.rows.ragged import Ragged

Array = np.ndarray[Any, Any]
B, S = symbol("batch"), symbol("seq")
X = input_("x", "f32", (B, S, 8))
MASK = input_("mask", "i64", (B, S), low=0, high=1)
IMAGE = input_("image", "f32", (B, 8, 16, 16))
DIMS = {"batch": (1, 9), "seq": (1, 32)}


def weight(*shape: int) -> Node:
    return constant(np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32))


def graph(node: Node) -> Graph:
    inputs = [n for n in Graph((), {"y": node}).nodes if n.op == "input"]
    return Graph(tuple(inputs), {"y": node}, DIMS)


def flat(x: Node) -> Node:
    return make("reshape", (x,), shape=(B * S, 8))


APART: dict[str, Callable[[], Node]] = {
    "a product": lambda: make("linear", (X, weight(3, 8))),
    "softmax of keys": lambda: make("softmax", (X,), axis=1),
    "a mean of tokens": lambda: make("mean", (X,), axes=(1,)),
    "rows of all, and back": lambda: make(
        "reshape", (make("linear", (flat(X), weight(8, 8))),), shape=(B, S, 8)
    ),
    "heads": lambda: make("transpose", (X,), perm=(0, 2, 1)),
    "scores": lambda: make("matmul", (X, make("transpose", (X,), perm=(0, 2, 1)))),
    "one value for all": lambda: make("add", (X, weight(1, 1, 8))),
    "one row for all": lambda: make(
        "concat", (make("expand", (weight(1, 1, 8),), shape=(B, 1, 8)), X), axis=1
    ),
    "a convolution": lambda: make("conv2d", (IMAGE, weight(4, 8, 3, 3)), padding=(1, 1, 1, 1)),
    "a pool": lambda: make("max_pool2d", (IMAGE,), kernel=(2, 2), stride=(2, 2)),
    "a scale for each image": lambda: make("max", (IMAGE,), axes=(1, 2, 3), keepdims=True),
}
MIXED: dict[str, Callable[[], Node]] = {
    "softmax of samples": lambda: make("softmax", (X,), axis=0),
    "a sum of samples": lambda: make("sum", (X,), axes=(0,), keepdims=True),
    "its difference": lambda: make("sub", (X, make("mean", (X,), axes=(0,), keepdims=True))),
    "one scale for all": lambda: make("mul", (X, make("max", (X,), axes=(0, 1, 2)))),
    "a running sum": lambda: make("cumsum", (X,), axis=0),
    "samples turned": lambda: make("transpose", (X,), perm=(1, 0, 2)),
    "samples added": lambda: make("concat", (X, X), axis=0),
    "some samples": lambda: make("slice", (X,), axis=0, start=0, stop=1),
    "a sample before": lambda: make("pad", (X,), before=(1, 0, 0), after=(0, 0, 0)),
    "a sample picked": lambda: make("embedding", (X, make("iota", (), length=B))),
    "samples by number": lambda: make(
        "add", (make("mean", (X,), axes=(1, 2)), make("iota", (), length=B, dtype="f32"))
    ),
    "how many there are": lambda: make("mul", (X, make("cast", (make("dim", (), value=B),), dtype="f32"))),
    "a norm over samples": lambda: make(
        "layer_norm", (make("mean", (X,), axes=(1, 2)),), eps=1e-5, has_weight=False, has_bias=False
    ),
    "products of samples": lambda: make("matmul", (make("transpose", (flat(X),), perm=(1, 0)), flat(X))),
    "an op that does not say": lambda: make("argsort", (make("mean", (X,), axes=(1, 2)),), count=B),
}


@pytest.mark.parametrize("name", APART)
def test_apart(name: str) -> None:
    made = graph(APART[name]())
    assert sample_dim(made) == "batch"
    assert_apart(made, 3)


@pytest.mark.parametrize("name", MIXED)
def test_mixed(name: str) -> None:
    made = graph(MIXED[name]())
    assert sample_dim(made) == ""
    assert why_whole(made, "batch")


def test_dims_that_are_no_samples() -> None:
    bounds = graph(APART["a product"]())
    assert "never 1" in why_whole(Graph(bounds.inputs, bounds.outputs, {**DIMS, "batch": (2, 9)}), "batch")
    assert why_whole(bounds, "seq")
    fixed = input_("x", "f32", (2, 8))
    assert sample_dim(Graph((fixed,), {"y": make("linear", (fixed, weight(3, 8)))}, {})) == ""


def test_the_mask_of_one_is_not_anothers() -> None:
    """Tokens counted by one mask, put back by the places of another."""
    other = input_("other", "i64", (B, S), low=0, high=1)
    index = make("pack_index", (MASK,), tokens=symbol("tokens"))
    rows = make("embedding", (flat(X), index))
    back = {m: make("unpack_rows", (rows, make("pack_places", (m,)))) for m in (MASK, other)}
    for mask, found in ((MASK, "batch"), (other, "")):
        inputs = (X, MASK) if mask is MASK else (X, MASK, other)
        made = Graph(inputs, {"y": back[mask]}, {**DIMS, "tokens": (1, 288)})
        assert sample_dim(made) == found
    assert "pack_places other" in why_whole(made, "batch")


def test_the_token_of_a_place_without_one_is_the_first_of_all_samples() -> None:
    """Places of padding are -1: `unpack_rows` writes zeros there, any other look-up reads the first row."""
    rows = make("embedding", (flat(X), make("pack_index", (MASK,), tokens=symbol("tokens"))))
    picked = make("embedding", (rows, make("pack_places", (MASK,))))
    made = Graph((X, MASK), {"y": picked}, {**DIMS, "tokens": (1, 288)})
    assert sample_dim(made) == ""
    assert "embedding" in why_whole(made, "batch")


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    made = random_graph(seed)[0]
    if sample_dim(made) == "batch":
        assert_apart(made, seed)


def test_most_random_graphs_are_apart() -> None:
    """So that the test above tries something."""
    assert sum(sample_dim(random_graph(seed)[0]) == "batch" for seed in range(60)) > 20


@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("seed", range(12))
def test_packed_encoders(seed: int, quant: str) -> None:
    passes = ",".join(p for p in (LEVELS[3], QUANTISATIONS[quant]) if p)
    made = Blank("mask").run(Pipeline.parse(LEVELS[3], PASSES).run(random_encoder(seed)[0])[0])
    made = Pipeline.parse(passes, PASSES).run(Ragged().run(made))[0]
    assert sample_dim(made) == "batch", why_whole(made, "batch")
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (4, 7))
    mask[1] = 0
    check(made, {"ids": rng.integers(0, 23, mask.shape), "mask": mask})


def assert_apart(made: Graph, seed: int) -> None:
    check(made, random_inputs(made, seed, {"batch": 4, "seq": 5}))


def check(made: Graph, inputs: dict[str, Array]) -> None:
    """A batch of 4 gives what runs of 2, 1 and 1 of its samples give."""
    whole = interpret.run(made, inputs)
    parts = []
    for first, last in ((0, 2), (2, 3), (3, 4)):
        given = {
            n.attributes["name"]: inputs[n.attributes["name"]][first:last]
            if n.shape and n.shape[0] == B
            else inputs[n.attributes["name"]]
            for n in made.inputs
        }
        parts.append(interpret.run(made, given))
    for name, expected in whole.items():
        along = B in made.outputs[name].shape
        found = np.concatenate([part[name] for part in parts]) if along else parts[0][name]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)
