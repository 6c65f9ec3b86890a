"""ONNX's interpolation, and views that move pixels to channels and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.composed import along, number
from llmc.compiler.frontends.composed_pad import shuffled, unshuffled
from llmc.compiler.frontends.composed_resize import nearest, repeated
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_places import KINDS, Filter, Places
from llmc.compiler.frontends.onnx_resize_run import resized_at_run_time
from llmc.compiler.frontends.onnx_values import known, want_table
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant

_SAMPLE = 7  # a size at which a choice of elements shows what it is


def _filter(call: Call) -> Filter:
    mode = call.attribute("mode", "nearest")
    call.require(mode in ("nearest", "linear", "bilinear", "cubic"), f"Resize of mode {mode!r}")
    return Filter(
        mode.removeprefix("bi"),
        call.attribute("nearest_mode", "round_prefer_floor" if call.opset > 10 else "floor"),
        call.attribute("cubic_coeff_a", -0.75),
        bool(call.attribute("antialias", 0)) and mode != "nearest",
        bool(call.attribute("exclude_outside", 0)),
        call.attribute("extrapolation_value", 0.0),
    )


@onnx_op("Resize", "Upsample")
def _resize(call: Call) -> Node:
    """A product with a constant matrix along each axis, or a choice of elements."""
    x, taken = call.node(0), _filter(call)
    old = call.opset < 11 or call.type == "Upsample"
    kind = call.attribute("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    call.require(kind in KINDS, f"Resize with coordinates {kind!r}")
    axes = [a % x.type.rank for a in call.attribute("axes", range(x.type.rank))]
    scales, sizes = _given(call)
    crop = _crop(call, len(axes)) if kind == "tf_crop_and_resize" else [(0.0, 1.0)] * len(axes)
    if not old:
        call.inputs.read.add(1)  # the crop of another kind means nothing
    if (scales is None and sizes is None) or crop is None:
        return resized_at_run_time(call, x, taken, kind, axes)
    outs, factors = _target(call, [x.shape[a] for a in axes], scales, sizes)
    for axis, out, factor, part in zip(axes, outs, factors, crop, strict=True):
        x = _along(call, x, axis, taken, (out, factor, kind, part))
    return x


def _given(call: Call) -> tuple[Any, Any]:
    """Scales and sizes, of which one is known; both None where neither is. Scales were an attribute before opset 9."""
    if "scales" in call.attributes:
        return np.asarray(call.attributes["scales"]), None
    place = 1 if call.type == "Upsample" or call.opset < 11 else 2
    scales: Any = known(call.value(place)) if call.has(place) else None
    if scales is not None and len(scales):
        return scales, None
    if place == 2 and call.has(3):
        sizes = call.known_dims(3)
        plain = call.attribute("keep_aspect_ratio_policy", "stretch") == "stretch"
        return None, call.declared_part(call.attribute("axes", None)) if sizes is None and plain else sizes
    return None, None


def _crop(call: Call, count: int) -> list[tuple[float, float]] | None:
    """Where each axis begins and ends; None if that is not known."""
    roi: Any = known(call.value(1)) if call.has(1) else None
    if roi is None:
        return None
    return [(float(roi[i]), float(roi[i + count])) for i in range(count)]


def _target(call: Call, whole: list[Dim], scales: Any, sizes: Any) -> tuple[list[Dim], list[float]]:
    """Size and scale of each axis: one of them is given."""
    if scales is not None:
        fixed = all(
            s == 1 or isinstance(d, int) or float(s).is_integer() for s, d in zip(scales, whole, strict=True)
        )
        call.require(fixed, "Resize of a dynamic size")
        pairs = [(float(s), d) for s, d in zip(scales, whole, strict=True)]
        return [_scaled(d, s) for s, d in pairs], [s for s, _ in pairs]
    policy = call.attribute("keep_aspect_ratio_policy", "stretch")
    ratios = [_ratio(o, d) for o, d in zip(sizes, whole, strict=True)]
    if policy == "stretch":
        return list(sizes), ratios
    call.require(
        all(isinstance(d, int) for d in (*whole, *sizes)), "Resize of a dynamic size that keeps a ratio"
    )
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [int(np.floor(scale * d + 0.5)) for d in whole], [scale] * len(whole)


def _ratio(out: Dim, size: Dim) -> float:
    """out / size; not a number where it depends on a size."""
    if isinstance(out, int) and isinstance(size, int):
        return out / size
    ratio = dim(sympy.cancel(sympy.sympify(out) / size))
    return float(ratio) if isinstance(ratio, int) else math.nan


def _scaled(size: Dim, scale: float) -> Dim:
    if scale == 1:
        return size
    return int(np.floor(size * scale)) if isinstance(size, int) else dim(size * int(scale))


def _along(
    call: Call, x: Node, axis: int, taken: Filter, aim: tuple[Dim, float, str, tuple[float, float]]
) -> Node:
    out, scale, kind, crop = aim
    size = x.shape[axis]
    if out == size and scale == 1 and crop == (0.0, 1.0):
        return x
    if not isinstance(size, int) or not isinstance(out, int):
        call.require(math.isfinite(scale), "Resize of a dynamic size", "fix the size of images")
        return _dynamic(call, x, axis, taken, Places(_SAMPLE, int(_SAMPLE * scale), scale, kind, crop))
    want_table(out, 1 if taken.mode == "nearest" else size)
    places = Places(size, out, scale, kind, crop)
    if taken.mode == "nearest":
        y = nearest(call, x, axis, places.rounded(taken.rounding))
    else:
        y = along(call, x, axis, places.matrix(taken))
    return _filled(call, y, axis, places.outside(), taken.beyond)


def _filled(call: Call, y: Node, axis: int, outside: np.ndarray[Any, Any], value: float) -> Node:
    """`value` at the elements that lie beyond the image."""
    if not outside.any():
        return y
    shape = (-1, *(1,) * (y.type.rank - 1 - axis))
    where = constant(outside.reshape(shape), source=call.source)
    return call.op("where", where, number(call, value, y), y)


def _dynamic(call: Call, x: Node, axis: int, taken: Filter, sample: Places) -> Node:
    """A dynamic size may be repeated a whole number of times."""
    times = int(sample.scale)
    whole = sample.scale == times and times >= 1 and taken.mode == "nearest"
    alike = whole and np.array_equal(sample.rounded(taken.rounding), np.arange(sample.out) // times)
    call.require(alike, "Resize of a dynamic size", "fix the size of images")
    return repeated(call, x, axis, times)


@onnx_op("DepthToSpace")
def _depth_to_space(call: Call) -> Node:
    return shuffled(call, call.node(0), call.attributes["blocksize"], call.attribute("mode", "DCR") == "DCR")


@onnx_op("SpaceToDepth")
def _space_to_depth(call: Call) -> Node:
    first = call.attribute("mode", "DCR") == "DCR"
    return unshuffled(call, call.node(0), call.attributes["blocksize"], columns_first=first)
