"""Convolution and pooling, 16 neighbouring columns (or pixels) of one output row in a vector.

A 1x1 convolution is a product over channels (pointwise.py). Any other one first copies the rows under its windows
into scratch (window.py). Height and width may be dynamic.

Sums run over (channel, row, column) of the window in order, one fma for each tap, padding included, so the
bits depend neither on threads nor on vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Kernel, Operand, Packed
from llmc.compiler.dims import Dim, ceil_div, dim, product
from llmc.compiler.graph import Node
from llmc.errors import LlmcError
from llmc.targets.cpu.conv.by_channel import lower_depthwise, lower_pool_last
from llmc.targets.cpu.conv.channel_rows import lower_channel_rows
from llmc.targets.cpu.conv.channel_tile import CHANNELS
from llmc.targets.cpu.conv.patches import lower_patches
from llmc.targets.cpu.conv.pointwise import PIXELS, VECTORS, emit_flat
from llmc.targets.cpu.conv.qconv import lower_qconv2d
from llmc.targets.cpu.conv.window import SIZES, Window, emit_window
from llmc.targets.cpu.conv.winograd import lower_winograd
from llmc.targets.tir.emit import LANES

SPAN = 256  # columns of an item where their number is not known


def pack_channels(array: np.ndarray[Any, Any], groups: int, tile: int) -> np.ndarray[Any, Any]:
    """f32 `[o, c, kh, kw]` -> `[groups, ceil(o / groups / tile), c*kh*kw, tile]`, missing channels zero."""
    rows = array.reshape(groups, array.shape[0] // groups, -1)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % tile), (0, 0)))
    panels = padded.reshape(groups, -1, tile, rows.shape[2])
    return np.ascontiguousarray(panels.transpose(0, 1, 3, 2))


def lower_conv2d(node: Node) -> Call:
    """Items are (image, block of pixels, six channels) or (image, group, output row, part of it)."""
    a = node.attributes
    x, w, *extras = node.inputs
    if w.op != "constant":
        raise LlmcError("conv2d: the weight is computed at run time")
    if a["channels_last"]:
        return _lower_last(node)
    o, per_group, kh, kw = (int(d) for d in w.shape)
    groups = a["groups"]
    flat = (kh, kw) == a["stride"] == (1, 1) and groups == 1 and not any(a["padding"])
    tile = 1 if o == groups else CHANNELS
    layout = f"channels{groups}x{tile}"
    packed = Packed(w.attributes["value"], layout, partial(pack_channels, groups=groups, tile=tile))
    operands: tuple[Operand, ...] = (x, packed, *extras, node)
    panels = -(-o // groups // tile)
    flops, moved = 2 * product(node.shape) * per_group * kh * kw, _bytes(node) + 4 * product(w.shape)
    if flat:
        kernel = Kernel(
            "pointwise",
            a["epilogue"],
            ("f32",) * len(operands),
            3,
            partial(emit_flat, epilogue=a["epilogue"]),
        )
        pixels = product(x.shape[2:])
        items = x.shape[0] * ceil_div(pixels, PIXELS) * panels
        cost = (
            per_group * tile * (VECTORS if not isinstance(pixels, int) else min(VECTORS, -(-pixels // LANES)))
        )
        return Call(kernel, operands, (per_group, o, pixels), items, cost, flops, moved, node.source)
    window = ((kh, kw), a["stride"], a["dilation"])
    scalars, scratch = _scalars(node, window, per_group, o // groups, groups)
    key = Window("conv", *window, tile, a["epilogue"], scratch)
    span = scalars[-2]
    cost = per_group * kh * (kw * panels * tile * -(-span // LANES) + span * a["stride"][1])
    return _call(node, key, operands, scalars, x.shape[0] * groups, (cost, flops, moved))


def _lower_last(node: Node) -> Call:
    groups, (o, per_group) = node.attributes["groups"], node.inputs[1].shape[:2]
    if node.attributes["winograd"]:
        return lower_winograd(node)
    return lower_depthwise(node) if groups == o and per_group == 1 else lower_patches(node)


def lower_pool(node: Node) -> Call:
    """Items are (image, channel, output row, part of it)."""
    a = node.attributes
    if a["channels_last"]:
        return lower_pool_last(node)
    (x,) = node.inputs
    window = (a["kernel"], a["stride"], a.get("dilation", (1, 1)))
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise LlmcError(f"{node.op}: the number of channels must be fixed, found {x.type}")
    scalars, scratch = _scalars(node, window, 1, 1, channels)
    key = Window(node.op[:3], *window, 1, (), scratch)
    taps = a["kernel"][0] * a["kernel"][1]
    span = scalars[-2]
    cost = taps * -(-span // LANES) + a["kernel"][0] * span * a["stride"][1]
    work = (cost, product(node.shape) * taps, _bytes(node))
    return _call(node, key, (x, node), scalars, x.shape[0] * channels, work)


def _call(
    node: Node, key: Window, operands: Any, scalars: tuple[Any, ...], planes: Dim, work: tuple[Dim, Dim, Dim]
) -> Call:
    kernel = Kernel(
        "window", key, ("f32",) * len(operands), len(SIZES), partial(emit_window, key=key), key.scratch
    )
    items = dim(planes * node.shape[2] * ceil_div(node.shape[3], scalars[-2]))
    return Call(kernel, operands, scalars, items, *work, node.source)


def _bytes(node: Node) -> Dim:
    images = [i for i in node.inputs if i.type.rank == 4 and i.op != "constant"]
    return 4 * sum(product(i.shape) for i in (*images, node))


def _scalars(
    node: Node, window: Any, per_group: int, outputs: int, groups: int
) -> tuple[tuple[Any, ...], int]:
    """The kernel's scalars, and bytes of scratch: a power of two, so that layers share a kernel."""
    (kh, kw), (_, step), (_, dilation) = window
    top, left = node.attributes["padding"][:2]
    columns = node.shape[3]
    span = max(columns, 1) if isinstance(columns, int) else SPAN
    pitch = -(-(span + LANES + (kw - 1) * dilation // step) // LANES) * LANES
    scratch = 4 * per_group * kh * step * pitch
    image = (*node.inputs[0].shape[2:], top, left, *node.shape[2:])
    return (per_group, outputs, groups, *image, span, pitch), 1 << (scratch - 1).bit_length()


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "conv2d": lower_conv2d,
    "qconv2d": lower_qconv2d,
    "channel_rows": lower_channel_rows,
    "max_pool2d": lower_pool,
    "avg_pool2d": lower_pool,
}
