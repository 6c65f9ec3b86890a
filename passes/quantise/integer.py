"""Products and convolutions of levels on integer kernels.

A zero point z moves into the sums: sum (q - z) w = sum q w - z sum w, and the second sum is known. A weight's own zero
point is taken off its levels, where what is left fits 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.quantise import LONGEST_WITH_ZERO
from llmc.compiler.rewrite import Context, Decline
from llmc.passes.match import reshaped, scalar, weight

Array = np.ndarray[Any, Any]
MOST_CHANNELS = 4096  # of pixels that are rounded as they are made: a strip of them stays in the cache
Parts = tuple[Node, Node]  # levels i8, and a scale for each output


def integer_product(node: Node) -> Node | Decline | None:
    """linear(dequantize(quantize(x, s, z), s, z), dequantize(w, t)) -> qlinear(quantize_rows(x, s, z), w, t, z)"""
    match node:
        case Node("linear", (x, Node("dequantize") as w, *extras)) if _activation(x) is not None:
            pass
        case _:
            return None
    parts = weight_parts(w)
    if isinstance(parts, Decline):
        return parts
    q, s, *z = _activation(x) or ()
    rows = _rows(x, q, s, z, int(w.shape[1]))
    if isinstance(rows, Decline):
        return rows
    zero = tuple(_one(z))
    a = {**node.attributes, "has_zero": bool(zero)}
    return make("qlinear", (rows, *parts, *zero, *extras), node.source, **a)


def _activation(x: Node) -> tuple[Node, ...] | None:
    """Levels, scale and zero point of a dequantised activation, also of one that lies in another way since."""
    if x.op == "dequantize":
        return x.inputs
    if x.op not in ("reshape", "transpose") or x.inputs[0].op != "dequantize":
        return None
    q, *parts = x.inputs[0].inputs
    if any(part.shape for part in parts):
        return None
    if q.op == "quantize" and not any(part.shape for part in q.inputs[1:]):
        return (q.with_inputs((x.with_inputs(q.inputs[:1]), *q.inputs[1:])), *parts)
    return (x.with_inputs((q,)), *parts)


def _rows(x: Node, q: Node, s: Node, z: Sequence[Node], k: int) -> Node | Decline:
    """Packed rows of a dequantised activation; one that is quantised elsewhere is written as its levels again."""
    known = q.op == "quantize" and _same(q.inputs[1:], (s, *z))
    if not z and q.dtype == "i8":
        if not known:
            return Decline("the activation is not quantised by the scale it is multiplied with")
        source = q.inputs[0]
        if s.op == "row_scale" and s.inputs[0] is source:
            return make("quantize_rows", (source,), source.source)
        if s.shape == ():
            return make("quantize_rows", (source, s), source.source, has_scale=True)
        return Decline("the activation's scale is neither its row's nor one number")
    if not z:
        return Decline("the activation has no zero point")
    if why := _unlike_one(s, z, k):
        return why
    source = q.inputs[0] if known else x
    scale, zero = _number(s), _number(z[0])
    return make("quantize_rows", (source, scale, zero), source.source, has_scale=True, has_zero=True)


def integer_convolution(node: Node) -> Node | Decline | None:
    """conv2d(dequantize(q, s, z), dequantize(w, t, ...), ...) -> qconv2d(q, s, w, t, z, ...)"""
    match node:
        case Node("conv2d", (x, Node("dequantize") as w, *extras), a) if _activation(x) is not None:
            q, s, *z = _activation(x) or ()
        case _:
            return None
    if not a["channels_last"]:
        return Decline("there is no integer kernel for images with channels first")
    if w.shape[1] == 1 and a["groups"] > 1:
        return Decline("convolutions by channel gain nothing by integers")
    parts = weight_parts(w)
    if isinstance(parts, Decline):
        return parts
    by_image = not z and s.shape == (q.shape[0], 1, 1, 1)
    if not by_image and (why := _unlike_one(s, z, int(np.prod([int(d) for d in w.shape[1:]])))):
        return why
    zero = tuple(_one(z)) or ((constant(np.uint8(0)),) if q.dtype == "u8" else ())
    window = {name: value for name, value in a.items() if name not in ("channels_last", "winograd")}
    scale = s if by_image else _number(s)
    inputs = (q, scale, *parts, *zero, *extras)
    return make("qconv2d", inputs, node.source, **window, has_zero=bool(zero))


def rows_by_channel(node: Node, context: Context) -> Node | Decline | None:
    """quantize_rows(conv2d(x, w, ...)) -> channel_rows(x, w, ...), of a convolution by channel with channels last"""
    match node:
        case Node("quantize_rows", (Node("conv2d", (x, w, *extras), a) as y,), own):
            by_channel = a["channels_last"] and w.shape[1] == 1 and a["groups"] == w.shape[0]
        case _:
            return None
    if own["table"] or not by_channel or w.op != "constant" or w.shape[0] > MOST_CHANNELS:
        return None
    if not context.single(y):
        return Decline("the convolution is read elsewhere too")
    window = {name: a[name] for name in ("stride", "padding", "dilation", "epilogue")}
    return make("channel_rows", (x, w, *extras), y.source, **window)


def _unlike_one(s: Node, z: Sequence[Node], k: int) -> Decline | None:
    """Why the scale and zero point of an activation do not serve an integer kernel."""
    if _count(s) != 1 or any(_count(one) != 1 for one in z):
        return Decline("the activation's scale or zero point is not one number")
    return Decline(f"sums of {k} products may not fit 32 bits") if z and k >= LONGEST_WITH_ZERO else None


def weight_parts(w: Node) -> Parts | Decline:
    """The levels of a weight less their zero points, and its scales by output."""
    q, t, *z = w.inputs
    values = [weight(part) for part in (q, t, *z)]
    if None in values:
        return Decline("the weight is not a constant")
    levels, scale, *zero = (value.array for value in values if value is not None)
    n = len(levels)
    by_row = (n, *(1,) * (levels.ndim - 1))
    if not all(part.size == 1 or part.shape == by_row for part in (scale, *zero)):
        return Decline("the weight is not a constant quantised by row")
    around = levels.astype(np.int16) - (zero[0].astype(np.int16) if zero else 0)
    if around.size and (around.min() < -128 or around.max() > 127):
        return Decline("the weight's levels less their zero point do not fit 8 bits")
    name = values[0].name if values[0] is not None else ""
    flat = np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), (n,)))
    moved = (
        q
        if not zero and levels.dtype == np.int8
        else constant(Weight(around.astype(np.int8), name), source=q.source)
    )
    return moved, constant(Weight(flat, values[1].name if values[1] is not None else ""), source=t.source)


def _same(parts: Sequence[Node], others: Sequence[Node]) -> bool:
    """Whether these are the same nodes, or the same numbers."""
    if len(parts) != len(others):
        return False
    return all(a is b or _equal(a, b) for a, b in zip(parts, others, strict=True))


def _equal(a: Node, b: Node) -> bool:
    one, other = scalar(a), scalar(b)
    return one is not None and other is not None and a.dtype == b.dtype and bool(one == other)


def _one(z: Sequence[Node]) -> list[Node]:
    return [_number(one) for one in z]


def _count(node: Node) -> int:
    return int(np.prod([d if isinstance(d, int) else 2 for d in node.shape]))


def _number(node: Node) -> Node:
    return reshaped(node, ())
