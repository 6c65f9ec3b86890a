"""What looks at windows of each channel alone, with channels last: depthwise convolution and pooling.

16 channels of a pixel are a vector. An item is a row of the output in 128 channels; taps outside the image are left
out. Of a convolution several pixels side by side are computed at once where their windows lie within the row: each
vector of the input is then read once for all windows that hold it. Taps are summed in order, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import ceil_div, dim, product
from llmc.compiler.graph import Node
from llmc.errors import LlmcError
from llmc.targets.cpu.products.linear import extra_operands
from llmc.targets.cpu.storage.packing import pad_columns
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, fma, i64, splat
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import ACTIVATIONS
from llmc.targets.tir.scalar_ops import maximum
from llmc.targets.tir.tiling import tiles, zeros

SIZES = ("channels", "height", "width", "top", "left", "rows", "columns")
_BLOCKS = 8  # vectors of channels of an item: what a strip costs beside its taps is paid once for all
_HELD = 7  # weights of a row of taps that are kept in registers
_WRITTEN = 7  # columns of taps that are written out


@dataclass(frozen=True)
class Channelwise:
    """What the code depends on.

    Args:
        kind: "conv", "max" or "avg".
        kernel, stride, dilation: (rows, columns).
        epilogue: as the op's.
    """

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    epilogue: tuple[str, ...] = ()


def pack_taps(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """f32 `[c, 1, kh, kw]` -> `[ceil(c / 16), kh * kw, 16]`, missing channels zero."""
    rows = array.reshape(len(array), -1)
    padded = np.pad(rows, ((0, -len(rows) % LANES), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, LANES, rows.shape[1]).transpose(0, 2, 1))


def lower_depthwise(node: Node) -> Call:
    """Items are (image, row, 128 channels)."""
    a, w = node.attributes, node.inputs[1]
    kernel = (int(w.shape[2]), int(w.shape[3]))
    key = Channelwise("conv", kernel, a["stride"], a["dilation"], a["epilogue"])
    return _call(node, key, channel_operands(node))


def channel_operands(node: Node) -> tuple[Any, ...]:
    """The image, the weights and what the epilogue reads."""
    x, w, *extras = node.inputs
    weight = Packed(w.attributes["value"], "taps16", pack_taps)
    pad = partial(pad_columns, width=LANES)
    return (x, weight, *extra_operands(node, extras, f"pad{LANES}", pad))


def lower_pool_last(node: Node) -> Call:
    """Items are (image, row, 128 channels)."""
    a = node.attributes
    key = Channelwise(node.op[:3], a["kernel"], a["stride"], a.get("dilation", (1, 1)))
    return _call(node, key, (node.inputs[0],))


def _call(node: Node, key: Channelwise, operands: tuple[Any, ...]) -> Call:
    x, a = node.inputs[0], node.attributes
    channels = x.shape[3]
    if not isinstance(channels, int):
        raise LlmcError(f"{node.op}: the number of channels must be fixed, found {x.type}")
    pointers = ("f32",) * (len(operands) + 1)
    kernel = Kernel("channels", key, pointers, len(SIZES), partial(emit_channels, key=key))
    taps = key.kernel[0] * key.kernel[1]
    return Call(
        kernel,
        (*operands, node),
        (channels, *x.shape[1:3], *a["padding"][:2], *node.shape[1:3]),
        dim(node.shape[0] * node.shape[1] * ceil_div(channels, _BLOCKS * LANES)),
        dim(node.shape[2] * (taps + 2) * min(_BLOCKS, -(-channels // LANES))),
        product(node.shape) * taps * (2 if key.kind == "conv" else 1),
        4 * (product(x.shape) + product(node.shape)),
        node.source,
    )


def emit_channels(symbol: str, cpu: Cpu, *, key: Channelwise) -> Any:
    """A row of the output, in 128 channels, an item."""
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    w = e.pointer("w", "f32") if key.kind == "conv" else None
    extras = [e.pointer(step, "f32") for step in key.epilogue if step in ("bias", "residual")]
    out = e.pointer("out", "f32")
    row = Row(e, cpu, key, x, w, extras, out)
    with e.loop(e.begin, e.end, "item") as item:
        row.locate(item)
        row.compute()
    return e.function()


class Row:
    """Writes the code of an item."""

    TILE = 8  # pixels at once, at most

    def __init__(
        self, e: Emitter, cpu: Cpu, key: Channelwise, x: Buffer, w: Buffer | None, extras: Any, out: Buffer
    ) -> None:
        self.e, self.key, self.x, self.w, self.extras, self.out = e, key, x, w, extras, out
        self.sizes = {name: e.scalar(name) for name in SIZES}
        # pixels side by side: their sums, the weights of a row of taps and a value fit the registers
        room = (cpu.vectors - 1) * cpu.lanes // LANES - min(key.kernel[1], _HELD) - 1
        self.tile = max(1, min(self.TILE, room)) if key.kind == "conv" and key.kernel[1] <= _HELD else 1

    def locate(self, item: Expr) -> None:
        """Where the item is."""
        e, s = self.e, self.sizes
        groups = e.let(div(s["channels"] + (_BLOCKS * LANES - 1), _BLOCKS * LANES))
        line = e.let(div(item, groups))
        self.start = e.let((item - line * groups) * (_BLOCKS * LANES))  # its first channel
        channels = e.let(tirx.min(s["channels"] - self.start, i64(_BLOCKS * LANES)))
        self.full = e.let(div(channels, LANES))
        self.rest = e.let(channels - self.full * LANES)
        self.place(line)

    def place(self, line: Expr) -> None:
        """Where a row of the output, counted through all images, is."""
        e, s, key = self.e, self.sizes, self.key
        image = e.let(div(line, s["rows"]))
        self.line = e.let(line * s["columns"])  # the number of the row's first pixel
        self.top = e.let((line - image * s["rows"]) * key.stride[0] - s["top"])
        self.image = e.let(image * s["height"])

    def _blocks(self, body: Callable[[Expr, Expr | None], None]) -> None:
        """`body(channels, mask)` for each 16 channels of the item, and for those that are left over."""
        e = self.e
        with e.loop(0, self.full, "block") as block:
            self._turn_to(block)
            body(i64(LANES), None)
        with e.when(self.rest > 0):
            self._turn_to(self.full)
            body(self.rest, e.first(self.rest))

    def _turn_to(self, block: Expr) -> None:
        self.channel = self.e.let(self.start + block * LANES)
        self.taps = self.e.let(self.channel * (self.key.kernel[0] * self.key.kernel[1]))

    def compute(self) -> None:
        """Pixels in strips; those whose windows reach over an end of the row read zeros there."""
        e, s, key = self.e, self.sizes, self.key
        if self.tile == 1:
            with e.loop(0, s["columns"], "column") as column:
                self.pixels(column, 1, lambda _, mask: self._pixel(column, mask))
            return
        step, reach = key.stride[1], (key.kernel[1] - 1) * key.dilation[1]
        low = e.let(tirx.min(div(s["left"] + (step - 1), step), s["columns"]))
        room = e.let(s["width"] + s["left"] - reach - 1)  # the last window that fits begins there
        high = tirx.Select(room < 0, i64(0), div(tirx.max(room, i64(0)), step) + 1)
        high = e.let(tirx.max(tirx.min(high, s["columns"]), low))
        short = s["columns"] <= self.tile  # such a row is one strip
        low = e.let(tirx.Select(short, s["columns"], low))
        high = e.let(tirx.Select(short, s["columns"], high))
        with e.loop(0, 2, "side") as side:
            first = e.let(tirx.Select(side < 1, i64(0), high))
            count = e.let(tirx.Select(side < 1, low, s["columns"] - high))
            tiles(e, first, count, self.tile, lambda at, h: self._strips(at, h, True))
        tiles(e, low, e.let(high - low), self.tile, lambda at, h: self._strips(at, h, False))

    def _strips(self, column: Expr, count: int, edge: bool) -> None:
        self.pixels(
            column,
            count,
            lambda channels, mask: self._strip(column, count, mask, channels if edge else None),
        )

    def pixels(self, column: Expr, count: int, body: Callable[[Expr, Expr | None], None]) -> None:
        """`count` pixels from `column` on: `body(channels, mask)` writes those of 16 channels of the item."""
        self._blocks(body)

    def _lines(self, body: Callable[[Expr, Expr], None]) -> None:
        """`body(row of taps, number of the first pixel of the input's row)` for the rows within the image."""
        e, s, key = self.e, self.sizes, self.key
        with e.loop(0, key.kernel[0], "r") as r:
            y = e.let(self.top + r * key.dilation[0])
            with e.when(tirx.all(y >= 0, y < s["height"])):
                body(r, e.let((self.image + y) * s["width"]))

    def _value(self, pixel: Expr, mask: Expr | None) -> Expr:
        return self.e.load(self.x, pixel * self.sizes["channels"] + self.channel, LANES, mask)

    def _value_or_zero(self, line: Expr, column: Expr, channels: Expr) -> Expr:
        """The channels of a column, zeros outside the row: of a column that there is, for where memory may end.

        A load whose lanes are all masked may lie on a page that is not mapped, but then takes hundreds of cycles.
        """
        e, width = self.e, self.sizes["width"]
        exists = tirx.all(column >= 0, column < width)
        there = e.let(tirx.max(tirx.min(column, width - 1), i64(0)))
        return self._value(line + there, e.first(e.let(tirx.Select(exists, channels, i64(0)))))

    def _weight(self, tap: Expr) -> Expr:
        return self.e.load(self.w, self.taps + tap * LANES, LANES)

    def _strip(self, column: Expr, count: int, mask: Expr | None, edge: Expr | None) -> None:
        """`count` pixels from `column` on.

        Args:
            edge: how many channels there are, where windows may reach over an end of the row.
        """
        e, key = self.e, self.key
        (_, kw), (_, step), (_, apart) = key.kernel, key.stride, key.dilation
        sums = zeros(e, count)
        left = e.let(column * step - self.sizes["left"])

        def taps(r: Expr, line: Expr) -> None:
            weights = [self._weight(r * kw + i) for i in range(kw)]
            first = e.let(line + left)
            for at in sorted({t * step + i * apart for t in range(count) for i in range(kw)}):
                if edge is None:
                    value = self._value(first + at, mask)
                else:
                    value = self._value_or_zero(line, e.let(left + at), edge)
                for t in range(count):
                    i, rest = divmod(at - t * step, apart)
                    if not rest and 0 <= i < kw:
                        e.set(sums, t, fma(weights[i], value, e.get(sums, t)))

        self._lines(taps)
        for t in range(count):
            self.store(self._finished(e.let(e.get(sums, t)), column + t, mask), column, t, mask)

    def _pixel(self, column: Expr, mask: Expr | None) -> None:
        """One pixel; taps outside the row are left out."""
        e, key = self.e, self.key
        total = e.registers(1)
        e.set(total, 0, splat(f32(float("-inf") if key.kind == "max" else 0.0)))
        left = e.let(column * key.stride[1] - self.sizes["left"])

        def taps(r: Expr, line: Expr) -> None:
            with e.loop(0, key.kernel[1], "i", unroll=key.kernel[1] <= _WRITTEN) as i:
                at = e.let(left + i * key.dilation[1])
                with e.when(tirx.all(at >= 0, at < self.sizes["width"])):
                    old, value = e.let(e.get(total)), self._value(line + at, mask)
                    e.set(total, 0, self._added(old, value, r * key.kernel[1] + i))

        self._lines(taps)
        value = e.let(e.get(total))
        if key.kind == "avg":
            value = e.let(value / splat(f32(float(key.kernel[0] * key.kernel[1]))))
        self.store(self._finished(value, column, mask), column, 0, mask)

    def _added(self, old: Expr, value: Expr, tap: Expr) -> Expr:
        if self.key.kind == "max":
            return maximum(self.e, "f32", old, value)
        return old + value if self.key.kind == "avg" else fma(self._weight(tap), value, old)

    def _at(self, column: Expr) -> Expr:
        return self.e.let((self.line + column) * self.sizes["channels"] + self.channel)

    def _finished(self, value: Expr, column: Expr, mask: Expr | None) -> Expr:
        """After the epilogue."""
        e, pending = self.e, iter(self.extras)
        for step in self.key.epilogue:
            if step == "bias":
                value = e.let(value + e.load(next(pending), self.channel, LANES))
            elif step == "residual":
                value = e.let(value + e.load(next(pending), self._at(column), LANES, mask))
            else:
                value = ACTIVATIONS[step](e, value)
        return value

    def store(self, value: Expr, column: Expr, number: int, mask: Expr | None) -> None:
        """16 channels of the pixel `number` after `column`."""
        self.e.store(self.out, self._at(column + number), value, mask)
