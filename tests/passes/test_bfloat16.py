"""`bfloat16`: weights in the upper half of their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.graph import Graph, Node, Source, Weight
from llmc.compiler.interpret import run
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.compress.bfloat16 import Bfloat16, upper_halves
from llmc.passes.quantise import QUANTISATIONS
from llmc.passes.quantise.bf16 import Bf16Products


def matrix(*shape: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30, shape)).astype(np.float32)


def rounded(array: Any) -> Any:
    return torch.from_numpy(array.copy()).to(torch.bfloat16).float().numpy()


@pytest.mark.parametrize("seed", range(3))
def test_to_the_nearest_as_pytorch_rounds(seed: int) -> None:
    array = matrix(40, 33, seed=seed)
    array[0, :6] = 0.0, -0.0, 1e-45, 3.3e38, -1.00390625, 1.01171875  # a denormal, large ones, and ties
    found = OPS["bfloat16"].reference(upper_halves(array).view(np.uint8), columns=33)
    np.testing.assert_array_equal(found.view(np.uint32), rounded(array).view(np.uint32))


def network(scale: float = 1.0) -> Graph:
    """A table that a product reads too, a product, one of few columns, and one that is small."""
    rng = np.random.default_rng(4)
    ids = input_("ids", "i64", (symbol("batch"), 3), low=0, high=59)

    def weight(n: int, k: int, name: str) -> Node:
        return constant(Weight((rng.normal(size=(n, k)) * scale).astype(np.float32), name))

    table = weight(60, 40, "table")
    x = make("embedding", (table, ids), Source("words"))
    y = make("tanh", (make("linear", (x, weight(40, 40, "first")), Source("one")),))
    outputs = {
        "logits": make("linear", (y, table), Source("two")),
        "few": make("linear", (y, weight(6, 40, "few")), Source("three")),
        "small": make("linear", (y, weight(20, 40, "small")), Source("four")),
    }
    return Graph((ids,), outputs, {"batch": (1, 8)})


def test_expected_graph() -> None:
    graph = network()
    with listening() as told:
        after = Bfloat16().run(graph)
    verify(after)
    assert [n.op for n in after.nodes].count("bfloat16") == 3  # two weights, and the rows that are looked up
    (effect,) = told
    assert effect.changed == 2
    assert sum(effect.left.values()) == 2
    ids = {"ids": np.array([[1, 5, 59]])}
    plain, found = run(graph, ids), run(after, ids)
    for name in plain:
        assert np.abs(plain[name] - found[name]).max() < 2e-2 * np.abs(plain[name]).max()


def test_weights_that_came_so_keep_their_bits() -> None:
    graph = network()

    def halved(node: Node) -> Node:
        if node.op != "constant":
            return node
        value = node.attributes["value"]
        return constant(Weight(rounded(value.array), value.name))

    graph = graph.rebuild(lambda before, node: halved(node))
    ids = {"ids": np.array([[0, 7, 33]])}
    plain, found = run(graph, ids), run(Bfloat16().run(graph), ids)
    for name in plain:
        np.testing.assert_array_equal(plain[name], found[name])


def test_what_would_become_infinite_is_left() -> None:
    x = input_("x", "f32", (symbol("batch"), 64))
    array = matrix(32, 64) * 0
    array[3, 4] = np.finfo(np.float32).max
    graph = Graph((x,), {"y": make("linear", (x, constant(Weight(array, "w"))))}, {"batch": (1, 8)})
    with listening() as told:
        assert Bfloat16().run(graph) is graph
    assert "beyond the range" in str(told[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    x, array = input_("x", "f32", (symbol("batch"), 64)), matrix(32, 64)
    array[1, 2] = value
    graph = Graph((x,), {"y": make("linear", (x, constant(Weight(array, "w"))))}, {"batch": (1, 8)})
    with pytest.raises(LlmcError, match="not finite"):
        Bfloat16().run(graph)


def test_skip_and_what_quant_appends() -> None:
    graph = network()
    text = str(Pipeline.parse('bfloat16{skip=["one"]}', PASSES))
    after, _ = Pipeline.parse(text, PASSES).run(graph)
    products = {str(n.source): n.inputs[1].op for n in after.nodes if n.op == "linear"}
    assert products == {"one": "constant", "two": "bfloat16", "three": "constant", "four": "constant"}
    with pytest.raises(LlmcError, match="no product fits"):
        Bfloat16(skip=("nowhere",)).run(graph)
    after, _ = Pipeline.parse(QUANTISATIONS["bf16"], PASSES).run(graph)
    verify(after)
    assert "bfloat16" in {n.op for n in after.nodes}


# --- bf16-products


def test_products_of_halves() -> None:
    """A head that is a table has the look-up's halves; products of one input share its rows; others stay."""
    graph = network()
    stored = Bfloat16().run(graph)
    with listening() as told:
        after = Bf16Products().run(stored)
    verify(after)
    assert str(told[0]) == "2 of 2 products with weights in bfloat16"
    first, head = (n for n in after.nodes if n.op == "bf16_linear")
    assert [n.op for n in after.nodes].count("linear") == 2  # of few columns, and small
    (rows,) = (n for n in after.nodes if n.op == "bfloat16")  # that are looked up
    assert rows.inputs[0].inputs[0] is head.inputs[1]
    assert first.inputs[1] is not head.inputs[1]
    ids = {"ids": np.array([[1, 5, 59]])}
    plain, halved, found = (run(g, ids) for g in (graph, stored, after))
    for name in ("logits", "few"):
        assert 0 < np.abs(found[name] - halved[name]).max() < 2e-2 * np.abs(plain[name]).max()


def test_the_epilogue_goes_along() -> None:
    x, r = input_("x", "f32", (symbol("batch"), 40)), input_("r", "f32", (symbol("batch"), 40))
    w, bias = constant(Weight(matrix(40, 40) * 0 + 0.5, "w")), constant(np.ones(40, np.float32))
    a = make("linear", (x, w, bias, r), epilogue=("bias", "gelu", "residual"))
    graph = Graph((x, r), {"y": a, "z": make("linear", (x, w))}, {"batch": (1, 8)})
    after, _ = Pipeline.parse(QUANTISATIONS["bf16a16"], PASSES).run(graph)
    verify(after)
    ops = [n.op for n in after.nodes]
    assert (ops.count("bf16_rows"), ops.count("bf16_linear"), ops.count("linear")) == (1, 2, 0)
    made = after.outputs["y"]
    assert made.attributes == {"columns": 40, "epilogue": ("bias", "gelu", "residual")}
    assert made.inputs[2:] == (bias, r)


def test_plain_weights_are_left() -> None:
    graph = network()
    with listening() as told:
        assert Bf16Products().run(graph) is graph
    assert not any(effect.changed for effect in told)


def test_halves_that_are_computed() -> None:
    x, halves = input_("x", "f32", (symbol("batch"), 8)), input_("halves", "u8", (20, 16))
    y = make("linear", (x, make("bfloat16", (halves,), columns=8)))
    graph = Graph((x, halves), {"y": y}, {"batch": (1, 8)})
    with listening() as told:
        assert Bf16Products().run(graph) is graph
    assert "computed" in str(told[0])
