"""What rules ask about a node: is it a scalar, a weight, the same on every index; and how to resize it."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import OPS, make


def weight(node: Node) -> Weight | None:
    """The values of a constant node."""
    if node.op == "constant":
        value = node.attributes["value"]
        assert isinstance(value, Weight)
        return value


def is_of_adapter(node: Node) -> bool:
    """Whether it is a product of an adapter that lies beside its base: it stays as fine as it was trained."""
    return node.source.path.endswith((".lora_A", ".lora_B"))


def is_weight(node: Node) -> bool:
    """A constant, or what constant levels mean."""
    return node.op == "constant" or is_levels(node)


def is_levels(node: Node) -> bool:
    """dequantize(constants), or views of them, which `fold` computes."""
    return node.op == "dequantize" and all(_is_fixed(part) for part in node.inputs)


def _is_fixed(node: Node) -> bool:
    while node.op in ("transpose", "reshape"):
        node = node.inputs[0]
    return node.op == "constant"


def scalar(node: Node) -> Any:
    """The one value, as a NumPy scalar, that `node` has at every index; None if it is not known."""
    while OPS[node.op].moves:
        node = node.inputs[0]
    value = weight(node)
    if value is not None and value.array.size == 1:
        return value.array.reshape(())[()]


def is_scalar(node: Node, *values: float) -> bool:
    """Whether `node` is one of `values` at every index (-0.0 counts as 0.0)."""
    found = scalar(node)
    return found is not None and any(found == v for v in values)


def number_text(node: Node) -> str:
    """The number that `node` is everywhere, or what else it is: for reasons."""
    value = scalar(node)
    if value is None:
        return f"a tensor {list(node.shape)}" if node.op == "constant" else f"the value of {node.op}"
    return f"{value:.7g}" if isinstance(value, np.number) else str(value)


def resized(node: Node, like: Node) -> Node:
    """`node` broadcast to the shape of `like`."""
    return node if node.shape == like.shape else make("expand", (node,), like.source, shape=like.shape)


def reshaped(node: Node, shape: tuple[Any, ...]) -> Node:
    """`node` with another shape of as many elements."""
    return node if node.shape == shape else make("reshape", (node,), node.source, shape=shape)


def through_views(node: Node) -> Node:
    """What `node` is a reshape of."""
    while node.op == "reshape":
        node = node.inputs[0]
    return node


def without_ones(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """The dims that are not the number 1."""
    return tuple(d for d in shape if d != 1)
