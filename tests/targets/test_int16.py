"""Products of int8 weights and int16 activations: every bit of the reference, on every CPU variant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from integer_products import extremes as given
from integer_products import int16_product
from kernel_lab import CUTS, Lab, differing, same_bits
from product_checks import want_bits, want_nan, want_near, want_rows

from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.int16 import LIMIT, PARTS
from llmc.compiler.ops.rows import unpack_rows
from llmc.compiler.ops.split import part_size
from llmc.targets.cpu.variants import AVX512AMX

Array = np.ndarray[Any, Any]
EDGES = [(64, 64), (1, 1), (33, 65), (96, 63), (17, 513), (130, 192)]


def product(n: int, k: int, seed: int, epilogue: tuple[str, ...] = ()) -> Graph:
    """int16_linear of rows `[rows, k]` of float32."""
    return int16_product(n, k, seed, epilogue)[0]


@pytest.mark.parametrize(("n", "k"), EDGES)
def test_products_have_the_bits_of_the_reference(kernels: Lab, n: int, k: int) -> None:
    want_bits(kernels, product(n, k, 0, ("bias",)), (1, 2, 3, 5, 9, 47, 49, 100), 0)


@pytest.mark.parametrize("k", [512, 516, 1536, 4100])
def test_long_sums(kernels: Lab, k: int) -> None:
    """Where 32 bits hold no sum of levels of 16 bits: around the numbers of groups that fit."""
    want_bits(kernels, product(40, k, 1), (1, 13), 1)


def test_totals_are_exact() -> None:
    """Beside whole numbers of Python: levels and weights as large as there are, and their sums' last digits."""
    k = 4000
    x, w = np.full((3, k), 2.0, np.float32), np.full((2, k), -128, np.int8)
    x[1, 0], x[2, ::2] = 2.0 / LIMIT, -2.0
    w[1, 1:] = 127
    node = make(
        "int16_linear",
        (
            make("int16_rows", (value := input_("x", "f32", (3, k)),)),
            constant(w),
            constant(np.ones(2, np.float32)),
        ),
    )
    result = run(Graph((value,), {"y": node}), {"x": x})["y"]
    levels = [[round(float(v) / (2.0 / LIMIT)) for v in row] for row in x]
    scale = np.float32(2.0) / np.float32(LIMIT)
    for i, row in enumerate(levels):
        for j in range(2):
            total = sum(a * int(b) for a, b in zip(row, w[j], strict=True))
            near = np.float32(256) * np.float32(total >> 8) + np.float32(total & 255)
            assert abs(float(result[i, j]) - float(near * scale)) <= 2e-7 * abs(float(near * scale))


@pytest.mark.parametrize("m", [32, 33, 65, 257])
def test_halves_of_the_rows(kernels: Lab, m: int) -> None:
    """As one thread runs them and as several do."""
    graph = product(80, 68, 4, ("bias",))
    inputs = given(graph, m, m)
    expected = run(graph, inputs)["y"]
    for cpu in differing(["int16_linear"]):
        for cuts in ((1 << 40,), *CUTS):
            assert same_bits(kernels.run(graph, inputs, cpu=cpu, cuts=cuts)["y"], expected), (cpu.name, cuts)


@pytest.mark.variant(AVX512AMX.name)
def test_every_number_of_rows_on_tiles(kernels: Lab) -> None:
    graph = product(96, 192, 10, ("bias", "residual"))
    for m in [*range(1, 34), 47, 48, 49, 128, 129, 257]:
        inputs = given(graph, m, 10)
        expected = run(graph, inputs)["y"]
        for cuts in ((1 << 40,), (1,)):
            assert same_bits(kernels.run(graph, inputs, cpu=AVX512AMX, cuts=cuts)["y"], expected), (m, cuts)


@pytest.mark.parametrize("epilogue", [(), ("residual", "bias"), ("bias", "relu", "residual")])
def test_exact_epilogues(kernels: Lab, epilogue: tuple[str, ...]) -> None:
    want_bits(kernels, product(50, 70, 2, epilogue), (1, 7, 50), 2)


def test_activations(kernels: Lab) -> None:
    want_near(kernels, product(50, 70, 3, ("bias", "gelu", "residual")))


@pytest.mark.parametrize("k", [1, 16, 17, 64, 100])
def test_rows(kernels: Lab, k: int) -> None:
    want_rows(kernels, "int16_rows", k, PARTS)


def test_levels_are_near() -> None:
    """Every value is at most half a step, and the rounding of its division, from what its two parts say."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(50, 77)) * 10.0 ** rng.integers(-20, 20, (50, 1))).astype(np.float32)
    value = input_("x", "f32", x.shape)
    rows = run(Graph((value,), {"rows": make("int16_rows", (value,))}), {"x": x})["rows"]
    parts, scale = unpack_rows(rows, PARTS * part_size(77))
    level = 256.0 * parts[:, :77] + parts[:, part_size(77) : part_size(77) + 77]
    assert (np.abs(level * scale - x) <= 0.51 * scale).all()
    assert (np.abs(level).max(-1) == LIMIT).all()


def test_nan_reaches_the_answer(kernels: Lab) -> None:
    want_nan(kernels, product(40, 70, 6))
