"""ONNX's convolutions, and norms of channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmc.compiler import interpret
from llmc.compiler.dims import Dim, dim, floored, product
from llmc.compiler.frontends import composed_norm
from llmc.compiler.frontends.composed import by_channel
from llmc.compiler.frontends.composed_conv import (
    Windows,
    convolution,
    folded_windows,
    is_computed,
    transposed_convolution,
    window_counts,
)
from llmc.compiler.frontends.composed_pad import surrounded
from llmc.compiler.frontends.onnx_call import Call, Result, onnx_op
from llmc.compiler.frontends.onnx_choice import by_values
from llmc.compiler.frontends.onnx_values import want_table
from llmc.compiler.graph import Graph, Node, Weight, results_of
from llmc.compiler.ops import OPS, constant


def windows_of(call: Call, kernel: Sequence[int], sizes: Sequence[Dim | None]) -> Windows:
    """Strides, dilations and pads of a node; "same" padding depends on the sizes, None where it is around already."""
    rank = len(kernel)
    stated = tuple(call.attribute("kernel_shape", kernel))
    call.require(stated == tuple(kernel), f"a kernel_shape {list(stated)} that is not the weight's")
    stride = tuple(call.attribute("strides", [1] * rank))
    dilation = tuple(call.attribute("dilations", [1] * rank))
    before, after = _pads(call, kernel, sizes, stride, dilation)
    return Windows(stride, dilation, before, after, call.attribute("group", 1))


def _pads(
    call: Call,
    kernel: Sequence[int],
    sizes: Sequence[Dim | None],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank, kind = len(kernel), call.attribute("auto_pad", "NOTSET")
    pads = tuple(call.attribute("pads", [0] * 2 * rank))
    if kind in ("NOTSET", "VALID"):
        return (pads[:rank], pads[rank:]) if kind == "NOTSET" else ((0,) * rank, (0,) * rank)
    call.require(kind in ("SAME_UPPER", "SAME_LOWER"), f"auto_pad {kind}")
    totals = []
    for k, size, s, d in zip(kernel, sizes, stride, dilation, strict=True):
        if size is None:
            totals.append(0)
            continue
        call.require(isinstance(size, int) or s == 1, f"auto_pad {kind} of a dynamic size with such a stride")
        count = -(-size // s) if isinstance(size, int) else 0
        rest = (count - 1) * s - size if isinstance(size, int) else -1
        totals.append(max(0, rest + (k - 1) * d + 1))
    return _halves(totals, kind)


def _halves(totals: Sequence[int], kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Before and after; what there is less than none, of a result larger than all windows, is at the end."""
    before = tuple(max(t if kind != "SAME_LOWER" else t + 1, 0) // 2 for t in totals)
    return before, tuple(t - b for t, b in zip(totals, before, strict=True))


def bias_of(call: Call, position: int) -> Node | None:
    return call.node(position) if call.has(position) else None


def around(call: Call, x: Node, kernel: Sequence[int], fill: float) -> tuple[Node, Windows]:
    """x and the windows on it; `fill` lies around x where "same" padding is by sizes that calls decide.

    Of n elements ceil(n / stride) windows are wanted, which is `ceil(n / s) s - s + reach - n` more elements: at least
    none where a window reaches as far as the next one begins.
    """
    kind, rank = call.attribute("auto_pad", "NOTSET"), len(kernel)
    stride, dilation = (tuple(call.attribute(n, [1] * rank)) for n in ("strides", "dilations"))
    sizes: list[Dim | None] = list(x.shape[2:])
    if kind not in ("SAME_UPPER", "SAME_LOWER"):
        return x, windows_of(call, kernel, sizes)
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        size, reach = x.shape[i + 2], (k - 1) * d + 1
        if isinstance(size, int) or s == 1 or reach < s:
            continue
        total = dim(floored((size + s - 1) / s) * s - s + reach - size)
        before = dim(floored((total + int(kind == "SAME_LOWER")) / 2))
        x, sizes[i] = surrounded(call, x, i + 2, (before, dim(total - before)), fill), None
    return x, windows_of(call, kernel, sizes)


@onnx_op("Conv")
def _conv(call: Call) -> Node:
    weight = _settled(call, call.node(1))
    x, windows = around(call, call.node(0), weight.shape[2:], 0)
    return convolution(call, x, weight, bias_of(call, 2), windows)


def _settled(call: Call, weight: Node) -> Node:
    """A weight that constants give is computed now, however large it gets: kernels are made for constant ones."""
    if weight.op == "constant" or is_computed(weight):
        return weight
    graph = Graph((), {"weight": weight})
    sizes = (d for node in graph.nodes for kind in results_of(node.type) for d in kind.shape)
    if not all(isinstance(d, int) for d in sizes):
        return weight
    if any(OPS[node.op].stored or node.op in ("dequantize", "dim") for node in graph.nodes):
        return weight  # of levels stay levels
    want_table(*weight.shape)
    return constant(Weight(interpret.run(graph, {})["weight"], ""), source=call.source)


@onnx_op("ConvTranspose")
def _conv_transpose(call: Call) -> Node:
    x, weight = call.node(0), call.node(1)
    kernel, kind = weight.shape[2:], call.attribute("auto_pad", "NOTSET")
    rank = len(kernel)
    call.require(list(call.attribute("kernel_shape", list(kernel))) == list(kernel), "another kernel_shape")
    stride, dilation = (tuple(call.attribute(n, [1] * rank)) for n in ("strides", "dilations"))
    more = call.attribute("output_padding", [0] * rank)
    wanted = call.attribute("output_shape", None)
    if wanted is None and kind in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [d * s for d, s in zip(x.shape[2:], stride, strict=True)]
    if wanted is None:
        pads = call.attribute("pads", [0] * 2 * rank) if kind == "NOTSET" else [0] * 2 * rank
        before, after = tuple(pads[:rank]), tuple(pads[rank:])
    else:
        call.without_meaning("pads")
        call.require(all(isinstance(d, int) for d in x.shape[2:]), "an output_shape of a dynamic size")
        places = zip(x.shape[2:], stride, kernel, dilation, more, wanted[-rank:], strict=True)
        totals = [s * (d - 1) + e + (k - 1) * f + 1 - w for d, s, k, f, e, w in places]
        before, after = _halves(totals, "SAME_UPPER" if kind == "SAME_UPPER" else "SAME_LOWER")
    after = tuple(c - extra for c, extra in zip(after, more, strict=True))
    windows = Windows(stride, dilation, before, after, call.attribute("group", 1))
    return transposed_convolution(call, x, weight, bias_of(call, 2), windows)


@onnx_op("Col2Im")
def _col2im(call: Call) -> Node:
    """Blocks whose shape is given at run time are chosen there, of those that the declared result allows."""
    x, sizes, kernel = call.node(0), call.known_dims(1), call.known_dims(2)
    sizes = call.shape_of_result("the shape of an image")[2:] if sizes is None else sizes
    rank = len(sizes)
    stride, dilation = (tuple(call.attribute(n, [1] * rank)) for n in ("strides", "dilations"))
    pads = call.attribute("pads", [0] * 2 * rank)
    call.require(all(isinstance(d, int) for d in (*sizes, *(kernel or ()))), "Col2Im of a dynamic size")
    windows = Windows(stride, dilation, tuple(pads[:rank]), tuple(pads[rank:]))
    if kernel is not None:
        return folded_windows(call, x, sizes, kernel, windows)
    taps = int(x.shape[1]) // call.shape_of_result("the shape of blocks")[1]
    options = [k for k in _shapes(taps, rank) if product(window_counts(sizes, k, windows)) == x.shape[2]]
    return by_values(call, call.node(2), options, lambda k: folded_windows(call, x, sizes, k, windows))


def _shapes(count: int, rank: int) -> list[tuple[int, ...]]:
    """All shapes of so many elements."""
    if rank == 1:
        return [(count,)]
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    return [(d, *rest) for d in divisors for rest in _shapes(count // d, rank - 1)]


# --- norms


@onnx_op("BatchNormalization")
def _batch_norm(call: Call) -> Result:
    """x * scale + shift by channel: scale = weight / sqrt(variance + eps)."""
    x, weight, bias, mean, variance = call.nodes()
    momentum, training = call.attribute("momentum", 0.9), bool(call.attribute("training_mode", 0))
    call.without_meaning("is_test")  # before opset 7: outputs that only training has tell the same
    call.require(call.attribute("spatial", 1) == 1, "BatchNormalization of each place for itself")
    if not training:
        call.require(
            call.outputs == 1, "BatchNormalization in training mode", "export the model in eval mode"
        )
        return _scaled(call, x, weight, bias, mean, variance)
    axes = (0, *range(2, x.type.rank))
    now = call.op("mean", x, axes=axes, keepdims=True)
    away = call.op("sub", x, now)
    spread = call.op("mean", call.op("mul", away, away), axes=axes, keepdims=False)
    now = call.reshape(now, mean.shape)
    y = _scaled(call, x, weight, bias, now, spread)
    after = (_mixed(call, old, new, momentum) for old, new in ((mean, now), (variance, spread)))
    return (y, *after)[: call.outputs]


def _mixed(call: Call, old: Node, new: Node, momentum: float) -> Node:
    kept = call.op("mul", old, call.number(momentum, old.dtype))
    return call.op("add", kept, call.op("mul", new, call.number(1 - momentum, old.dtype)))


def _scaled(call: Call, x: Node, weight: Node, bias: Node, mean: Node, variance: Node) -> Node:
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
    call.attribute("stash_type", 1)
    if weight.shape != (channels,):
        weight, bias = (_by_group(call, v, channels // groups) for v in (weight, bias))
    return composed_norm.group_norm(call, x, groups, weight, bias, call.attribute("epsilon", 1e-5))


def _by_group(call: Call, values: Node, times: int) -> Node:
    (groups,) = values.shape
    wide = call.expand(call.reshape(values, (groups, 1)), (groups, times))
    return call.reshape(wide, (groups * times,))


@onnx_op("LRN")
def _local_response(call: Call) -> Node:
    """x / (bias + alpha / size * sum of squares of channels around)**beta"""
    x, size = call.node(0), call.attributes["size"]
    low = (size - 1) // 2
    channels, rank = x.shape[1], x.type.rank
    pads = [tuple(n if a == 1 else 0 for a in range(rank)) for n in (low, size - 1 - low)]
    wide = call.op("pad", call.op("mul", x, x), before=pads[0], after=pads[1])
    total = call.sliced(wide, 1, 0, channels)
    for i in range(1, size):
        total = call.op("add", total, call.sliced(wide, 1, i, channels + i))
    share = call.number(np.float32(call.attribute("alpha", 1e-4)) / size, "f32")
    base = call.op("add", call.op("mul", total, share), call.number(call.attribute("bias", 1.0), "f32"))
    return call.op("div", x, call.op("pow", base, call.number(call.attribute("beta", 0.75), "f32")))
