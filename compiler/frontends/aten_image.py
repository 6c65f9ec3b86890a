"""ATen's ops on images: convolution, batch norm, pooling."""

from __future__ import annotations

import numpy as np

from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant


@aten("conv2d.default", "conv2d.padding")
def _conv2d(call: Call) -> Node:
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    stride, dilation = _pair(call.get("stride", [1])), _pair(call.get("dilation", [1]))
    window = (weight.shape[2], weight.shape[3])
    call.require(x.type.rank == 4, f"conv2d on {x.type.rank} axes", "use [batch, channels, height, width]")
    return call.op(
        "conv2d",
        *(n for n in (x, weight, bias) if n is not None),
        stride=stride,
        dilation=dilation,
        padding=_padding(call, window, dilation),
        groups=call.get("groups", 1),
        epilogue=() if bias is None else ("bias",),
    )


def _pair(value: list[int]) -> tuple[int, int]:
    """One number stands for both axes."""
    return (value[0], value[-1])


def _padding(call: Call, window: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right); "same" puts the odd one after, as PyTorch does."""
    padding = call.get("padding", [0])
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        span = [(k - 1) * d for k, d in zip(window, dilation, strict=True)]
        return span[0] // 2, span[1] // 2, span[0] - span[0] // 2, span[1] - span[1] // 2
    rows, columns = _pair(padding)
    return rows, columns, rows, columns


@aten("batch_norm.default", "_native_batch_norm_legit_no_training.default")
def _batch_norm(call: Call) -> Node:
    """x * scale + shift by channel; both are constants: scale = weight / sqrt(var + eps)."""
    x = call["input"]
    call.require(not call.get("training", False), "batch norm in training mode", "call model.eval() first")
    names = ("running_mean", "running_var", "weight", "bias")
    values = [_values(call, name, default) for name, default in zip(names, (0, 1, 1, 0), strict=True)]
    mean, variance, weight, bias = values
    scale = weight / np.sqrt(variance + call["eps"])
    shape = (-1,) + (1,) * (x.type.rank - 2)
    name = call["running_mean"].attributes["value"].name.rpartition(".")[0]
    factors = [
        constant(Weight(np.asarray(v, np.float32).reshape(shape), f"{name}.{what}"), source=call.source)
        for what, v in (("scale", scale), ("shift", bias - mean * scale))
    ]
    return call.op("add", call.op("mul", x, factors[0]), factors[1])


def _values(call: Call, name: str, default: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    node = call.get(name)
    if node is None:
        call.require(not name.startswith("running"), "batch norm without running statistics")
        return np.asarray(float(default))
    call.require(node.op == "constant", "batch norm with computed weights")
    return np.asarray(node.attributes["value"].array, np.float64)


@aten("max_pool2d.default")
def _max_pool2d(call: Call) -> Node:
    rows, columns = _pair(call.get("padding", [0]))
    kernel, call_stride = _pair(call["kernel_size"]), call.get("stride") or call["kernel_size"]
    call.require(not call.get("ceil_mode", False), "max_pool2d with ceil_mode", "pad the input instead")
    return call.op(
        "max_pool2d",
        call["self"],
        kernel=kernel,
        stride=_pair(call_stride),
        padding=(rows, columns, rows, columns),
        dilation=_pair(call.get("dilation", [1])),
    )


@aten("avg_pool2d.default")
def _avg_pool2d(call: Call) -> Node:
    rows, columns = _pair(call.get("padding", [0]))
    whole = not (rows or columns) or call.get("count_include_pad", True)
    plain = whole and not call.get("ceil_mode", False) and call.get("divisor_override") is None
    call.require(plain, "avg_pool2d with ceil_mode, divisor or uncounted padding", "pad the input instead")
    return call.op(
        "avg_pool2d",
        call["self"],
        kernel=_pair(call["kernel_size"]),
        stride=_pair(call.get("stride") or call["kernel_size"]),
        padding=(rows, columns, rows, columns),
    )


@aten("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
def _adaptive_avg_pool2d(call: Call) -> Node:
    """To one pixel it is a mean; to a divisor of the size, windows side by side."""
    x, (rows, columns) = call["self"], call.shape[-2:]
    rank = x.type.rank
    if (rows, columns) == (1, 1):
        return call.op("mean", x, axes=(rank - 2, rank - 1), keepdims=True)
    sizes = x.shape[-2:]
    even = all(isinstance(d, int) and d % n == 0 for d, n in zip(sizes, (rows, columns), strict=True))
    call.require(even and rank == 4, "adaptive_avg_pool2d to sizes that do not divide the image's")
    window = (sizes[0] // rows, sizes[1] // columns)
    return call.op("avg_pool2d", x, kernel=window, stride=window)


@aten("hardswish.default", "hardsigmoid.default")
def _hardswish(call: Call) -> Node:
    """clamp(x + 3, 0, 6) / 6, and x times that"""
    x = call["self"]
    raised = call.op("add", x, call.scalar(3.0, x.dtype))
    clamped = call.op("maximum", raised, call.scalar(0.0, x.dtype))
    gate = call.op("minimum", clamped, call.scalar(6.0, x.dtype))
    gate = call.op("div", gate, call.scalar(6.0, x.dtype))
    return gate if "hardsigmoid" in str(call.target) else call.op("mul", x, gate)
