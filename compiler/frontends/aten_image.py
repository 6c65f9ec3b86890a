"""ATen's convolutions, and norms of channels."""

from __future__ import annotations

import numpy as np

from llmc.compiler.frontends import composed_norm
from llmc.compiler.frontends.aten import Call, Result, aten
from llmc.compiler.frontends.composed import batched, by_channel
from llmc.compiler.frontends.composed_conv import Windows, convolution, transposed_convolution
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant


def spread(value: object, rank: int) -> tuple[int, ...]:
    """One number stands for all axes."""
    numbers = tuple(value) if isinstance(value, list) else (value,)
    return numbers * rank if len(numbers) == 1 else numbers


@aten(*(f"conv{n}d.{kind}" for n in (1, 2, 3) for kind in ("default", "padding")), "convolution.default")
def _conv(call: Call) -> Result:
    weight = call["weight"]
    rank = weight.type.rank - 2
    if call.get("transposed", False):
        return _conv_transpose(call)
    stride, dilation = spread(call.get("stride", 1), rank), spread(call.get("dilation", 1), rank)
    before, after = _padding(call, weight.shape[2:], dilation)
    windows = Windows(stride, dilation, before, after, call.get("groups", 1))
    return batched(
        call, call["input"], rank + 2, lambda x: convolution(call, x, weight, call.get("bias"), windows)
    )


def _padding(
    call: Call, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Zeros before and after; "same" puts the odd one after, as PyTorch does."""
    padding, rank = call.get("padding", 0), len(kernel)
    if padding == "valid":
        return (0,) * rank, (0,) * rank
    if padding == "same":
        span = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        return tuple(s // 2 for s in span), tuple(s - s // 2 for s in span)
    return spread(padding, rank), spread(padding, rank)


@aten("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transpose(call: Call) -> Node:
    weight = call["weight"]
    rank = weight.type.rank - 2
    stride, dilation = spread(call.get("stride", 1), rank), spread(call.get("dilation", 1), rank)
    cut, more = spread(call.get("padding", 0), rank), spread(call.get("output_padding", 0), rank)
    after = tuple(c - extra for c, extra in zip(cut, more, strict=True))
    windows = Windows(stride, dilation, cut, after, call.get("groups", 1))
    return batched(
        call,
        call["input"],
        rank + 2,
        lambda x: transposed_convolution(call, x, weight, call.get("bias"), windows),
    )


# --- norms


@aten(
    *("batch_norm.default", "_native_batch_norm_legit_no_training.default"),
    "_native_batch_norm_legit.no_stats",
)
def _batch_norm(call: Call) -> Result:
    """x * scale + shift by channel, both constants: scale = weight / sqrt(var + eps).

    Without running statistics it is normalised by its own: so are weights whose variance a model sets.
    """
    x, several = call["input"], "native" in str(call.target)
    running = call.get("running_mean")
    call.require(
        running is None or not call.get("training", False),
        "batch norm in training mode",
        "call model.eval() first",
    )
    if running is None:
        y = composed_norm.normalised(call, x, (0, *range(2, x.type.rank)), call["eps"])
        y = by_channel(call, y, "mul", call.get("weight"))
        y = by_channel(call, y, "add", call.get("bias"))
    else:
        y = _scaled(call, x)
    return (y, *(None for _ in call.meta[1:])) if several else y


def _scaled(call: Call, x: Node) -> Node:
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
        return np.asarray(float(default))
    call.require(node.op == "constant", "batch norm with computed weights")
    return np.asarray(node.attributes["value"].array, np.float64)


@aten("group_norm.default", "native_group_norm.default")
def _group_norm(call: Call) -> Result:
    groups = call.get("num_groups", call.get("group"))
    parameters = (call.get("weight"), call.get("bias"))
    y = composed_norm.group_norm(call, call["input"], groups, *parameters, call["eps"])
    return (y, None, None) if "native" in str(call.target) else y


@aten("instance_norm.default")
def _instance_norm(call: Call) -> Node:
    """Every channel is a group."""
    call.require(call["use_input_stats"], "instance norm with running statistics")
    x = call["input"]
    return composed_norm.group_norm(call, x, x.shape[1], call.get("weight"), call.get("bias"), call["eps"])


@aten("_weight_norm.default", "_weight_norm_interface.default")
def _weight_norm(call: Call) -> Result:
    """A weight by its direction and length."""
    v, g = call["v"], call["g"]
    made = composed_norm.weight_norm(call, v, g, call.axis(call.get("dim", 0), v.type.rank))
    return made if "interface" in str(call.target) else made[0]
