"""ONNX's convolutions and pools, and norms of channels."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.compiler.dims import Dim
from llmc.compiler.frontends import composed_norm
from llmc.compiler.frontends.composed import by_channel
from llmc.compiler.frontends.composed_conv import Windows, convolution, transposed_convolution
from llmc.compiler.frontends.composed_pool import Axis, adaptive, avg_pool, max_pool
from llmc.compiler.frontends.onnx_call import Call, Result, onnx_op
from llmc.compiler.graph import Node


def _windows(call: Call, kernel: Sequence[int], sizes: Sequence[Dim]) -> Windows:
    """Strides, dilations and pads of a node; "same" padding depends on the sizes."""
    rank = len(kernel)
    stride = tuple(call.attribute("strides", [1] * rank))
    dilation = tuple(call.attribute("dilations", [1] * rank))
    before, after = _pads(call, kernel, sizes, stride, dilation)
    return Windows(stride, dilation, before, after, call.attribute("group", 1))


def _pads(
    call: Call, kernel: Sequence[int], sizes: Sequence[Dim], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank, kind = len(kernel), call.attribute("auto_pad", "NOTSET")
    if kind in ("NOTSET", "VALID"):
        pads = tuple(call.attribute("pads", [0] * 2 * rank)) if kind == "NOTSET" else (0,) * 2 * rank
        return pads[:rank], pads[rank:]
    totals = []
    for k, size, s, d in zip(kernel, sizes, stride, dilation, strict=True):
        call.require(isinstance(size, int) or s == 1, f"auto_pad {kind} of a dynamic size with a stride")
        count = -(-size // s) if isinstance(size, int) else 0
        rest = (count - 1) * s - size if isinstance(size, int) else -1
        totals.append(max(0, rest + (k - 1) * d + 1))
    less, more = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (less, more) if kind == "SAME_UPPER" else (more, less)


def _bias(call: Call, position: int) -> Node | None:
    return call.node(position) if call.has(position) else None


@onnx_op("Conv")
def _conv(call: Call) -> Node:
    x, weight = call.node(0), call.node(1)
    return convolution(call, x, weight, _bias(call, 2), _windows(call, weight.shape[2:], x.shape[2:]))


@onnx_op("ConvTranspose")
def _conv_transpose(call: Call) -> Node:
    x, weight = call.node(0), call.node(1)
    plain = call.attribute("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    call.require(
        plain and "output_shape" not in call.attributes, "ConvTranspose with output_shape or auto_pad"
    )
    cut = _windows(call, weight.shape[2:], x.shape[2:])
    more = call.attribute("output_padding", [0] * len(cut.after))
    after = tuple(c - extra for c, extra in zip(cut.after, more, strict=True))
    windows = Windows(cut.stride, cut.dilation, cut.before, after, cut.groups)
    return transposed_convolution(call, x, weight, _bias(call, 2), windows)


# --- pools


@onnx_op("MaxPool", "AveragePool")
def _pool(call: Call) -> Node:
    x, kernel = call.node(0), call.attributes["kernel_shape"]
    call.require(call.outputs == 1, "MaxPool with indices")
    w, ceil = _windows(call, kernel, x.shape[2:]), bool(call.attribute("ceil_mode", 0))
    places = zip(kernel, w.stride, zip(w.before, w.after, strict=True), w.dilation, strict=True)
    axes = [Axis(k, s, pads, d, ceil) for k, s, pads, d in places]
    if call.type == "MaxPool":
        return max_pool(call, x, axes)
    call.require(all(a.dilation == 1 for a in axes), "AveragePool with dilations")
    return avg_pool(call, x, axes, bool(call.attribute("count_include_pad", 0)))


@onnx_op("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> Node:
    x = call.node(0)
    return adaptive(call, x, [1] * (x.type.rank - 2), call.type == "GlobalMaxPool")


# --- norms


@onnx_op("BatchNormalization")
def _batch_norm(call: Call) -> Result:
    """x * scale + shift by channel: scale = weight / sqrt(variance + eps)."""
    x, weight, bias, mean, variance = call.nodes()
    call.require(
        call.outputs == 1 and not call.attribute("training_mode", 0),
        "BatchNormalization in training mode",
        "export the model in eval mode",
    )
    raised = call.op("add", variance, call.number(call.attribute("epsilon", 1e-5), variance.dtype))
    scale = call.op("div", weight, call.op("sqrt", raised))
    shift = call.op("sub", bias, call.op("mul", mean, scale))
    return by_channel(call, by_channel(call, x, "mul", scale), "add", shift)


@onnx_op("InstanceNormalization", "GroupNormalization")
def _group_norm(call: Call) -> Node:
    """Of an instance norm every channel is a group. Before opset 21 weights of groups were by group."""
    x, weight, bias = call.nodes()
    channels = x.shape[1]
    groups = channels if call.type == "InstanceNormalization" else call.attribute("num_groups", 1)
    call.require(isinstance(channels, int), "a norm of a dynamic number of channels")
    if weight.shape != (channels,):
        weight, bias = (_by_group(call, v, channels // groups) for v in (weight, bias))
    return composed_norm.group_norm(call, x, groups, weight, bias, call.attribute("epsilon", 1e-5))


def _by_group(call: Call, values: Node, times: int) -> Node:
    (groups,) = values.shape
    wide = call.expand(call.reshape(values, (groups, 1)), (groups, times))
    return call.reshape(wide, (groups * times,))
