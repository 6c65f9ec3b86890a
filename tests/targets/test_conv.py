"""Convolution and pooling kernels against the ops' references and PyTorch, every CPU variant to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kernel_lab import Lab, check

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Node
from llmc.compiler.ops import OPS, constant, input_, make

B, H, W = symbol("batch"), symbol("height"), symbol("width")
RNG = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


# channels, outputs, groups, kernel, stride, padding, dilation, epilogue
CONVOLUTIONS = [
    (5, 13, 1, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), ("bias", "residual", "relu6")),  # over pixels
    (3, 8, 1, (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), ("bias", "relu")),
    (4, 6, 2, (3, 2), (1, 3), (1, 2, 0, 1), (2, 2), ("residual",)),
    (7, 7, 7, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("bias", "relu6")),  # by channel
    (6, 6, 6, (5, 5), (2, 2), (1, 2, 2, 2), (1, 1), ()),
    (3, 9, 1, (8, 8), (8, 8), (0, 0, 0, 0), (1, 1), ("bias", "gelu")),  # patches, a loop over taps
]
SIZE = (19, 70)  # a full strip of 64, a part of a vector


def convolution(case: Any) -> tuple[Node, dict[str, Any]]:
    c, o, groups, kernel, stride, padding, dilation, epilogue = case
    x = input_("x", "f32", (B, c, *SIZE))
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    w = constant(floats(o, c // groups, *kernel))
    plain = make("conv2d", (x, w), **attributes)
    extras, inputs = [], {"x": floats(2, c, *SIZE)}
    for step in epilogue:
        if step == "bias":
            extras.append(constant(floats(o)))
        elif step == "residual":
            extras.append(input_("r", "f32", plain.shape))
            inputs["r"] = floats(2, *plain.shape[1:])
    return make("conv2d", (x, w, *extras), **attributes, epilogue=epilogue), inputs


def test_convolutions(kernels: Lab) -> None:
    for case in CONVOLUTIONS:
        node, inputs = convolution(case)
        check(kernels, {"y": node}, inputs)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_reference_is_pytorchs(case: Any) -> None:
    c, o, groups, kernel, stride, (top, left, bottom, right), dilation, _ = case
    x, w = floats(2, c, *SIZE), floats(o, c // groups, *kernel)
    attributes = {"stride": stride, "dilation": dilation, "groups": groups}
    found = OPS["conv2d"].reference(x, w, padding=(top, left, bottom, right), **attributes, epilogue=())
    wide = torch.nn.functional.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(wide, torch.from_numpy(w).double(), **attributes).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_pools(kernels: Lab) -> None:
    x = input_("x", "f32", (B, 3, *SIZE))
    values = floats(2, 3, *SIZE)
    values[0, 1, 4, 5], values[1, 2, 3] = np.nan, -np.inf
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}
    results = check(kernels, {"y": make("max_pool2d", (x,), **window)}, {"x": values})
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(values), 3, 2, 1).numpy()
    np.testing.assert_array_equal(results["y"], expected)

    values = floats(2, 3, *SIZE)
    results = check(kernels, {"y": make("avg_pool2d", (x,), **window)}, {"x": values})
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(values), 3, 2, 1).numpy()
    np.testing.assert_allclose(results["y"], expected, rtol=1e-5, atol=1e-6)


# kernel, stride, padding, dilation, groups, epilogue
DYNAMIC: list[tuple[Any, ...]] = [
    ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, ("bias", "relu")),
    ((2, 5), (1, 2), (0, 2, 1, 3), (1, 2), 2, ("bias",)),
    ((1, 20), (1, 1), (0, 19, 0, 0), (1, 1), 6, ()),
]


@pytest.mark.parametrize(("height", "width"), [(2, 700), (1, 19)])
def test_dynamic_sizes(kernels: Lab, height: int, width: int) -> None:
    """A row is cut into parts of 256 columns; padding may be wider than what is left for the last one."""
    x, nodes = input_("x", "f32", (B, 6, H, W)), {}
    for kernel, stride, padding, dilation, groups, epilogue in DYNAMIC:
        w, bias = constant(floats(12, 6 // groups, *kernel)), [constant(floats(12))] * len(epilogue[:1])
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        node = make("conv2d", (x, w, *bias), **options, epilogue=epilogue)
        nodes[f"conv{kernel}"] = node
    nodes["max"] = make("max_pool2d", (x,), kernel=(1, 3), stride=(1, 2), padding=(0, 1, 0, 1))
    nodes["avg"] = make("avg_pool2d", (x,), kernel=(1, 3), stride=(1, 1), padding=(0, 2, 0, 2))
    check(kernels, nodes, {"x": floats(2, 6, height, width)})


def test_the_size_of_a_dynamic_image_is_an_expression() -> None:
    x = input_("x", "f32", (B, 2, 1, W))
    node = make("conv2d", (x, constant(floats(4, 2, 1, 10))), stride=(1, 5), dilation=(1, 2))
    assert str(node.type) == "f32[batch, 4, 1, floor(width/5 + 1/5) - 3]"
