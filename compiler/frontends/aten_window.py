"""ATen's windows as data, padding by elements, and views that move pixels to channels and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.aten_image import spread
from llmc.compiler.frontends.aten_index import take
from llmc.compiler.frontends.composed import batched, joined
from llmc.compiler.frontends.composed_conv import Windows, folded_windows
from llmc.compiler.frontends.composed_pad import MODES, mirrored, padded, shuffled, surrounded, unshuffled
from llmc.compiler.frontends.parts import sliced, transposed
from llmc.compiler.graph import Node
from llmc.compiler.ops.conv import out_size


def _windows(call: Call) -> tuple[tuple[int, ...], ...]:
    """kernel, stride, dilation and padding along both axes"""
    names = ("kernel_size", "stride", "dilation", "padding")
    return tuple(spread(call[name], 2) for name in names)


@aten("im2col.default")
def _im2col(call: Call) -> Node:
    """[b, c, h, w] -> [b, c*kh*kw, oh*ow]: one slice for each tap."""
    return batched(call, call["self"], 4, lambda x: _unfolded(call, x))


def _unfolded(call: Call, x: Node) -> Node:
    kernel, stride, dilation, padding = _windows(call)
    wide = padded(call, x, (0, 0, *padding), (0, 0, *padding))
    counts = [
        out_size(d, k, s, 0, f) for d, k, s, f in zip(wide.shape[2:], kernel, stride, dilation, strict=True)
    ]
    batch, channels = x.shape[:2]
    parts = []
    for i in range(kernel[0]):
        rows = sliced(call, wide, 2, i * dilation[0], counts[0], stride[0])
        for j in range(kernel[1]):
            part = sliced(call, rows, 3, j * dilation[1], counts[1], stride[1])
            parts.append(call.reshape(part, (batch, channels, 1, product(counts))))
    taps = joined(call, parts, 2)
    return call.reshape(taps, (batch, dim(channels * len(parts)), product(counts)))


@aten("unfold.default")
def _windows_along(call: Call) -> Node:
    """Windows along an axis, each of which lies along a new last one."""
    x: Node = call["self"]
    axis, size = call.axis(call["dimension"], x.type.rank), call["size"]
    count = call.shape[axis]
    starts = call.op("mul", call.op("iota", length=count), call.scalar(call["step"], "i64"))
    inside = call.reshape(call.op("iota", length=size), (1, size))
    windows = take(call, x, call.op("add", call.reshape(starts, (count, 1)), inside), axis)
    order = [a for a in range(windows.type.rank) if a != axis + 1]
    return transposed(call, windows, (*order, axis + 1))


@aten("col2im.default")
def _col2im(call: Call) -> Node:
    kernel, stride, dilation, padding = _windows(call)
    sizes = [int(d) for d in call["output_size"]]
    windows = Windows(stride, dilation, padding, padding)
    return batched(call, call["self"], 3, lambda x: folded_windows(call, x, sizes, kernel, windows))


# --- padding


def _sides(pads: Sequence[Any], rank: int) -> tuple[list[Any], list[Any]]:
    """PyTorch lists (before, after) from the last axis on."""
    before: list[Any] = [0] * rank
    after: list[Any] = [0] * rank
    for position in range(len(pads) // 2):
        before[rank - 1 - position], after[rank - 1 - position] = pads[2 * position : 2 * position + 2]
    return before, after


_PADS = {"reflection": "reflect", "replication": "replicate"}


@aten("constant_pad_nd.default", "pad.default", *(f"{n}_pad{d}d.default" for n in _PADS for d in (1, 2, 3)))
def _pad(call: Call) -> Node:
    x: Node = call["self"]
    pads = call.get("pad", call.get("padding"))
    before, after = _sides(pads, x.type.rank)
    name = str(call.target).split(".")[1].partition("_")[0]
    mode = _PADS.get(name, call.get("mode", "constant"))
    if mode == "constant":
        return _filled(call, x, before, after, call.get("value", 0) or 0)
    call.require(all(isinstance(p, int) for p in pads), "padding by dynamic sizes", "pad with a constant")
    call.require(mode in MODES, f"padding mode {mode!r}", "pad with a constant")
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        x = mirrored(call, x, axis, low, high, mode)
    return x


def _filled(call: Call, x: Node, before: Sequence[Dim], after: Sequence[Dim], value: Any) -> Node:
    """By numbers, and by what the sizes of a call say, such as up to the next multiple of 4."""
    known = [isinstance(low, int) and isinstance(high, int) for low, high in zip(before, after, strict=True)]
    for axis in (a for a, is_known in enumerate(known) if not is_known):
        x = surrounded(call, x, axis, (dim(before[axis]), dim(after[axis])), value)
    low, high = (
        [p if is_known else 0 for p, is_known in zip(pads, known, strict=True)] for pads in (before, after)
    )
    return padded(call, x, low, high, value)


# --- pixels and channels


@aten("pixel_shuffle.default")
def _pixel_shuffle(call: Call) -> Node:
    return shuffled(call, call["self"], call["upscale_factor"])


@aten("pixel_unshuffle.default")
def _pixel_unshuffle(call: Call) -> Node:
    return unshuffled(call, call["self"], call["downscale_factor"])


@aten("channel_shuffle.default", "native_channel_shuffle.default")
def _channel_shuffle(call: Call) -> Node:
    """[b, g*c, ...] -> [b, c*g, ...]"""
    x, groups = call["self"], call["groups"]
    batch, channels, *sizes = x.shape
    wide = call.reshape(x, (batch, groups, channels // groups, *sizes))
    return call.reshape(call.op("transpose", wide, perm=(0, 2, 1, *range(3, len(sizes) + 3))), x.shape)
