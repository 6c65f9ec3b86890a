"""Quantised values of ONNX files in the graph's own words: `quantize` and `dequantize`; passes make integer products.

What multiplies levels by constant levels is written as the float product of what they mean; other integer arithmetic
stays as it is, summed exactly (`onnx_quantise.py`).
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from llmc.compiler.frontends.onnx_call import Call
from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.ops.quantise import LEVEL_DTYPES
from llmc.compiler.ops.rules import same_dim

# An i32 node of exact sums -> the same numbers as f32: what a cast to floats takes.
_SUMS: WeakKeyDictionary[Node, Node] = WeakKeyDictionary()


def fits(x: Node, *parts: Node) -> bool:
    """Whether scales and zero points broadcast to the shape of x."""
    return all(
        part.type.rank <= x.type.rank
        and all(
            same_dim(d, 1) or same_dim(d, t) for d, t in zip(part.shape[::-1], x.shape[::-1], strict=False)
        )
        for part in parts
    )


def is_levels(x: Node, scale: Node, zero: Node | None) -> bool:
    """Whether `dequantize` can say it."""
    known = (scale,) if zero is None else (scale, zero)
    return x.dtype in LEVEL_DTYPES and fits(x, *known) and (zero is None or zero.dtype == x.dtype)


def dequantised(call: Call, x: Node, scale: Node, zero: Node | None) -> Node:
    """What levels mean; a matrix of constants, or more, stays as small as it is."""
    constant = x.op == "constant"
    zero = _fewest(call, zero) if constant and zero is not None else zero
    parts = (x, scale) if zero is None else (x, scale, zero)
    if constant and x.type.rank > 1:
        return make("dequantize", parts, call.source)
    return call.op("dequantize", *parts)


def _fewest(call: Call, zero: Node) -> Node | None:
    """Zero points that are one number as that number, and none for 0."""
    value = zero.attributes["value"].array if zero.op == "constant" else None
    if value is None or (value != value.flat[0]).any():
        return zero
    return call.number(int(value.flat[0]), zero.dtype) if value.flat[0] else None


def is_weight(w: Node, scale: Node | None, zero: Node | None) -> bool:
    """Whether all of a weight is constant, and of levels."""
    parts = [part for part in (w, scale, zero) if part is not None]
    return w.dtype in LEVEL_DTYPES and w.type.rank > 1 and all(part.op == "constant" for part in parts)


def remember(exact: Node, floats: Node) -> Node:
    """The exact sums, whose numbers as floats are known to be `floats`."""
    _SUMS[exact] = floats
    return exact


def as_floats(node: Node) -> Node | None:
    """The numbers of `node` as f32, if they were remembered."""
    return _SUMS.get(node)
