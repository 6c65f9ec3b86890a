"""Graphs of one convolution of levels, and inputs for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make

B = symbol("batch")
SIZE = (7, 11)

# channels, outputs, groups, kernel, stride, padding, dilation, epilogue, levels, zero point
CASES = [
    (3, 40, 1, (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), ("bias", "relu6"), "u8", 131),
    (5, 17, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("residual", "bias", "relu"), "i8", None),
    (64, 70, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("bias", "residual"), "i8", -128),
    (16, 64, 1, (2, 5), (1, 2), (1, 4, 0, 2), (2, 3), (), "u8", 0),  # dilated: a stretch for each tap
    (70, 48, 2, (3, 2), (1, 3), (1, 2, 0, 1), (1, 1), ("bias",), "u8", 255),  # groups of 24 outputs
    (12, 102, 3, (1, 12), (1, 1), (0, 10, 0, 9), (1, 1), ("bias",), "i8", 3),  # a loop over taps
    (210, 16, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("relu",), "i8", None),  # lines in a loop
]


def convolution(case: Any, by_image: bool = False) -> tuple[Graph, dict[str, Any]]:
    c, o, groups, kernel, stride, padding, dilation, epilogue, levels, zero = case
    rng = np.random.default_rng(c)
    q, scale = input_("q", levels, (B, *SIZE, c)), input_("scale", "f32", (B, 1, 1, 1) if by_image else ())
    w = rng.integers(-128, 128, (o, c // groups, *kernel), np.int8)
    w[: o // 2] = np.where(w[: o // 2] < 0, -127, 127)
    weights = (constant(w), constant(rng.uniform(1e-3, 1e-2, o).astype(np.float32)))
    a = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    bounds = np.iinfo(np.uint8 if levels == "u8" else np.int8)
    values: dict[str, Any] = {
        "q": rng.integers(bounds.min, bounds.max + 1, (2, *SIZE, c)).astype(bounds.dtype)
    }
    values["scale"] = np.float32([0.5, 0.25]).reshape(2, 1, 1, 1) if by_image else np.float32(0.5)
    given = [] if zero is None else [constant(bounds.dtype.type(zero))]
    plain = make("qconv2d", (q, scale, *weights, *given), **a, has_zero=zero is not None)
    extras = []
    for step in epilogue:
        if step == "bias":
            extras.append(constant(rng.normal(size=o).astype(np.float32)))
        elif step == "residual":
            extras.append(input_("r", "f32", plain.shape))
            values["r"] = rng.normal(size=(2, *plain.shape[1:])).astype(np.float32)
    y = make(
        "qconv2d", (q, scale, *weights, *given, *extras), **a, has_zero=zero is not None, epilogue=epilogue
    )
    inputs = (q, scale, *(e for e in extras if e.op == "input"))
    return Graph(inputs, {"y": y}, {"batch": (1, 4)}), values


def sized_at_run_time() -> Graph:
    """3 x 3 taps of 6 channels, for images of any size."""
    q = input_("q", "i8", (B, symbol("height"), symbol("width"), 6))
    w = constant(np.random.default_rng(0).integers(-127, 128, (20, 6, 3, 3), np.int8))
    parts = (constant(np.float32(0.5)), w, constant(np.ones(20, np.float32)))
    y = make("qconv2d", (q, *parts), padding=(1, 1, 1, 1))
    return Graph((q,), {"y": y}, {"batch": (1, 4), "height": (1, 99), "width": (1, 99)})


def images(count: int, height: int, width: int) -> dict[str, Any]:
    """Of that graph."""
    return {"q": np.random.default_rng(1).integers(-127, 128, (count, height, width, 6), np.int8)}
