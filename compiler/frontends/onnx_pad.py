"""ONNX's Pad: by numbers, by sizes that calls decide, and by numbers that are given at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import Dim, dim
from llmc.compiler.frontends.composed import size, taken
from llmc.compiler.frontends.composed_pad import cut, mirrored, padded, surrounded
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_index import wrapped
from llmc.compiler.frontends.onnx_parts import picked
from llmc.compiler.frontends.onnx_values import known, want_table
from llmc.compiler.frontends.ranges import is_nonnegative
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops import constant


@onnx_op("Pad")
def _pad(call: Call) -> Node:
    """All numbers before the axes, then all after."""
    x, mode = call.node(0), call.attribute("mode", "constant")
    rank = x.type.rank
    if any(call.has(i) and known(call.value(i)) is None for i in (1, 2, 3)):
        return _running_pad(call, x, mode)
    name = "paddings" if "paddings" in call.attributes else "pads"
    pads = call.attributes[name] if name in call.attributes else call.dims(1, "padding")
    axes = [a % rank for a in call.dims(3, "axes")] if call.has(3) else list(range(rank))
    call.require(len(pads) == 2 * len(axes), f"{len(pads)} numbers of padding for {len(axes)} axes")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    fill = _fill(call, x)
    call.require(mode in ("constant", *_MODES), f"padding mode {mode!r}", "pad with a constant")
    for axis in range(rank):
        if not (isinstance(before[axis], int) and isinstance(after[axis], int)):
            pads = _alike(before[axis]), _alike(after[axis])
            x = _by_sizes(call, x, axis, pads, mode, fill)
            before[axis] = after[axis] = 0
    if mode == "constant":
        return padded(call, x, before, after, fill)
    return _mirrored(call, x, before, after, mode)


def _by_sizes(call: Call, x: Node, axis: int, pads: tuple[Dim, Dim], mode: str, fill: Any) -> Node:
    """An axis padded by as much as the sizes of a call say, such as up to the next multiple of 32."""
    length = dim(x.shape[axis] + pads[0] + pads[1])
    call.require(_never_negative(length), f"padding to a size that may be below zero, {length}")
    if mode == "constant" and all(map(_never_negative, pads)):
        return surrounded(call, x, axis, pads, fill)
    low, high = (size(call, p) for p in pads)
    places = call.op("sub", call.op("iota", length=length), low)
    return _moved(call, x, axis, places, (low, high), mode, call.number(fill, x.dtype))


def _never_negative(value: Dim) -> bool:
    """Whether a size is at least 0 for all sizes of inputs, which are at least 1.

    Floors are at most what they are of, and less than 1 below it: `16 floor((n + 15) / 16) - n` is at least 0.
    """
    if is_nonnegative(value):
        return True
    least = sympy.expand(_alike(value))
    for floor in least.atoms(sympy.floor):
        inside, rises = floor.args[0], least.coeff(floor)
        rest = sympy.expand(least - rises * floor)
        if not rises.is_Integer or rest.has(floor):
            return False
        below = 1 - sympy.Rational(1, sympy.denom(sympy.together(inside)))
        least = sympy.expand(_alike(rest + rises * (inside - below if rises > 0 else inside)))
    return is_nonnegative(dim(least))


def _alike(value: Dim) -> Dim:
    """A size in a form in which `max(0, 256 - n) + n` is `max(256, n)`, so that they cancel."""
    if isinstance(value, int):
        return value

    def written(*parts: sympy.Expr) -> sympy.Expr:
        if len(parts) != 2:
            return sympy.Max(*parts)
        away = sympy.expand(parts[1] - parts[0])
        if away.could_extract_minus_sign():
            return parts[1] + sympy.Max(0, sympy.expand(-away))
        return parts[0] + sympy.Max(0, away)

    expanded = sympy.expand(sympy.sympify(value))
    return dim(sympy.expand(expanded.replace(sympy.Max, written)))


def _fill(call: Call, x: Node) -> Any:
    if "value" in call.attributes:
        return float(call.attributes["value"])
    array = known(call.value(2)) if call.has(2) else np.zeros(1, DTYPES[x.dtype])
    call.require(array is not None and array.size == 1, "padding with a computed value")
    assert array is not None
    return array.reshape(()).item()


_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _mirrored(call: Call, x: Node, before: Sequence[int], after: Sequence[int], mode: str) -> Node:
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        want_table(low + high)
        x = mirrored(call, cut(call, x, axis, low, high), axis, max(low, 0), max(high, 0), _MODES[mode])
    return x


def _running_pad(call: Call, x: Node, mode: str) -> Node:
    """Numbers that are given at run time: the file says how large the result is, and elements move by them."""
    call.require(mode in ("constant", *_MODES), f"padding mode {mode!r}")
    wanted, rank = call.shape_of_result("padding"), x.type.rank
    pads = call.cast(call.node(1), "i64")
    axes = call.node(3) if call.has(3) else constant(np.arange(rank), source=call.source)
    axes = wrapped(call, call.cast(axes, "i64"), rank)
    (count,) = axes.shape
    fill = call.reshape(call.node(2), ()) if call.has(2) else call.number(0, x.dtype)
    for axis in range(rank):
        here = call.op("eq", axes, call.number(axis, "i64"))
        low, high = (
            picked(call, here, call.sliced(pads, 0, first, first + count), 0) for first in (0, count)
        )
        places = call.op("sub", call.op("iota", length=wanted[axis]), low)
        x = _moved(call, x, axis, places, (low, high), mode, fill)
    return x


def _moved(
    call: Call, x: Node, axis: int, places: Node, pads: tuple[Node, Node], mode: str, fill: Node
) -> Node:
    """x at places along an axis; beyond it lies `fill`, or what the mode puts there of what negative pads leave."""
    zero, one = call.number(0, "i64"), call.number(1, "i64")
    first, beyond = (call.op("maximum", call.op("sub", zero, pad), zero) for pad in pads)
    last = call.op("sub", call.op("sub", size(call, x.shape[axis]), one), beyond)
    span = call.op("sub", last, first)
    if mode == "reflect":
        period = call.op("maximum", call.op("add", span, span), one)
        turn = call.op("mod", call.op("sub", places, first), period)
        places = call.op("add", first, call.op("minimum", turn, call.op("sub", period, turn)))
    elif mode == "wrap":
        length = call.op("maximum", call.op("add", span, one), one)
        places = call.op("add", first, call.op("mod", call.op("sub", places, first), length))
    inside = call.op("maximum", call.op("minimum", places, last), first)
    y = taken(call, x, inside, axis)
    if mode != "constant":
        return y
    same = call.reshape(call.op("eq", inside, places), (*inside.shape, *(1,) * (x.type.rank - 1 - axis)))
    return call.op("where", same, y, fill)
