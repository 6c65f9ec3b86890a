"""ATen's ops on images and signals against PyTorch: batch dynamic, a signal's length too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llmc.compiler.frontends.inputs import Input
from llmc.compiler.frontends.torch_export import to_graph
from llmc.compiler.frontends.tracing import trace
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.verify import verify
from llmc.errors import LlmcError

BOUNDS = {"batch": (1, 8), "length": (45, 64)}
GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


class Function(nn.Module):
    """A function of an image [batch, 6, 12, 9] and a signal [batch, 6, length]."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, s: torch.Tensor) -> Any:
        made = self.function(x, s)
        return made if isinstance(made, tuple) else (made,)


def imported(function: Callable[..., Any], outputs: int) -> Graph:
    batch, length = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("length", min=45, max=64)
    axes = ({0: batch}, {0: batch, 2: length})
    with torch.no_grad():
        program = trace(Function(function).eval(), (torch.zeros(2, 6, 12, 9), torch.zeros(2, 6, 47)), axes)
    inputs = [Input("x", ("batch", 6, 12, 9)), Input("s", ("batch", 6, "length"))]
    return to_graph(program, inputs, [f"y{n}" for n in range(outputs)], BOUNDS)


def values(batch: int, length: int) -> list[torch.Tensor]:
    return [rand(batch, 6, 12, 9), rand(batch, 6, length)]


W1, W2, W3 = rand(8, 6, 3), rand(8, 6, 3, 2), rand(4, 2, 3, 2, 2)
G1, G2 = rand(12, 2, 5), rand(6, 3, 3, 3)
BIAS, SIX, VARIANCE, LONG = rand(8), rand(6), rand(6).abs(), rand(6, 3, 20)
T1, T2, TG = rand(6, 5, 4), rand(6, 5, 3, 2), rand(6, 2, 3, 3)
V, LENGTH = rand(8, 6, 3), rand(1, 1, 3).abs()


