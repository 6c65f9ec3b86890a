"""Rotary positions: the kernel at the edges of its vectors, the same bits on every variant."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_lab import Lab, check

from llmc.compiler.dims import symbol
from llmc.compiler.ops import input_, make

B, S = symbol("batch"), symbol("seq")
rng = np.random.default_rng(9)


def floats(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "width"), [(2, 2), (16, 16), (34, 34), (64, 64), (80, 32), (19, 6), (96, 66)]
)
def test_halves_of_any_width(kernels: Lab, size: int, width: int) -> None:
    """Tables by token, of each sequence or of all, by head, or one row of all."""
    x = input_("x", "f32", (B, S, 3, size))
    own, shared = (input_(name, "f32", (b, S, 1, width)) for name, b in (("own", B), ("shared", 1)))
    heads, row = input_("heads", "f32", (S, 3, width)), input_("row", "f32", (width,))
    packed = input_("packed", "f32", (S, size))
    nodes = {
        "own": make("rotary", (x, own, own)),
        "shared": make("rotary", (x, shared, shared)),
        "mixed": make("rotary", (x, own, heads)),
        "row": make("rotary", (packed, row, row)),
        "pairs": make("rotary", (x, own, heads), interleaved=True),
        "pairs of rows": make("rotary", (packed, row, row), interleaved=True),
    }
    for batch, seq in ((1, 1), (1, 5), (3, 1), (3, 7)):
        inputs = {"x": floats(batch, seq, 3, size), "row": floats(width)}
        inputs |= {"own": floats(batch, seq, 1, width), "shared": floats(1, seq, 1, width)}
        inputs |= {"heads": floats(seq, 3, width), "packed": floats(seq, size)}
        check(kernels, nodes, inputs)
