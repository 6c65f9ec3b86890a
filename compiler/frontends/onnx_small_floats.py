"""Rounding to floats of 8 bits and fewer, whose values are held as f32.

A value is scaled to where the last bit of its result is 1, rounded there and scaled back; the scale, a power of two, is
found by comparisons, which are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmc.compiler.frontends.composed_rounding import nearest_even
from llmc.compiler.frontends.onnx_call import Call
from llmc.compiler.frontends.onnx_kinds import dtype_name
from llmc.compiler.graph import Node

_INFINITY, _NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class SmallFloat:
    """A format.

    Args:
        digits: bits behind the point.
        lowest: exponent of the smallest normal number.
        largest: the largest finite number.
        beyond: what a number beyond it becomes that is not saturated; infinity, too, if it has none.
        of_nan: what NaN becomes.
    """

    digits: int
    lowest: int
    largest: float
    beyond: float
    of_nan: float = _NAN


_FORMATS: Mapping[str, SmallFloat] = MappingProxyType(
    {
        "FLOAT8E4M3FN": SmallFloat(3, -6, 448.0, _NAN),
        "FLOAT8E4M3FNUZ": SmallFloat(3, -7, 240.0, _NAN),
        "FLOAT8E5M2": SmallFloat(2, -14, 57344.0, _INFINITY),
        "FLOAT8E5M2FNUZ": SmallFloat(2, -15, 57344.0, _NAN),
        "FLOAT4E2M1": SmallFloat(1, 0, 6.0, 6.0, 0.0),
    }
)


def is_small(kind: int) -> bool:
    """Whether an element type is a float of 8 bits or fewer."""
    return dtype_name(kind).startswith(("FLOAT8", "FLOAT4", "FLOAT6"))


def rounded(call: Call, x: Node, kind: int) -> Node:
    """x rounded to the nearest number of a format, halves to even."""
    name = dtype_name(kind)
    call.require(name in _FORMATS, f"a cast to {name}")
    made, saturates = _FORMATS[name], bool(call.attribute("saturate", 1))
    step = _last_bit(call, x, made)
    near = call.op("mul", nearest_even(call, call.op("div", x, step)), step)
    near = _limited(call, near, x, made, saturates)
    return call.op("where", call.op("eq", x, x), near, call.number(made.of_nan, "f32"))


def _last_bit(call: Call, x: Node, made: SmallFloat) -> Node:
    """The power of two that the last bit of the result is worth."""
    size = call.op("abs", x)
    step = call.number(2.0 ** (made.lowest - made.digits), "f32")
    exponent = made.lowest + 1
    while 2.0**exponent <= made.largest:
        higher = call.op("ge", size, call.number(2.0**exponent, "f32"))
        step = call.op("where", higher, call.number(2.0 ** (exponent - made.digits), "f32"), step)
        exponent += 1
    return step


def _limited(call: Call, near: Node, x: Node, made: SmallFloat, saturates: bool) -> Node:
    """Numbers beyond the largest become it, or what the format has for them."""
    over = call.op("gt", call.op("abs", near), call.number(made.largest, "f32"))
    sign = call.op("sign", x)
    beyond = made.largest if saturates else made.beyond
    return call.op("where", over, call.op("mul", sign, call.number(beyond, "f32")), near)
