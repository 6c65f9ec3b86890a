"""Integer products that skip lines of zeros have the bits of the reference, on every variant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from integer_products import given, product
from kernel_lab import Lab, differing, run_all, same_bits

from llmc.compiler.graph import DTYPES, Graph
from llmc.compiler.interpret import run
from llmc.targets.cpu.products import sparse_int8

FAMILY = "sparse_qlinear"
Array = np.ndarray[Any, Any]


def mask(n: int, k: int, share: float) -> Array:
    """Bool [n, k]: `share` of the blocks of 16 x 4 stay, more of them in the first lists."""
    rng = np.random.default_rng(n + k)
    lists, groups = -(-n // 16), -(-k // 4)
    keep = rng.random((lists, groups)) < share * np.linspace(1.6, 0.4, lists)[:, None]
    return np.repeat(np.repeat(keep, 16, 0), 4, 1)[:n, :k]


CASES = [(100, 70, 0.3, ""), (64, 200, 0.15, "u8"), (16, 8, 0.0, ""), (40, 33, 0.25, "i8")]


@pytest.mark.parametrize(("n", "k", "share", "zero"), CASES)
def test_the_bits_of_the_reference(kernels: Lab, n: int, k: int, share: float, zero: str) -> None:
    graph, node = product(n, k, 0, ("bias", "relu", "residual"), zero, mask(n, k, share))
    assert kernels.call_of(node).kernel.family == FAMILY
    for rows in (1, 2, 3, 5, 7, 13, 33):
        inputs = given(Graph((graph.inputs[0], graph.inputs[-1]), graph.outputs, graph.dims), k, rows, 0)
        if zero:
            inputs["zero"] = np.array(9, DTYPES[zero])
        expected = run(graph, inputs)["y"]
        for cpu in differing([FAMILY]):
            assert same_bits(kernels.run(graph, inputs, cpu=cpu)["y"], expected), (rows, cpu.name)
    assert same_bits(run_all(kernels, graph, inputs)["y"], expected)


def test_the_layout_is_the_weight() -> None:
    array = np.where(mask(70, 30, 0.3), np.arange(2100).reshape(70, 30) % 99 + 1, 0).astype(np.int8)
    bounds, lines = sparse_int8.bounds(array), sparse_int8.kept_lines(array)
    groups = sparse_int8.groups(array).view("<u2")
    found = np.zeros((128, 32), np.int8)
    for number in range(8):
        for at in range(bounds[number], bounds[number + 1]):
            part = found[16 * number : 16 * number + 16, 4 * groups[at] : 4 * groups[at] + 4]
            part[:] = lines[at].reshape(16, 4)
    assert np.array_equal(found[:70, :30], array)
    assert len(lines) == len(groups) == bounds[-1] + 1


def test_few_zeros_are_multiplied(kernels: Lab) -> None:
    _, node = product(64, 64, 0, mask=mask(64, 64, 0.7))
    assert kernels.call_of(node).kernel.family == "qlinear"
