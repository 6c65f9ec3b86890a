"""AMX tiles against the references: every bit, at the edges of tiles, of a tile's depth and of panels."""

from __future__ import annotations

import pytest
from integer_products import bf16_product, extremes, given, product
from kernel_lab import Lab, same_bits

from llmc.compiler.interpret import run
from llmc.targets.cpu.variants import AVX512AMX

pytestmark = pytest.mark.variant(AVX512AMX.name)


@pytest.mark.parametrize(("n", "k"), [(64, 64), (96, 192)])
def test_every_number_of_rows(kernels: Lab, n: int, k: int) -> None:
    """One to three tiles of rows, all of one height, the last two overlapping."""
    graph, _ = product(n, k, 10, ("bias",))
    for m in [*range(1, 34), 47, 48, 49, 128, 129, 257]:
        inputs = given(graph, k, m, 10)
        expected = run(graph, inputs)["y"]
        for cuts in ((1 << 40,), (1,)):
            assert same_bits(kernels.run(graph, inputs, cpu=AVX512AMX, cuts=cuts)["y"], expected), (m, cuts)


@pytest.mark.parametrize("k", [60, 63, 65, 68, 127, 128, 129, 190])
def test_depths_that_are_not_whole_tiles(kernels: Lab, k: int) -> None:
    graph, _ = product(48, k, 11, ("residual",))
    for m in (3, 40):
        inputs = given(graph, k, m, 11)
        assert same_bits(kernels.run(graph, inputs, cpu=AVX512AMX)["y"], run(graph, inputs)["y"]), m


@pytest.mark.parametrize("n", [1, 15, 31, 33, 48, 63, 65, 127, 130])
def test_columns_around_a_panel(kernels: Lab, n: int) -> None:
    graph, _ = product(n, 70, 12, ("bias", "relu", "residual"))
    inputs = given(graph, 70, 21, 12)
    assert same_bits(kernels.run(graph, inputs, cpu=AVX512AMX)["y"], run(graph, inputs)["y"])


@pytest.mark.parametrize(("n", "k"), [(64, 64), (48, 70), (130, 33)])
def test_every_number_of_rows_of_bfloat16(kernels: Lab, n: int, k: int) -> None:
    graph = bf16_product(n, k, 13, ("bias",))
    for m in [*range(1, 34), 47, 48, 49, 128, 129, 257]:
        inputs = extremes(graph, m, 13)
        expected = run(graph, inputs)["y"]
        for cuts in ((1 << 40,), (1,)):
            assert same_bits(kernels.run(graph, inputs, cpu=AVX512AMX, cuts=cuts)["y"], expected), (m, cuts)
