"""ATen's Einstein sums, and products that are such sums."""

from __future__ import annotations

from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.einsum import Labelled, einsum, multiplied
from llmc.compiler.graph import Node


@aten("einsum.default")
def _einsum(call: Call) -> Node:
    return einsum(call, call["equation"], [call.cast(node, call.dtype) for node in call["tensors"]])


@aten("outer.default", "ger.default")
def _outer_product(call: Call) -> Node:
    a, b = call.tensors("self", "vec2")
    return call.op("mul", call.reshape(a, (*a.shape, 1)), b)


@aten("dot.default", "vdot.default", "inner.default")
def _dot(call: Call) -> Node:
    """Sums over the last axis of both."""
    a, b = call["self"], call.get("tensor", call.get("other"))
    both = [
        Labelled(x, (*(f"{side}{i}" for i in range(x.type.rank - 1)), "k"))
        for side, x in (("a", a), ("b", b))
    ]
    kept = {label for x in both for label in x.labels} - {"k"}
    return call.reshape(multiplied(call, both[0], both[1], kept).node, call.shape)


@aten("mv.default")
def _mv(call: Call) -> Node:
    column = call.reshape(call["vec"], (*call["vec"].shape, 1))
    return call.reshape(call.op("matmul", call["self"], column), call.shape)


@aten("tensordot.default")
def _tensordot(call: Call) -> Node:
    a, b = call["self"], call["other"]
    pairs = zip(
        (call.axis(d, a.type.rank) for d in call["dims_self"]),
        (call.axis(d, b.type.rank) for d in call["dims_other"]),
        strict=True,
    )
    first = [f"a{i}" for i in range(a.type.rank)]
    second = [f"b{i}" for i in range(b.type.rank)]
    for left, right in pairs:
        second[right] = first[left] = f"k{left}"
    kept = {label for label in (*first, *second) if not label.startswith("k")}
    both = (Labelled(a, tuple(first)), Labelled(b, tuple(second)))
    return call.reshape(multiplied(call, both[0], both[1], kept).node, call.shape)
