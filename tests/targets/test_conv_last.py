"""Kernels of convolution and pooling with channels last: against the references, every CPU variant to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, check, run_all, same_bits

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.errors import LlmcError

B, H, W = symbol("batch"), symbol("height"), symbol("width")
RNG = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


# channels, outputs, groups, kernel, stride, padding, dilation, epilogue
CONVOLUTIONS = [
    (3, 40, 1, (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), ("bias", "relu6")),  # stretches of 9, patches of 27 + 1
    (5, 50, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("residual", "bias", "relu")),  # of 45 + 3
    (17, 7, 1, (1, 1), (2, 3), (0, 0, 0, 0), (1, 1), ()),
    (16, 64, 1, (2, 5), (1, 2), (1, 4, 0, 2), (2, 3), ("bias", "gelu")),  # dilated: a stretch for each tap
    (260, 33, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("bias",)),  # sums wait between blocks of k
    (6, 10, 2, (3, 2), (1, 3), (1, 2, 0, 1), (2, 2), ("residual", "bias")),  # groups
    (64, 100, 2, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("bias", "relu")),
    (6, 12, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("bias",)),  # two outputs of each channel
    (8, 8, 2, (1, 20), (1, 1), (0, 10, 0, 9), (1, 1), ()),  # a loop over taps
    (7, 7, 7, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("bias", "relu6")),  # by channel
    (35, 35, 35, (5, 5), (2, 2), (1, 2, 2, 2), (1, 1), ("residual",)),
    (16, 16, 16, (3, 2), (1, 3), (2, 1, 0, 3), (2, 2), ("bias",)),
    (20, 20, 20, (1, 9), (1, 1), (0, 4, 0, 4), (1, 1), ()),  # a loop over taps
]
SIZE = (9, 23)


def convolution(case: Any, size: Any = SIZE, batch: Any = B) -> tuple[Node, dict[str, Any]]:
    c, o, groups, kernel, stride, padding, dilation, epilogue = case
    x = input_("x", "f32", (batch, *size, c))
    a = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "channels_last": True}
    w = constant(floats(o, c // groups, *kernel))
    plain = make("conv2d", (x, w), **a)
    extras, inputs = [], {"x": floats(2, *SIZE, c)}
    for step in epilogue:
        if step == "bias":
            extras.append(constant(floats(o)))
        elif step == "residual":
            extras.append(input_("r", "f32", plain.shape))
            inputs["r"] = floats(2, *plain.shape[1:])
    return make("conv2d", (x, w, *extras), **a, epilogue=epilogue), inputs


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions(kernels: Lab, case: Any) -> None:
    node, inputs = convolution(case)
    check(kernels, {"y": node}, inputs)


BY_CHANNEL = [
    *(case for case in CONVOLUTIONS if case[0] == case[2] == case[1]),
    (
        130,
        130,
        130,
        (3, 3),
        (1, 1),
        (1, 1, 1, 1),
        (1, 1),
        ("bias", "gelu"),
    ),  # more vectors than an item of floats
    (19, 19, 19, (7, 7), (1, 1), (3, 3, 3, 3), (1, 1), ("bias", "sigmoid")),  # of 0 it is no 0
]


@pytest.mark.parametrize("size", [SIZE, (3, 5)], ids=["long", "short"])
@pytest.mark.parametrize("case", BY_CHANNEL)
def test_pixels_rounded_as_they_are_made(kernels: Lab, case: Any, size: Any) -> None:
    """With the bits of a convolution and a rounding after it."""
    apart, _ = convolution(case, size)
    window = {name: apart.attributes[name] for name in ("stride", "padding", "dilation", "epilogue")}
    together = make("channel_rows", apart.inputs, **window)
    inputs = {i.attributes["name"]: i for i in apart.inputs if i.op == "input"}
    graph = Graph(
        tuple(inputs.values()),
        {"together": together, "apart": make("quantize_rows", (apart,))},
        {"batch": (1, 9)},
    )
    given = {"x": floats(2, *size, case[0])}
    given |= {name: floats(2, *node.shape[1:]) for name, node in inputs.items() if name != "x"}
    given["x"][1, 0] = 0
    given["x"][0, -1, :2, 0] = np.inf, np.nan
    results = run_all(kernels, graph, given)
    assert same_bits(results["together"], results["apart"])


def test_a_weight_that_is_no_constant_is_refused(kernels: Lab) -> None:
    """Of graphs that are written by hand: a KeyError before."""
    nodes = (input_("x", "f32", (B, *SIZE, 20)), input_("w", "f32", (20, 1, 3, 3)))
    with pytest.raises(LlmcError, match="channel_rows: the weight is computed at run time"):
        kernels.call_of(make("channel_rows", nodes))


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_references_are_those_of_channels_first(case: Any) -> None:
    c, o, groups, kernel, stride, padding, dilation, _ = case
    a = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x, w, reference = floats(2, *SIZE, c), floats(o, c // groups, *kernel), OPS["conv2d"].reference
    found = reference(x, w, **a, epilogue=(), channels_last=True)
    first = reference(x.transpose(0, 3, 1, 2), w, **a, epilogue=(), channels_last=False)
    np.testing.assert_array_equal(found, first.transpose(0, 2, 3, 1))


def test_pools(kernels: Lab) -> None:
    x = input_("x", "f32", (B, *SIZE, 19))
    values = floats(2, *SIZE, 19)
    values[0, 1, 4, 5], values[1, 2, 3] = np.nan, -np.inf
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1), "channels_last": True}
    check(kernels, {"y": make("max_pool2d", (x,), **window, dilation=(1, 2))}, {"x": values})
    check(kernels, {"y": make("avg_pool2d", (x,), **window)}, {"x": floats(2, *SIZE, 19)})


def test_dynamic_sizes(kernels: Lab) -> None:
    x, nodes = input_("x", "f32", (B, H, W, 6)), {}
    for case in (CONVOLUTIONS[1], (6, 6, 6, (3, 3), (1, 2), (1, 1, 1, 1), (1, 1), ("bias",))):
        o, (groups, kernel, stride, padding, dilation) = case[1], case[2:7]
        w = constant(floats(o, 6 // groups, *kernel))
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        nodes[f"conv{groups}"] = make("conv2d", (x, w), **options, channels_last=True)
    window = {"kernel": (3, 3), "stride": (1, 2), "padding": (1, 1, 1, 1), "channels_last": True}
    nodes["max"] = make("max_pool2d", (x,), **window)
    for height, width in ((1, 2), (13, 37)):
        check(kernels, nodes, {"x": floats(2, height, width, 6)})
