"""Norms over groups of channels, and weights of a fixed norm."""

from __future__ import annotations

import numpy as np

from llmc.compiler.dims import dim, product
from llmc.compiler.frontends.composed import Array, by_channel, number
from llmc.compiler.frontends.parts import Maker
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant


def group_norm(m: Maker, x: Node, groups: int, weight: Node | None, bias: Node | None, eps: float) -> Node:
    """x `[b, c, sizes...]` normalised over the channels of a group and all sizes, then weight and bias by channel."""
    batch, channels, *sizes = x.shape
    m.require(isinstance(channels, int) and channels % groups == 0, f"{channels} channels in {groups} groups")
    width = dim(channels // groups * product(sizes))
    rows = m.reshape(x, (batch, groups, width))
    if isinstance(width, int):
        y = m.op("layer_norm", rows, eps=eps, has_weight=False, has_bias=False)
    else:
        y = normalised(m, rows, (2,), eps)
    y = m.reshape(y, x.shape)
    return by_channel(m, by_channel(m, y, "mul", weight), "add", bias)


def normalised(m: Maker, x: Node, axes: tuple[int, ...], eps: float) -> Node:
    """(x - mean) / sqrt(variance + eps)"""
    centred = m.op("sub", x, m.op("mean", x, axes=axes, keepdims=True))
    variance = m.op("mean", m.op("mul", centred, centred), axes=axes, keepdims=True)
    return m.op("mul", centred, m.op("rsqrt", m.op("add", variance, number(m, eps, x))))


def weight_norm(m: Maker, direction: Node, length: Node, axis: int) -> tuple[Node, Node]:
    """direction * length / |direction|, and the norm |direction|, taken over all axes but one."""
    axes = tuple(a for a in range(direction.type.rank) if a != axis)
    if direction.op == length.op == "constant":
        v, g = direction.attributes["value"], length.attributes["value"]
        norm = np.sqrt(np.square(v.array, dtype=np.float64).sum(axes, keepdims=True))
        made = v.array * (g.array / norm)
        return _weight(made, v, direction, ""), _weight(norm, v, direction, ".norm")
    square = m.op("sum", m.op("mul", direction, direction), axes=axes, keepdims=True)
    size = m.op("sqrt", square)
    return m.op("mul", direction, m.op("div", length, size)), size


def _weight(array: Array, of: Weight, node: Node, ending: str) -> Node:
    return constant(Weight(array.astype(of.array.dtype), f"{of.name}{ending}"), source=node.source)
