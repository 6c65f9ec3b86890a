"""Kernels of convolutions of levels: every bit of the reference, on every CPU variant, at the edges of tiles."""

from __future__ import annotations

from typing import Any

import pytest
from kernel_lab import Lab, run_all, same_bits
from level_convolutions import CASES, convolution, images, sized_at_run_time

from llmc.compiler.interpret import run


@pytest.mark.parametrize("case", CASES)
def test_convolutions_have_the_bits_of_the_reference(kernels: Lab, case: Any) -> None:
    graph, values = convolution(case, by_image=case[-1] is None)
    assert same_bits(run_all(kernels, graph, values)["y"], run(graph, values)["y"])


def test_dynamic_sizes(kernels: Lab) -> None:
    graph = sized_at_run_time()
    for height, width in ((1, 2), (13, 37)):
        values = images(2, height, width)
        assert same_bits(run_all(kernels, graph, values)["y"], run(graph, values)["y"])
