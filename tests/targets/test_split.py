"""Products of float32 in parts: every bit of the reference, on every CPU variant, and near to float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from integer_products import extremes, split_product
from kernel_lab import Lab, same_bits
from product_checks import want_bits, want_nan, want_near, want_rows

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.split import LIMIT, PARTS, TOP, UNIT, split, split_scales, split_weights
from llmc.targets.cpu.variants import AVX512AMX

Array = np.ndarray[Any, Any]
M = symbol("rows")
EDGES = [(64, 64), (1, 1), (33, 65), (96, 63), (130, 192)]


@pytest.mark.parametrize(("n", "k"), EDGES)
def test_products_have_the_bits_of_the_reference(kernels: Lab, n: int, k: int) -> None:
    want_bits(kernels, split_product(n, k, 0, ("bias",))[0], (1, 2, 5, 9, 47, 49, 100), 0)


@pytest.mark.variant(AVX512AMX.name)
def test_every_number_of_rows_on_tiles(kernels: Lab) -> None:
    graph, _ = split_product(96, 192, 10, ("bias", "residual"))
    for m in [*range(1, 34), 47, 48, 49, 128, 129, 257]:
        inputs = extremes(graph, m, 10)
        expected = run(graph, inputs)["y"]
        for cuts in ((1 << 40,), (1,)):
            assert same_bits(kernels.run(graph, inputs, cpu=AVX512AMX, cuts=cuts)["y"], expected), (m, cuts)


@pytest.mark.parametrize("epilogue", [(), ("residual", "bias"), ("bias", "relu", "residual")])
def test_exact_epilogues(kernels: Lab, epilogue: tuple[str, ...]) -> None:
    want_bits(kernels, split_product(50, 70, 2, epilogue)[0], (1, 7, 50), 2)


def test_activations(kernels: Lab) -> None:
    want_near(kernels, split_product(50, 70, 3, ("bias", "gelu", "residual"))[0])


@pytest.mark.parametrize("k", [1, 16, 17, 64, 100])
def test_rows(kernels: Lab, k: int) -> None:
    want_rows(kernels, "split_rows", k, PARTS)


def test_parts_hold_24_bits() -> None:
    """Every value is at most half a step, and the rounding of its division, from what its parts say."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(50, 77)) * 10.0 ** rng.integers(-20, 20, (50, 1))).astype(np.float32)
    scale = split_scales(x)
    high, middle, low = (part.astype(np.float64) for part in split(x, scale))
    back = (high + middle / 256 + low / UNIT) * scale
    step = np.abs(x).max(-1, keepdims=True).astype(np.float64) / LIMIT
    assert (np.abs(back - x) <= 1.5 * step).all()
    assert (np.abs(high).max(-1) == 127).all()
    assert np.float32(TOP) == TOP


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("k", [64, 768, 3072])
def test_errors_are_those_of_a_float32_sum(k: int, outliers: bool) -> None:
    """Root mean square, beside float32 sums in order; 8 times that with a value of 90 among normal ones in each row."""
    rng = np.random.default_rng(k)
    x, w = rng.normal(size=(20, k)).astype(np.float32), rng.normal(size=(30, k)).astype(np.float32)
    if outliers:
        x[:, k // 3] = 30 * 3
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    summed = np.zeros_like(exact, np.float32)
    for i in range(k):
        summed = (summed + x[:, i : i + 1].astype(np.float64) * w[:, i].astype(np.float64)).astype(np.float32)
    value = input_("x", "f32", (20, k))
    parts = (constant(p) for p in split_weights(w))
    graph = Graph((value,), {"y": make("split_linear", (make("split_rows", (value,)), *parts), epilogue=())})
    error = run(graph, {"x": x})["y"] - exact

    def size(e: Array) -> float:
        return float(np.sqrt(np.mean(e**2)))

    assert size(error) < (8 if outliers else 1.5) * size(summed - exact) + 2e-7 * size(exact)


def test_nan_reaches_the_answer(kernels: Lab) -> None:
    want_nan(kernels, split_product(40, 70, 6)[0])
