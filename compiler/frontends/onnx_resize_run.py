"""Resize by scales, sizes or a crop that are given at run time: coordinates and weights are computed there.

The file says how large the result is. Along an axis the result is a product with a matrix of weights, which are those
of `onnx_places.py`, in nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmc.compiler.frontends.composed import taken as picked
from llmc.compiler.frontends.onnx_call import Call
from llmc.compiler.frontends.onnx_places import Filter
from llmc.compiler.frontends.onnx_values import known
from llmc.compiler.frontends.parts import to_end
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant

_MOST_TAPS = 1 << 16


def resized_at_run_time(call: Call, x: Node, taken: Filter, kind: str, axes: Sequence[int]) -> Node:
    """x in the declared size."""
    wanted = call.shape_of_result("the scales of a Resize")
    call.require(all(isinstance(d, int) for d in x.shape), "Resize of a dynamic size")
    scales = _scales(call, x, axes, wanted)
    crop = call.node(1) if kind == "tf_crop_and_resize" else None
    for i, axis in enumerate(axes):
        if wanted[axis] == x.shape[axis] == 1 and crop is None:
            continue
        start = None if crop is None else _number(call, crop, i)
        stop = None if crop is None else _number(call, crop, i + len(axes))
        one = _Axis(call, int(x.shape[axis]), wanted[axis], _number(call, scales, i), kind, start, stop)
        x = one.resized(x, axis, taken)
    return x


def _number(call: Call, values: Node, i: int) -> Node:
    return call.reshape(call.sliced(values, 0, i, i + 1), ())


def _scales(call: Call, x: Node, axes: Sequence[int], wanted: Sequence[int]) -> Node:
    """As they are given, or what the sizes make of them."""
    place = 1 if call.type == "Upsample" or call.opset < 11 else 2
    if call.has(place) and call.node(place).shape != (0,):
        return call.node(place)
    sizes = np.array([x.shape[a] for a in axes], np.float32)
    whole = constant(sizes, source=call.source)
    policy = call.attribute("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        goal: Node = constant(np.array([wanted[a] for a in axes], np.float32), source=call.source)
        if call.has(3) and known(call.value(3)) is not None:
            goal = call.cast(call.node(3), "f32")
        return call.op("div", goal, whole)
    ratios = call.op("div", call.cast(call.node(3), "f32"), whole)
    pick = "min" if policy == "not_larger" else "max"
    return call.expand(call.op(pick, ratios, axes=(0,), keepdims=True), (len(axes),))


class _Axis:
    """`places.Places` in nodes."""

    def __init__(
        self, call: Call, size: int, out: int, scale: Node, kind: str, start: Node | None, stop: Node | None
    ) -> None:
        self.call, self.size, self.out, self.scale, self.kind = call, size, out, scale, kind
        self.start, self.stop = start, stop

    def _f(self, value: float) -> Node:
        return self.call.number(value, "f32")

    def coordinates(self) -> Node:
        call, op = self.call, self.call.op
        i = call.cast(op("iota", length=self.out), "f32")
        wide = op("mul", self.scale, self._f(self.size))
        match self.kind:
            case "align_corners":
                return op("mul", i, self._step(wide, self._f(self.size - 1)))
            case "asymmetric":
                return op("div", i, self.scale)
            case "tf_crop_and_resize":
                return self._cropped(i, wide)
            case "pytorch_half_pixel" if self.out == 1:
                return self._f(0) if i.shape == () else op("mul", i, self._f(0))
        x = op("div", op("add", i, self._f(0.5)), self.scale)
        if self.kind == "tf_half_pixel_for_nn":
            return x
        x = op("sub", x, self._f(0.5))
        if self.kind != "half_pixel_symmetric":
            return x
        rest = op("sub", self._f(1), op("div", self._f(self.out), wide))
        return op("add", op("mul", self._f(self.size / 2), rest), x)

    def _step(self, wide: Node, span: Node) -> Node:
        """span / (wide - 1), 0 of a single element."""
        op = self.call.op
        rest = op("sub", wide, self._f(1))
        single = op("eq", rest, self._f(0))
        return op("where", single, self._f(0), op("div", span, op("where", single, self._f(1), rest)))

    def _cropped(self, i: Node, wide: Node) -> Node:
        op, last = self.call.op, self._f(self.size - 1)
        assert self.start is not None
        assert self.stop is not None
        step = self._step(wide, op("mul", op("sub", self.stop, self.start), last))
        single = op("eq", wide, self._f(1))
        middle = op("mul", op("add", self.start, self.stop), self._f(0.5))
        first = op("mul", op("where", single, middle, self.start), last)
        return op("add", first, op("mul", i, step))

    def resized(self, x: Node, axis: int, taken: Filter) -> Node:
        call, places = self.call, self.coordinates()
        if taken.mode == "nearest":
            y = picked(call, x, self._rounded(places, taken.rounding), axis)
        else:
            perm = to_end(x.type.rank, axis)
            matrix = call.transpose(self._matrix(places, taken), (1, 0))
            y = call.transpose(call.op("matmul", call.transpose(x, perm), matrix), perm)
        if self.start is None:
            return y
        low = call.op("lt", places, self._f(0))
        outside = call.op("or", low, call.op("gt", places, self._f(self.size - 1)))
        outside = call.reshape(outside, (self.out, *(1,) * (x.type.rank - 1 - axis)))
        return call.op("where", outside, self._f(taken.beyond), y)

    def _rounded(self, places: Node, how: str) -> Node:
        call = self.call
        half = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(how, 0.0)
        moved = call.op("add", places, self._f(half)) if half else places
        near = call.op("ceil" if how in ("ceil", "round_prefer_floor") else "floor", moved)
        held = call.op("minimum", call.op("maximum", near, self._f(0)), self._f(self.size - 1))
        return call.cast(held, "i64")

    def _matrix(self, places: Node, taken: Filter) -> Node:
        """`[out, size]`; taps beyond the edge are those of the edge."""
        call, op = self.call, self.call.op
        narrow = op("minimum", self.scale, self._f(1)) if taken.smooth else self._f(1)
        reach = taken.reach * (math.ceil(self.size / max(self.out - 1, 1)) + 1 if taken.smooth else 1) + 1
        call.require((self.size + 2 * reach) * self.out <= _MOST_TAPS, "so large a Resize at run time")
        taps = constant(np.arange(-reach, self.size + reach, dtype=np.float32), source=call.source)
        held = op("minimum", op("maximum", places, self._f(-1)), self._f(self.size))
        away = op("sub", taps, call.reshape(places if taken.smooth else held, (self.out, 1)))
        parts = self._weights(op("abs", op("mul", away, narrow)), taken)
        if taken.inside:
            inside = np.zeros(self.size + 2 * reach, np.float32)
            inside[reach:-reach] = 1
            parts = op("mul", parts, constant(inside, source=call.source))
        if taken.inside or taken.smooth:
            parts = op("div", parts, op("sum", parts, axes=(1,), keepdims=True))
        fold = np.zeros((self.size + 2 * reach, self.size), np.float32)
        fold[np.arange(len(fold)), np.clip(np.arange(len(fold)) - reach, 0, self.size - 1)] = 1
        return op("matmul", parts, constant(fold, source=call.source))

    def _weights(self, d: Node, taken: Filter) -> Node:
        op, f, a = self.call.op, self._f, taken.cubic
        if taken.mode == "linear":
            return op("maximum", op("sub", f(1), d), f(0))
        square = op("mul", d, d)
        near = op("sub", op("mul", f(a + 2), d), f(a + 3))
        near = op("add", op("mul", near, square), f(1))
        far = op("sub", op("mul", f(a), d), f(5 * a))
        far = op("sub", op("mul", op("add", op("mul", far, d), f(8 * a)), d), f(4 * a))
        beyond = op("where", op("lt", d, f(2)), far, f(0))
        return op("where", op("le", d, f(1)), near, beyond)
