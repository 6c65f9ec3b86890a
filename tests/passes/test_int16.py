"""`int16`, `int8-blocks`: products with weights of 8 or 4 bits on activations of 16 bits, or of 8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.int16 import LONGEST
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify
from llmc.passes import PASSES
from llmc.passes.compress.blockwise import Blockwise
from llmc.passes.quantise import QUANTISATIONS
from llmc.passes.quantise.int16 import Int8Blocks, Int16, with_kernels
from llmc.quantisation import Quantisation

RNG = np.random.default_rng(8)
ROWS = symbol("rows")


def linear(x: Node, columns: int = 64, *extras: Node, **attributes: Any) -> Node:
    array = RNG.normal(size=(columns, int(x.shape[-1]))).astype(np.float32)
    return make("linear", (x, constant(Weight(array, "w")), *extras), **attributes)


def network(k: int = 96) -> Graph:
    """Two products of one input, one of them with an epilogue, and one of what they make."""
    x, bias = input_("x", "f32", (ROWS, k)), constant(np.ones(64, np.float32))
    a = linear(
        x, 64, bias, x_residual := input_("r", "f32", (ROWS, 64)), epilogue=("bias", "gelu", "residual")
    )
    y = linear(make("mul", (a, linear(x))), 40)
    return Graph((x, x_residual), {"y": y}, {"rows": (1, 9)})


def after(graph: Graph, **options: Any) -> Graph:
    made = Int16().run(Blockwise(**options).run(graph))
    verify(made)
    return made


def ops(graph: Graph, *names: str) -> list[int]:
    return [sum(node.op == name for node in graph.nodes) for name in names]


@pytest.mark.parametrize(
    ("options", "op"),
    [
        ({}, "int16_linear"),
        ({"block": 32}, "int16_blockwise"),
        ({"bits": 4, "block": 32}, "int16_blockwise"),
        ({"bits": 4}, "int16_blockwise"),
        ({"bits": 4, "block": 32, "zeros": True}, "int16_blockwise"),
        ({"zeros": True}, "int16_blockwise"),
    ],
)
def test_products_with_stored_weights(options: dict[str, Any], op: str) -> None:
    graph = network()
    with listening() as told:
        made = after(graph, **options)
    assert str(told[1]) == "3 of 3 products with stored weights"
    assert ops(made, "linear", "blockwise", op) == [0, 0, 3]
    products = [n for n in made.nodes if n.op == op]
    assert all(n.attributes.get("has_zeros", False) is options.get("zeros", False) for n in products)
    assert sorted(n.attributes["epilogue"] for n in products) == [(), (), ("bias", "gelu", "residual")]
    shared = next(step.change for step in Pipeline.parse("cse", PASSES).steps).run(made)
    assert ops(shared, "int16_rows") == [2]  # two products read one row

    inputs = {name: RNG.normal(size=(5, size)).astype(np.float32) for name, size in (("x", 96), ("r", 64))}
    stored = run(Blockwise(**options).run(graph), inputs)["y"]
    exact, result = run(graph, inputs)["y"], run(made, inputs)["y"]
    scale = np.abs(exact).max()
    assert np.abs(result - stored).max() < 2e-4 * scale
    assert np.abs(stored - exact).max() > 1e-3 * scale  # what rounding weights does


@pytest.mark.parametrize(
    ("options", "k", "reason"),
    [
        ({"block": 24}, 96, "blocks of 24 are no multiple of 16"),
        ({"block": 512}, 1024, "blocks of 512"),
        ({"bits": 4}, 4100, "blocks of 4100"),
        ({}, LONGEST, "may not fit 32 bits"),
        ({"zeros": True}, 272, "blocks of 272"),
    ],
)
def test_others_are_left_with_the_reason(options: dict[str, Any], k: int, reason: str) -> None:
    x = input_("x", "f32", (ROWS, k))
    graph = Blockwise(**options).run(Graph((x,), {"y": linear(x, 16)}, {"rows": (1, 9)}))
    with listening() as told:
        assert Int16().run(graph) is graph
    assert reason in str(told[0])
    assert str(told[0]).startswith("0 of 1 products with stored weights")


@pytest.mark.parametrize(
    "options",
    [{"block": 32}, {"bits": 4, "block": 32}, {"bits": 4}, {"bits": 4, "block": 32, "zeros": True}],
)
def test_activations_of_8_bits(options: dict[str, Any]) -> None:
    graph = network()
    stored = Blockwise(**options).run(graph)
    with listening() as told:
        made = Int8Blocks().run(stored)
    verify(made)
    assert str(told[0]) == "3 of 3 products with stored weights"
    assert ops(made, "linear", "blockwise", "int8_blockwise") == [0, 0, 3]
    inputs = {name: RNG.normal(size=(5, size)).astype(np.float32) for name, size in (("x", 96), ("r", 64))}
    plain, sixteen, result = (run(g, inputs)["y"] for g in (stored, Int16().run(stored), made))
    scale = np.abs(plain).max()
    assert np.abs(sixteen - plain).max() < np.abs(result - plain).max() < 2e-2 * scale


def test_one_scale_for_each_row_is_left_to_int16() -> None:
    graph = Blockwise().run(network())
    with listening() as told:
        assert Int8Blocks().run(graph) is graph
    assert "`int16` is for such weights" in str(told[0])


def test_other_weights_are_left() -> None:
    graph = network()
    assert Int16().run(graph) is graph


@pytest.mark.parametrize("mode", ["w8", "w4", "w4a8"])
def test_what_quant_appends(mode: str) -> None:
    graph = network(160)
    for step in Pipeline.parse(QUANTISATIONS[mode], PASSES).steps:
        graph = step.change.run(graph)
    verify(graph)
    expected = {"w8": [1, 2, 0], "w4": [0, 3, 0], "w4a8": [0, 0, 3]}
    assert ops(graph, "int16_linear", "int16_blockwise", "int8_blockwise") == expected[mode]
    assert ops(graph, "linear") == [0]


@pytest.mark.parametrize("options", [{}, {"bits": 4, "block": 32}])
def test_levels_that_are_all_equal_stay_a_constant(options: dict[str, Any]) -> None:
    """A graph is simplified again where it is read from a file: kernels pack weights that are known."""
    x = input_("x", "f32", (ROWS, 96))
    weight = constant(Weight(np.zeros((64, 96), np.float32), "w"))
    made = after(Graph((x,), {"y": make("linear", (x, weight))}, {"rows": (1, 9)}), **options)
    again = Pipeline.parse("simplify", PASSES).steps[0].change.run(made)
    (product,) = (n for n in again.nodes if n.op in ("int16_linear", "int16_blockwise"))
    assert product.inputs[1].op == "constant"


def test_rows_stay_float_where_there_are_no_kernels_of_integers() -> None:
    pipeline = Pipeline.parse(QUANTISATIONS["w4a8"], PASSES)
    assert with_kernels(pipeline, {"int16", "int8-blocks"}) is pipeline
    for known, left in (((), ["blockwise", "cse"]), (("int8-blocks",), ["blockwise", "int8-blocks", "cse"])):
        assert [step.change.name for step in with_kernels(pipeline, known).steps] == left


@pytest.mark.parametrize(
    ("mode", "known", "passes"),
    [
        ("int8", {"int16"}, "spare,int16,quantize,qfuse,cse"),
        ("int8", set(), "quantize,qfuse,cse"),
        ("w8", set(), "blockwise{block=128,table_block=64},cse"),
        ("w8", {"int16"}, "blockwise{block=128,table_block=64},int16,cse"),
    ],
)
def test_what_quant_means_where(mode: str, known: set[str], passes: str) -> None:
    """Of a function with states: nothing is spared for kernels that there are not."""
    assert str(Quantisation(mode).pipeline(False, known, stateful=True)) == passes
