"""ATen's interpolation, along each axis a product with a constant matrix or a choice of elements; and grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.composed import Array, along, fixed
from llmc.compiler.frontends.composed_grid import Sampling, sampled
from llmc.compiler.frontends.composed_resize import nearest
from llmc.compiler.graph import Node

_KINDS = ("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa")
_NEAREST = (
    "upsample_nearest1d",
    "upsample_nearest2d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
)


@aten(*(f"{n}.{kind}" for n in (*_KINDS, "_upsample_bicubic2d_aa", *_NEAREST) for kind in ("vec", "default")))
def _upsample(call: Call) -> Node:
    """What the op itself makes of an identity matrix is the matrix of each axis."""
    x: Node = call.get("input", call.get("self"))
    rank = 1 if "1d" in str(call.target) else 2
    axes = range(x.type.rank - rank, x.type.rank)
    sizes = fixed(call, x, axes, "interpolation")
    for i, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        out = call.shape[axis]
        assert isinstance(out, int)
        matrix = _matrix(call, size, out, _scale(call, i, rank), rank)
        if "nearest" in str(call.target):
            x = nearest(call, x, axis, matrix.argmax(1))
        elif not np.array_equal(matrix, np.eye(size)):
            x = along(call, x, axis, matrix)
    return x


def _scale(call: Call, i: int, rank: int) -> float | None:
    """The scale that was given for an axis; else it follows from the sizes."""
    factors = call.get("scale_factors")
    if factors:
        return float(factors[i])
    scale = call.get("scales" if rank == 1 else ("scales_h", "scales_w")[i])
    return None if scale is None else float(scale)


def _matrix(call: Call, size: int, out: int, scale: float | None, rank: int) -> Array:
    """`[out, size]`: column j is the interpolation of a one at j among zeros.

    They are rows of an image: torch's smoothed interpolation is wrong for a column one pixel wide.
    """
    name = str(call.target).split(".")[1]
    rows = torch.eye(size, dtype=torch.float64)[None]
    options: list[Any] = [] if "nearest" in name else [call["align_corners"]]
    packet = getattr(torch.ops.aten, name).default
    if rank == 1:
        made = packet(rows, [out], *options, scale)[0]
    else:
        made = packet(rows[:, :, None].contiguous(), [1, out], *options, None, scale)[0, :, 0]
    return np.asarray(made.numpy().T)


_MODES = ("linear", "nearest", "cubic")  # by PyTorch's numbers
_BEYOND = ("zeros", "border", "reflection")


@aten("grid_sampler.default", "grid_sampler_2d.default", "grid_sampler_3d.default")
def _grid_sampler(call: Call) -> Node:
    mode, beyond = _MODES[call["interpolation_mode"]], _BEYOND[call["padding_mode"]]
    return sampled(call, call["input"], call["grid"], Sampling(mode, beyond, bool(call["align_corners"])))
