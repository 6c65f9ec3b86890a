"""ATen's samples of images at places that are computed."""

from __future__ import annotations

from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.composed_grid import Sampling, sampled
from llmc.compiler.graph import Node

_MODES = ("linear", "nearest", "cubic")  # by PyTorch's numbers
_BEYOND = ("zeros", "border", "reflection")


@aten("grid_sampler.default", "grid_sampler_2d.default", "grid_sampler_3d.default")
def _grid_sampler(call: Call) -> Node:
    mode, beyond = _MODES[call["interpolation_mode"]], _BEYOND[call["padding_mode"]]
    return sampled(call, call["input"], call["grid"], Sampling(mode, beyond, bool(call["align_corners"])))
