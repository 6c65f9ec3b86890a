"""ONNX's interpolation, and views that move pixels to channels and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.composed import along
from llmc.compiler.frontends.composed_pad import shuffled, unshuffled
from llmc.compiler.frontends.composed_resize import Places, nearest
from llmc.compiler.frontends.onnx_call import Call, known, onnx_op
from llmc.compiler.graph import Node


@onnx_op("Resize")
def _resize(call: Call) -> Node:
    """A product with a constant matrix along each axis, or a choice of elements."""
    x = call.node(0)
    asked = {name: call.attribute(name, 0) for name in ("antialias", "exclude_outside")}
    call.require(not any(asked.values()), "Resize with antialias or exclude_outside")
    mode, kind = (
        call.attribute("mode", "nearest"),
        call.attribute("coordinate_transformation_mode", "half_pixel"),
    )
    rounding = call.attribute("nearest_mode", "round_prefer_floor")
    axes = [a % x.type.rank for a in call.attribute("axes", range(x.type.rank))]
    sizes, scales = _target(call, [x.shape[a] for a in axes])
    for axis, out, scale in zip(axes, sizes, scales, strict=True):
        size = x.shape[axis]
        if out == size:
            continue
        call.require(isinstance(size, int) and isinstance(out, int), "Resize of a dynamic size")
        places = Places(int(size), int(out), scale, kind, call.attribute("cubic_coeff_a", -0.75))
        call.require(places.known, f"Resize with coordinates {kind!r}")
        if mode == "nearest":
            x = nearest(call, x, axis, places.rounded(rounding))
        else:
            x = along(call, x, axis, places.matrix(cubic=mode == "cubic"))
    return x


def _target(call: Call, sizes: list[Dim]) -> tuple[list[Dim], list[float]]:
    """Size and scale of each axis: one of them is given."""
    scales: Any = known(call.inputs[2]) if call.has(2) else None
    if scales is not None and len(scales):
        call.require(
            all(s == 1 or isinstance(d, int) for s, d in zip(scales, sizes, strict=True)),
            "Resize of a dynamic size",
        )
        outs = [d if s == 1 else int(np.floor(d * float(s))) for s, d in zip(scales, sizes, strict=True)]
        return outs, [float(s) for s in scales]
    call.require(
        call.attribute("keep_aspect_ratio_policy", "stretch") == "stretch", "Resize that keeps a ratio"
    )
    wanted = list(call.dims(3, "sizes"))
    known_sizes = zip(wanted, sizes, strict=True)
    return wanted, [o / d if isinstance(d, int) and isinstance(o, int) else 1.0 for o, d in known_sizes]


@onnx_op("DepthToSpace")
def _depth_to_space(call: Call) -> Node:
    return shuffled(call, call.node(0), call.attributes["blocksize"], call.attribute("mode", "DCR") == "DCR")


@onnx_op("SpaceToDepth")
def _space_to_depth(call: Call) -> Node:
    return unshuffled(call, call.node(0), call.attributes["blocksize"], columns_first=True)
