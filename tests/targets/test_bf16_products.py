"""Products of bfloat16: every bit of the reference, on every CPU variant, tiles among them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from instruction_sets import X86
from integer_products import M, bf16_product, extremes
from kernel_lab import CUTS, Lab, check_no_contraction, differing, machine_code, run_all, same_bits
from product_checks import special_rows, want_bits, want_nan, want_near

from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.ops import bf16, constant, input_, make
from llmc.errors import LlmcError
from llmc.targets.cpu.variants import FLOATS

EDGES = (1, 2, 5, 6, 7, 15, 16, 17, 31, 32, 33, 47, 129)


@pytest.mark.parametrize(("n", "k"), [(64, 64), (96, 192), (50, 70)])
def test_numbers_of_rows(kernels: Lab, n: int, k: int) -> None:
    """Around tiles of 16 rows, and of those that registers hold."""
    want_bits(kernels, bf16_product(n, k, 0, ("bias",)), EDGES, 0)


@pytest.mark.parametrize("k", [1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 127, 513])
def test_depths(kernels: Lab, k: int) -> None:
    want_bits(kernels, bf16_product(48, k, 1, ("residual",)), (1, 3, 40), 1)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 33, 48, 63, 65, 130])
def test_columns(kernels: Lab, n: int) -> None:
    want_bits(kernels, bf16_product(n, 70, 2, ("bias", "relu", "residual")), (1, 21), 2)


@pytest.mark.parametrize("m", [1, 7, 40, 257])
def test_items_can_be_cut(kernels: Lab, m: int) -> None:
    graph = bf16_product(130, 70, 3, ("residual", "bias"))
    inputs = extremes(graph, m, 3)
    expected = run(graph, inputs)["y"]
    for cpu, cuts in itertools.product(differing([FLOATS]), CUTS):
        assert same_bits(kernels.run(graph, inputs, cpu=cpu, cuts=cuts)["y"], expected), (cpu.name, cuts)


def test_an_activation(kernels: Lab) -> None:
    want_near(kernels, bf16_product(50, 70, 4, ("bias", "gelu", "residual")))


def test_what_is_no_number(kernels: Lab) -> None:
    want_nan(kernels, bf16_product(50, 70, 5))


def test_the_largest_and_the_smallest(kernels: Lab) -> None:
    """Products beyond the range of float32, and at the lower end of what is kept: no sum is denormal."""
    halves = np.array([[3.0e38, -3.0e38, 2.0**-50, -(2.0**-50)] * 16], np.float32).repeat(17, 0)
    x = input_("x", "f32", (M, 64))
    made = make(
        "bf16_linear", (make("bf16_rows", (x,)), constant(bf16.rounded(halves).view(np.uint8))), columns=64
    )
    graph = Graph((x,), {"y": made}, {"rows": (0, 100)})
    rows = np.zeros((5, 64), np.float32)
    rows[0, ::4] = 3.0e38
    rows[1, 2::4] = 2.0**-50
    rows[2, 2::4], rows[2, 3::4] = 2.0**-50, 2.0**-50 * (1 + 2.0**-7)
    rows[3, 2::4] = np.nextafter(np.float32(2.0**-50), np.float32(0))  # is not kept
    rows[4, :4] = 1.0, 1.0, 1e-45, -1e-45
    found, wanted = run_all(kernels, graph, {"x": rows})["y"], run(graph, {"x": rows})["y"]
    assert same_bits(found, wanted)
    assert np.isposinf(wanted[0]).all()
    assert (wanted[1] == np.float32(16 * 2.0**-100)).all()
    assert (wanted[2] == np.float32(-16 * 2.0**-107)).all()
    assert (wanted[3:] == 0).all()


@pytest.mark.parametrize("k", [1, 16, 31, 32, 33, 64, 70])
def test_rows(kernels: Lab, k: int) -> None:
    """With special values among them, up to the last byte."""
    x = input_("x", "f32", (M, k))
    graph = Graph((x,), {"rows": make("bf16_rows", (x,))}, {"rows": (1, 100)})
    inputs = {"x": special_rows(k)}
    inputs["x"][0, : min(k, 4)] = np.array([1.00390625, 1.01171875, 2.0**-50, 3.4e38], np.float32)[:k]
    found, wanted = run_all(kernels, graph, inputs)["rows"], run(graph, inputs)["rows"]
    assert same_bits(found, wanted)


def fma(a: float, b: float, c: float) -> np.float32:
    """Of f32: exact, then rounded once, by whole numbers of 2^-200."""
    exact = sum(int(math.ldexp(v, 200)) for v in (a * b, c))
    return np.float32(math.ldexp(exact, -200)) if exact.bit_length() <= 53 else _shortened(exact)


def _shortened(exact: int) -> np.float32:
    """To odd at 53 digits, which rounds as the number itself does."""
    size, drop = abs(exact), abs(exact).bit_length() - 53
    kept = size >> drop | bool(size & ((1 << drop) - 1))
    return np.float32(math.copysign(math.ldexp(kept, drop - 200), exact))


@pytest.mark.parametrize("seed", range(4))
def test_the_reference_rounds_once(seed: int) -> None:
    """Each step by whole numbers, of terms that cancel and lie far apart."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, 3, 70)) * 2.0 ** rng.integers(-20, 20, (2, 3, 70))
    x, w = (bf16.values(bf16.rounded(v.astype(np.float32)).view(np.uint8), 70) for v in values)
    expected = np.zeros((3, 3), np.float32)
    for i, j in np.ndindex(3, 3):
        for block in range(0, 70, 32):
            chains = [np.float32(0)] * 2
            for k in range(block, min(block + 32, 70)):
                chains[k % 2] = fma(float(x[i, k]), float(w[j, k]), float(chains[k % 2]))
            expected[i, j] += chains[0] + chains[1]
    assert same_bits(bf16.sums(x, w), expected)


def test_a_computed_weight_is_refused(kernels: Lab) -> None:
    rows, halves = input_("rows", "u8", (M, 64)), input_("halves", "u8", (8, 64))
    with pytest.raises(LlmcError, match="computed at run time"):
        kernels.call_of(make("bf16_linear", (rows, halves), columns=32))


@pytest.mark.parametrize("epilogue", [(), ("bias", "gelu", "residual")])
def test_code_for_every_variant(kernels: Lab, epilogue: tuple[str, ...]) -> None:
    """By tiles, or by float32 of the vectors that there are."""
    kernel = kernels.call_of(bf16_product(50, 70, 6, epilogue).outputs["y"]).kernel
    own = [cpu for cpu in X86.values() if cpu.code_for(kernel.family) is cpu]
    assert kernel.family == FLOATS
    assert [cpu.name for cpu in own] == ["avx512amx", "avx512", "avx2"]
    for cpu in own:
        function = kernel.emit(kernel.symbol, cpu)
        check_no_contraction(function)
        assert machine_code(kernel.symbol, function, cpu).startswith(b"\x7fELF"), cpu.name
