"""Products with constant weights: every tile, at the edges of panels, blocks of k and groups of rows."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_lab import Array, Lab, check, run_all, same_bits

from llmc.compiler.dims import evaluate, symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.targets.cpu.products.blocking import BLOCK_BYTES, ROWS_PER_ITEM, Blocking, panel_width
from llmc.targets.cpu.products.linear import lower_linear
from llmc.targets.cpu.variants import AVX2, AVX512
from llmc.targets.tir.emit import Emitter, i64
from llmc.targets.tir.tiling import tiles

RNG = np.random.default_rng(5)
DEPTH = BLOCK_BYTES // (4 * 48)  # of a block of k of a panel of 48 columns
# one tile, two, an odd one; all items but one row, all of a group, one row more
ROWS = (1, 2, 6, 7, 8, 9, 13, 16, 17, 47, 49, 143, 145, 193)


def product_node(n: int, k: int, epilogue: tuple[str, ...] = (), whole: bool = False) -> Node:
    """`linear` of x `[m, k]`; `whole`: with small integers for weights."""
    x = input_("x", "f32", (symbol("m"), k))
    w = RNG.integers(-8, 9, (n, k)) if whole else RNG.normal(size=(n, k))
    extras = {
        "bias": constant(RNG.normal(size=n).astype(np.float32)),
        "residual": input_("r", "f32", (symbol("m"), n)),
    }
    operands = (x, constant(w.astype(np.float32)), *(extras[step] for step in epilogue if step in extras))
    return make("linear", operands, epilogue=epilogue)


def graph_of(node: Node) -> Graph:
    return Graph(tuple(i for i in node.inputs if i.op == "input"), {"y": node}, {"m": (1, 999)})


@pytest.mark.parametrize("k", [1, DEPTH - 1, DEPTH, DEPTH + 4, 2 * DEPTH + 1, 5 * DEPTH - 4])
def test_every_term_is_summed_once(kernels: Lab, k: int) -> None:
    """Sums of small integers are exact, whatever the order: a missing or doubled term shows."""
    node = product_node(97, k, whole=True)
    w = node.inputs[1].attributes["value"].array
    for rows in ROWS:
        x = RNG.integers(-8, 9, (rows, k)).astype(np.float32)
        (y,) = kernels.run(graph_of(node), {"x": x}).values()
        assert np.array_equal(y, x @ w.T), rows


@pytest.mark.parametrize(("n", "k"), [(48, 2 * DEPTH), (130, 300), (31, 515)])
def test_variants_and_cuts_give_the_same_bits(kernels: Lab, n: int, k: int) -> None:
    graph = graph_of(product_node(n, k, ("bias", "gelu", "residual")))
    for rows in (1, 4, 11, 161):
        inputs = {
            name: RNG.normal(size=(rows, width)).astype(np.float32) for name, width in (("x", k), ("r", n))
        }
        run_all(kernels, graph, inputs)


@pytest.mark.parametrize(
    "cpu", [pytest.param(cpu, marks=pytest.mark.variant(cpu.name), id=cpu.name) for cpu in (AVX512, AVX2)]
)
def test_a_row_has_the_bits_it_has_alone(kernels: Lab, cpu: object) -> None:
    graph, x = graph_of(product_node(80, 3 * DEPTH - 8, ("bias",))), RNG.normal(size=(193, 3 * DEPTH - 8))
    x = x.astype(np.float32)

    def run(rows: Array) -> Array:
        return kernels.run(graph, {"x": rows}, None, cpu)["y"]  # type: ignore[arg-type]

    whole = run(x)
    for row in (0, 7, 8, 47, 48, 143, 144, 192):
        assert same_bits(run(x[row : row + 1]), whole[row : row + 1]), row
    for count in (9, 48, 150):
        assert same_bits(run(x[:count]), whole[:count]), count


def test_the_reference_agrees(kernels: Lab) -> None:
    node = product_node(50, 260, ("bias", "relu", "residual"))
    check(
        kernels,
        {"y": node},
        {name: RNG.normal(size=(21, w)).astype(np.float32) for name, w in (("x", 260), ("r", 50))},
    )


@pytest.mark.parametrize("k", [1, 3, 100, 128, 129, 384, 768, 1000, 1536, 3072, 8192])
@pytest.mark.parametrize("width", [16, 32, 48, 64])
def test_blocks_cover_k_and_fit(k: int, width: int) -> None:
    cut = Blocking.of(k, width, ROWS_PER_ITEM)
    assert cut.depth % cut.unroll == k % cut.unroll == 0
    assert (cut.blocks - 1) * cut.depth < k <= cut.blocks * cut.depth
    assert 4 * width * (cut.depth - cut.unroll) < BLOCK_BYTES
    assert cut.group >= 1


def test_cost_is_of_one_item() -> None:
    node = product_node(200, 96)
    call = lower_linear(node)
    width = panel_width(200)
    assert evaluate(call.items, {"m": 100}) == -(-200 // width) * 3
    assert evaluate(call.cost, {"m": 100}) == 96 * (width // 16) * 48
    assert evaluate(call.cost, {"m": 5}) == 96 * (width // 16) * 5


def test_tiles_write_each_height_once() -> None:
    heights: list[int] = []
    e = Emitter("f")
    tiles(e, i64(0), i64(20), 8, lambda row, h: heights.append(h), 4)
    assert heights == [8, 7, 6, 5, 4]
