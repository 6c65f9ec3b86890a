"""Products of weights in blocks and int16 or int8 activations: every bit of the reference, on every CPU variant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from integer_products import M
from integer_products import blocks_product as product
from integer_products import extremes as given
from kernel_lab import CUTS, Lab, differing, run_all, same_bits
from product_checks import special_rows, want_bits, want_nan, want_near

from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.ops import input_, int8_blocks, make
from llmc.compiler.ops.int16 import row_bytes, sums_offset

Array = np.ndarray[Any, Any]
# columns, block: whole and broken last blocks, whole rows of odd sizes
BLOCKS = [(64, 32), (96, 64), (100, 32), (130, 64), (33, 33), (5, 5), (256, 256), (272, 256), (48, 16)]


BOTH = pytest.mark.parametrize("rows", ["int16", "int8"])


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("k", "block"), BLOCKS)
def test_products_have_the_bits_of_the_reference(
    kernels: Lab, rows: str, bits: int, k: int, block: int
) -> None:
    want_bits(kernels, product(rows, 50, k, bits, block, ("bias",)), (1, 2, 3, 4, 5, 9, 47), 0)


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("k", "block", "dtype"), [(100, 32, np.float16), (33, 33, np.float32), (208, 16, np.float16)]
)
def test_zero_points(kernels: Lab, rows: str, bits: int, k: int, block: int, dtype: Any) -> None:
    """An odd number of blocks and an even one, each around a level of its own."""
    want_bits(kernels, product(rows, 50, k, bits, block, ("bias",), dtype, zeros=True), (1, 2, 5, 47), 7)


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("n", [1, 16, 17, 32, 33, 64, 96, 130])
def test_every_width(kernels: Lab, rows: str, bits: int, n: int) -> None:
    want_bits(kernels, product(rows, n, 96, bits, 32, dtype=np.float16), (1, 6), n)


@BOTH
def test_the_longest_blocks(kernels: Lab, rows: str) -> None:
    """Sums as large as they can be: all levels at an end, all activations too."""
    for k, bits, block, zeros in (
        (512, 8, 256, False),
        (4096, 4, 4096, False),
        (512, 8, 256, True),
        (4096, 4, 4096, True),
    ):
        graph = product(rows, 9, k, bits, block, zeros=zeros)
        x = np.full((4, k), 3.0, np.float32)
        x[1], x[2, ::2] = -3.0, -3.0
        assert same_bits(run_all(kernels, graph, {"x": x})["y"], run(graph, {"x": x})["y"])


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("m", [32, 33, 65, 257])
def test_halves_of_the_rows(kernels: Lab, rows: str, m: int, bits: int) -> None:
    """As one thread runs them and as several do."""
    graph = product(rows, 80, 64, bits, 32, ("bias",))
    inputs = given(graph, m, m)
    expected = run(graph, inputs)["y"]
    for cpu in differing([f"{rows}_blockwise"]):
        for cuts in ((1 << 40,), *CUTS):
            assert same_bits(kernels.run(graph, inputs, cpu=cpu, cuts=cuts)["y"], expected), (cpu.name, cuts)


@BOTH
@pytest.mark.parametrize("epilogue", [(), ("residual", "bias"), ("bias", "relu", "residual")])
def test_exact_epilogues(kernels: Lab, rows: str, epilogue: tuple[str, ...]) -> None:
    want_bits(kernels, product(rows, 50, 70, 8, 32, epilogue), (1, 7, 50), 2)


@BOTH
def test_activations(kernels: Lab, rows: str) -> None:
    want_near(kernels, product(rows, 50, 70, 4, 32, ("bias", "gelu", "residual")))


@pytest.mark.parametrize(("rows", "off"), [("int16", 2e-4), ("int8", 2e-2)])
def test_near_to_decoded_weights(rows: str, off: float) -> None:
    """What the answers are of: the weights that the levels mean, activations rounded to 16 bits, or 8."""
    graph = product(rows, 50, 130, 4, 32)
    x = given(graph, 9, 4)["x"]
    _, levels, scales = graph.outputs["y"].inputs
    weight = make("blockwise", (levels, scales), columns=130, bits=4, block=32)
    value = input_("x", "f32", x.shape)
    plain = run(Graph((value,), {"y": make("linear", (value, weight))}), {"x": x})["y"]
    result = run(graph, {"x": x})["y"]
    assert np.abs(result - plain).max(1).max() < off * np.abs(plain).max()


@pytest.mark.parametrize(("k", "block"), [(1, 1), (17, 17), (64, 16), (100, 32), (130, 64)])
def test_rows(kernels: Lab, k: int, block: int) -> None:
    """Levels, scale and the sums of blocks."""
    x = input_("x", "f32", (M, k))
    graph = Graph((x,), {"rows": make("int16_rows", (x,), block=block)}, {"rows": (1, 100)})
    values = special_rows(k)
    values[13] = 3
    inputs = {"x": values}
    result, expected = run_all(kernels, graph, inputs)["rows"], run(graph, inputs)["rows"]
    finite = np.isfinite(values).all(1)  # the scale's bytes of a NaN may differ
    assert same_bits(result[finite], expected[finite])
    at, blocks = sums_offset(k), -(-k // block)
    sums = result[13, at : at + 4 * blocks].view("<i4")
    assert sums.tolist() == [32639 * min(block, k - i * block) for i in range(blocks)]
    assert (result[:, at + 4 * blocks :] == 0).all()
    assert result.shape[1] == row_bytes(k, block)


@pytest.mark.parametrize(("k", "block"), [(1, 1), (17, 17), (64, 16), (100, 32), (130, 64)])
def test_rows_with_scales_of_blocks(kernels: Lab, k: int, block: int) -> None:
    """Levels, sums and scales."""
    x = input_("x", "f32", (M, k))
    graph = Graph((x,), {"rows": make("int8_rows", (x,), block=block)}, {"rows": (1, 100)})
    values = special_rows(k)
    values[13] = 3
    inputs = {"x": values}
    result, expected = run_all(kernels, graph, inputs)["rows"], run(graph, inputs)["rows"]
    finite = np.isfinite(values).all(1)  # the scale's bytes of a NaN may differ
    assert same_bits(result[finite], expected[finite])
    at, count = int8_blocks.sums_offset(k), -(-k // block)
    sums, scales = (result[13, at + i : at + i + 4 * count] for i in (0, 4 * count))
    assert sums.view("<i4").tolist() == [127 * min(block, k - i * block) for i in range(count)]
    assert (scales.view("<f4") == np.float32(3) / np.float32(127)).all()
    assert (result[:, at + 8 * count :] == 0).all()
    assert result.shape[1] == int8_blocks.row_bytes(k, block)


@BOTH
def test_nan_reaches_the_answer(kernels: Lab, rows: str) -> None:
    want_nan(kernels, product(rows, 40, 70, 4, 32))