def volume(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (2, 3))  # [batch, 2, 3, 12, 9]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv1d": lambda x, s: (
        F.conv1d(s, W1, BIAS, stride=2),
        F.conv1d(s, W1, padding=1),
        F.conv1d(s, W1, BIAS, padding="same", dilation=2),
        F.conv1d(s, W1[:, :, :1]),
        F.conv1d(F.conv1d(s, W1[:6], stride=5), W1, stride=2, dilation=2),
        F.conv1d(F.conv1d(s, W1[:6], stride=2), W1, stride=2),
    ),
    "conv1d grouped": lambda x, s: (
        F.conv1d(s, G1, groups=3, stride=3, padding=2),
        F.conv1d(s, LONG, groups=2, padding=10)[:, :, :-1],
        F.conv1d(F.pad(s, (3, 0)), W1[:6, :1], groups=6),
        F.conv1d(s, W1[:6, :1], BIAS[:6], groups=6, padding=2, dilation=2),
    ),
    "conv2d": lambda x, s: (
        F.conv2d(x, W2, BIAS, (2, 1), (1, 0)),
        F.conv2d(x, G2, groups=2, padding="same"),
        F.conv2d(x[0], W2),
    ),
    "conv3d": lambda x, s: (
        F.conv3d(volume(x), W3, BIAS[:4], stride=(3, 2, 2)),
        F.conv3d(volume(x), W3, BIAS[:4], stride=(2, 1, 3), padding=1, dilation=(1, 2, 1)),
    ),
    "transposed": lambda x, s: (
        F.conv_transpose1d(s, T1, BIAS[:5], stride=2, padding=1),
        F.conv_transpose1d(s, T1, stride=4),
        F.conv_transpose1d(s, x[0, :, :2], stride=2),  # with weights that are computed
        F.conv_transpose1d(s, T1, BIAS[:5], stride=3, padding=4, output_padding=2, dilation=2),
        F.conv_transpose2d(x, T2, BIAS[:5], stride=(3, 2)),
        F.conv_transpose2d(x, TG, BIAS[:4], stride=2, padding=1, output_padding=1, groups=2),
        F.conv_transpose2d(x, T2, stride=(1, 4), padding=(0, 1), dilation=(2, 1)),
        F.conv_transpose2d(x, T2, stride=1, padding=(2, 1)),
    ),
    "norms": lambda x, s: (
        F.group_norm(x, 3, BIAS[:6], BIAS[2:]),
        F.group_norm(s, 6, BIAS[:6], BIAS[2:]),
        F.group_norm(s, 1),
        F.instance_norm(x),
        F.batch_norm(s, SIX, VARIANCE, SIX, None, False),
        F.batch_norm(x, None, None, BIAS[:6], BIAS[2:], True, 0.0, 1e-6),
    ),
    "weights of a fixed norm": lambda x, s: (
        F.conv1d(s, torch._weight_norm(V, LENGTH, 2), padding=1),
        torch._weight_norm(s[:1, :, :3], LENGTH, 2),
    ),
    "pools of a signal": lambda x, s: (
        F.avg_pool1d(s, 3, 2),
        F.avg_pool1d(s, 2, padding=1),
        F.max_pool1d(x[:, 0], 3, 2, padding=1, dilation=2),
        F.adaptive_avg_pool1d(s, 1),
        F.adaptive_max_pool1d(s, 1),
        F.adaptive_avg_pool1d(x[:, 0], 3),
        F.adaptive_avg_pool1d(x[:, 0], 5),
        F.avg_pool1d(x[0, 0], 2),
    ),
    "pools": lambda x, s: (
        F.max_pool2d(x, 3, 2, ceil_mode=True),
        F.max_pool2d(x, (5, 4), (4, 3), (2, 1), ceil_mode=True),
        F.avg_pool2d(x, 2, ceil_mode=True),
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        F.avg_pool2d(x, 3, 1, 1, count_include_pad=False, ceil_mode=True),
        F.avg_pool2d(x, (3, 2), divisor_override=5),
        F.avg_pool2d(x[0], 2),
        F.avg_pool2d(x, 640, ceil_mode=True),
        F.avg_pool2d(x, (14, 3), 2, 1, ceil_mode=True),
        F.avg_pool2d(x, (14, 3), (14, 1), (1, 0), count_include_pad=False),
        F.avg_pool2d(x, (12, 9), divisor_override=7),
        F.max_pool2d(x, (20, 4), (20, 3), ceil_mode=True),
    ),
    "pools to a size": lambda x, s: (
        F.adaptive_avg_pool2d(x, 1),
        F.adaptive_avg_pool2d(x, (4, 3)),
        F.adaptive_avg_pool2d(x, (5, 2)),
        F.adaptive_avg_pool2d(x, (None, 4)),
        F.adaptive_avg_pool2d(x, (1, 4)),
        F.adaptive_avg_pool2d(x, 16),
        F.adaptive_max_pool2d(x, 1),
        F.adaptive_max_pool2d(x, (5, 2)),
        F.adaptive_max_pool2d(x, (6, 3)),
    ),
    "interpolation": lambda x, s: (
        F.interpolate(x, (24, 18), mode="bilinear"),
        F.interpolate(x, (7, 20), mode="bilinear", align_corners=True),
        F.interpolate(x, scale_factor=1.7, mode="bilinear"),
        F.interpolate(x, scale_factor=(0.5, 2.3), mode="bicubic"),
        F.interpolate(x, (5, 5), mode="bicubic", align_corners=True),
        F.interpolate(x, (5, 4), mode="bilinear", antialias=True),
        F.interpolate(x, (5, 14), mode="bicubic", antialias=True),
        F.interpolate(x[:, 0], 30, mode="linear"),
    ),
    "nearest": lambda x, s: (
        F.interpolate(x, scale_factor=2),
        F.interpolate(x, (24, 20)),
        F.interpolate(x, (5, 9)),
        F.interpolate(x, (5, 13), mode="nearest-exact"),
        F.interpolate(x[:, 0], 20),
    ),
    "windows": lambda x, s: (
        F.unfold(x, (3, 2), padding=1, stride=2),
        F.unfold(s[..., None], (9, 1), padding=(4, 0)),
        F.unfold(x, (5, 4), dilation=(2, 1)),
        F.fold(F.unfold(x, (3, 2), padding=1, stride=2), (12, 9), (3, 2), padding=1, stride=2),
        F.fold(F.unfold(x, 4, stride=2), (12, 9), 4, stride=2),
    ),
    "padding": lambda x, s: (
        F.pad(x, (-1, 2, 3, -2), value=0.5),
        F.pad(s, (2, -1)),
        F.pad(x, (1, 2, 3, 0), mode="reflect"),
        F.pad(x, (1, 2, 3, 0), mode="replicate"),
        F.pad(x, (1, 2, 3, 0), mode="circular"),
        F.pad(s, (4, 2), mode="reflect"),
        F.pad(s, (4, 2), mode="replicate"),
    ),
    "pixels and channels": lambda x, s: (
        F.pixel_shuffle(F.pad(x, (0, 0, 0, 0, 1, 1)), 2),
        F.pixel_unshuffle(x, 3),
        F.channel_shuffle(x, 3),
        x.roll((2, -1), (2, 3)),
        x[:1].roll(5),
    ),
    "activations": lambda x, s: (
        F.softplus(30 * x),
        F.softplus(x, 2, 1),
        F.mish(5 * x),
        F.elu(x, 0.7),
        F.selu(x),
        F.celu(x, 1.3),
        F.logsigmoid(40 * x),
        F.hardswish(4 * x),
        F.hardsigmoid(x),
        F.relu6(4 * x),
        F.leaky_relu(x, 0.2),
        F.threshold(x, 0.1, 20),
        F.prelu(x, BIAS[:6]),
        F.prelu(x, BIAS[:1]),
        F.glu(x, 1),
        F.glu(x[:, :, :8], 2),
        F.log_softmax(x, 1),
        torch.logit(x, 0.1),
        torch.logit(x.sigmoid()),
    ),
    "functions": lambda x, s: (
        torch.log1p(x.abs()),
        torch.expm1(x),
        torch.log2(x.abs()),
        torch.log10(x.abs() + 1),
        torch.exp2(x),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_converters(name: str) -> None:
    function = FUNCTIONS[name]
    expected = Function(function)(*values(2, 50))
    graph = imported(function, len(expected))
    verify(graph)
    for batch, length in ((2, 50), (1, 45)):
        given = values(batch, length)
        with torch.no_grad():
            expected = Function(function)(*given)
        made = run(graph, {"x": given[0].numpy(), "s": given[1].numpy()})
        for want, (at, got) in zip(expected, made.items(), strict=True):
            assert (got.shape, got.dtype) == (want.shape, want.numpy().dtype), at
            np.testing.assert_allclose(got, want.numpy(), rtol=2e-5, atol=2e-5, err_msg=at)


def test_a_window_larger_than_the_image_is_cut_to_it() -> None:
    """EfficientNet's last pool has windows as large as it has channels."""
    graph = imported(lambda x, s: F.avg_pool2d(x, 640, ceil_mode=True), 1)
    assert [n.op for n in graph.nodes if n.type.rank == 4] == ["input", "mean"]


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "indices of a pool": (lambda x, s: F.max_pool2d(x, 2, return_indices=True)[1] + 1, "indices of a pool"),
    "dynamic interpolation": (lambda x, s: F.interpolate(s, scale_factor=2.0, mode="linear"), "of dynamic"),
    "dynamic windows": (lambda x, s: F.adaptive_avg_pool1d(s, 3), "adaptive pooling of dynamic"),
    "counted padding": (lambda x, s: F.avg_pool1d(s, 3, 1, 1, False, False), "leaves out padding"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(LlmcError, match=reason):
        imported(function, 1)
