"""ONNX's pools."""

from __future__ import annotations

import numpy as np

from llmc.compiler.dims import product
from llmc.compiler.frontends.composed_pool import Axis, adaptive, avg_pool, max_pool
from llmc.compiler.frontends.composed_windows import along_axes, counted, highest_places
from llmc.compiler.frontends.onnx_call import Call, Result, onnx_op
from llmc.compiler.frontends.onnx_image import around, windows_of
from llmc.compiler.graph import DTYPES, Node


def _axes(call: Call, x: Node, fill: float = 0) -> tuple[Node, list[Axis]]:
    """x, with what "same" padding puts around it, and the windows along each axis."""
    kernel = call.attributes["kernel_shape"]
    (x, w), ceil = around(call, x, kernel, fill), bool(call.attribute("ceil_mode", 0))
    places = zip(kernel, w.stride, zip(w.before, w.after, strict=True), w.dilation, strict=True)
    return x, [Axis(k, s, pads, d, ceil) for k, s, pads, d in places]


@onnx_op("MaxPool")
def _max_pool(call: Call) -> Result:
    given = call.node(0)
    x, axes = _axes(call, given, -np.inf if given.dtype == "f32" else np.iinfo(DTYPES[given.dtype]).min)
    by_column = bool(call.attribute("storage_order", 0))
    if call.outputs > 1:
        call.require(x is given, "places of the highest in windows padded by sizes")
        return highest_places(call, x, axes, by_column)
    if len(axes) > 2 or x.dtype != "f32":
        return along_axes(call, x, axes, "maximum")
    return max_pool(call, x, axes)


@onnx_op("AveragePool")
def _avg_pool(call: Call) -> Node:
    return average(call, call.node(0))


def average(call: Call, given: Node) -> Node:
    """The averages of windows of the node."""
    padding = bool(call.attribute("count_include_pad", 0))
    x, axes = _axes(call, given)
    if x is not given and not padding:  # what lies around is no part of an average
        ones = call.expand(call.number(1, x.dtype), (1, 1, *given.shape[2:]))
        share = _averages(call, _axes(call, ones)[0], axes, True)
        return call.op("div", _averages(call, x, axes, True), share)
    return _averages(call, x, axes, padding)


def _averages(call: Call, x: Node, axes: list[Axis], padding: bool) -> Node:
    if len(axes) > 2 or any(a.dilation != 1 for a in axes):
        total = along_axes(call, x, axes, "add")
        return call.op("div", total, counted(call, x, axes, padding))
    return avg_pool(call, x, axes, padding)


@onnx_op("LpPool", "GlobalLpPool")
def _lp_pool(call: Call) -> Node:
    """The p-th root of the sum of p-th powers."""
    x, power = call.node(0), call.number(call.attribute("p", 2), "f32")
    powers = call.op("pow", call.op("abs", x), power)
    if call.type == "GlobalLpPool":
        total = call.op("sum", powers, axes=tuple(range(2, x.type.rank)), keepdims=True)
    else:
        total = along_axes(call, *_axes(call, powers), "add")
    return call.op("pow", total, call.op("div", call.number(1, "f32"), power))


@onnx_op("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> Node:
    x = call.node(0)
    return adaptive(call, x, [1] * (x.type.rank - 2), call.type == "GlobalMaxPool")


@onnx_op("MaxUnpool")
def _max_unpool(call: Call) -> Node:
    """Values at their places, zeros elsewhere; the places count through an image of the size that was pooled."""
    x, places = call.node(0), call.cast(call.node(1), "i64")
    kernel = call.attributes["kernel_shape"]
    windows = windows_of(call, kernel, x.shape[2:])
    rows = zip(x.shape[2:], kernel, windows.stride, windows.before, windows.after, strict=True)
    sizes = tuple((d - 1) * s + k - b - a for d, k, s, b, a in rows)
    shape = (*x.shape[:2], *sizes)
    if call.has(2):
        given = call.known_dims(2)
        shape = call.shape_of_result("an output shape") if given is None else given
        places = _replaced(call, places, sizes, shape[2:], x) if shape[2:] != sizes else places
    call.require(all(isinstance(d, int) for d in shape), "MaxUnpool of a dynamic size")
    count = product(x.shape)
    empty = call.expand(call.number(0, x.dtype), (product(shape),))
    flat = call.op("scatter", empty, call.reshape(places, (count,)), call.reshape(x, (count,)), axis=0)
    return call.reshape(flat, shape)


def _replaced(call: Call, places: Node, sizes: tuple[int, ...], wanted: tuple[int, ...], x: Node) -> Node:
    """Places of an image of `sizes` in one of `wanted`."""
    strides = np.cumprod([1, *sizes[::-1]])[::-1]
    total, step, rest = call.number(0, "i64"), 1, places
    for i in reversed(range(len(sizes))):
        at = call.op("mod", rest, call.number(sizes[i], "i64"))
        rest = call.op("floordiv", rest, call.number(sizes[i], "i64"))
        total = call.op("add", total, call.op("mul", at, call.number(step, "i64")))
        step *= wanted[i]
    call.require(len(strides) == len(sizes) + 1, "sizes that do not fit")
    return call.op("add", total, call.op("mul", rest, call.number(step, "i64")))
