"""Convolution and pooling on the GPU: one thread a pixel of the output, in several channels if they share their input.

Plain: each thread reads its windows from memory, where its neighbours' reads fall into the same lines, and the
weights, which all of a warp read at once, from the cache. Sums run over (channel, row, column) of the window in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmc.compiler.calls import Call
from llmc.compiler.dims import Dim, product
from llmc.compiler.graph import Node
from llmc.errors import LlmcError
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import flat
from llmc.targets.tir.emit import Buffer, Expr, f32, fma, i64
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import ACTIVATIONS
from llmc.targets.tir.scalar_ops import maximum

CHANNELS = 8  # of a thread
_SIZES = (
    "per_group",
    "outputs",
    "groups",
    "panels",
    "height",
    "width",
    "top",
    "left",
    "rows",
    "columns",
    "size",
)


@dataclass(frozen=True)
class _Window:
    """What the code depends on: (rows, columns) of each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    def taps(
        self,
        k: GridEmitter,
        x: Buffer,
        s: Mapping[str, Expr],
        place: Sequence[Expr],
        body: Callable[..., None],
    ) -> None:
        """`body(number of the tap, the element under it)` for taps within the image; `place`: plane, row, column."""
        plane, row, column = place
        y0, x0 = k.let(row * self.stride[0] - s["top"]), k.let(column * self.stride[1] - s["left"])
        (kh, kw), (down, across) = self.kernel, self.dilation
        with k.loop(0, s["per_group"], "c") as c, k.loop(0, kh, "i") as i:
            y = k.let(y0 + i * down)
            with k.when(tirx.And(y >= i64(0), y < s["height"])), k.loop(0, kw, "j") as j:
                at = k.let(x0 + j * across)
                with k.when(tirx.And(at >= i64(0), at < s["width"])):
                    line = ((plane + c) * s["height"] + y) * s["width"]
                    body(k.let((c * kh + i) * kw + j), k.load(x, line + at))


def _scalars(node: Node, channels: tuple[int, int, int, int], size: Dim) -> tuple[Dim, ...]:
    top, left = node.attributes["padding"][:2]
    return (*channels, *node.inputs[0].shape[2:], top, left, *node.shape[2:], size)


@dataclass(frozen=True)
class _Conv:
    """A thread's convolution: `tile` neighbouring channels of one group."""

    window: _Window
    tile: int
    epilogue: tuple[str, ...]

    def emit(self, k: GridEmitter) -> None:
        """The whole kernel."""
        x, w = k.pointer("x", "f32"), k.pointer("w", "f32")
        extras = [k.pointer("extra", "f32") for step in self.epilogue if step not in ACTIVATIONS]
        out, s = k.pointer("out", "f32"), {name: k.scalar(name) for name in _SIZES}
        with k.each(s["size"]) as item:
            grid = [i64(1), s["groups"], s["panels"], s["rows"], s["columns"]]
            image, group, panel, row, column = k.decode(item, grid)
            number, first = k.let(image * s["groups"] + group), k.let(panel * self.tile)
            sums = self._sums(k, w, s, k.let(group * s["outputs"]), first)
            self.window.taps(k, x, s, (number * s["per_group"], row, column), sums.add)
            for i in range(self.tile):
                with k.when(first + i < s["outputs"]):
                    plane = number * s["outputs"] + first + i
                    at = k.let((plane * s["rows"] + row) * s["columns"] + column)
                    channel = k.let(group * s["outputs"] + first + i)
                    k.store(out, at, self._finished(k, extras, sums.of(i), channel, at))

    def _sums(self, k: GridEmitter, w: Buffer, s: Mapping[str, Expr], group: Expr, first: Expr) -> _Sums:
        taps = k.let(s["per_group"] * (self.window.kernel[0] * self.window.kernel[1]))
        # a channel beyond the last is the last once more, and not stored
        places = [k.let(tirx.min(first + i, s["outputs"] - 1)) for i in range(self.tile)]
        return _Sums(k, w, [k.let((group + place) * taps) for place in places])

    def _finished(
        self, k: GridEmitter, extras: Sequence[Buffer], value: Expr, channel: Expr, at: Expr
    ) -> Expr:
        pending = iter(extras)
        for step in self.epilogue:
            if step in ACTIVATIONS:
                value = ACTIVATIONS[step](k, value)
            else:
                value = k.let(value + k.load(next(pending), channel if step == "bias" else at))
        return value


class _Sums:
    """A thread's sums over the taps, one for each channel, whose weights begin at `starts`."""

    def __init__(self, k: GridEmitter, w: Buffer, starts: Sequence[Expr]) -> None:
        self.k, self.w, self.starts = k, w, starts
        self.held = k.registers(len(starts))
        for i in range(len(starts)):
            k.set(self.held, i, f32(0.0))

    def add(self, tap: Expr, value: Expr) -> None:
        for i, start in enumerate(self.starts):
            weight = self.k.load(self.w, start + tap)
            self.k.set(self.held, i, fma(weight, value, self.k.get(self.held, i)))

    def of(self, channel: int) -> Expr:
        return self.k.let(self.k.get(self.held, channel))


def _want_first(node: Node) -> None:
    if node.attributes["channels_last"]:
        raise LlmcError(f"{node.op}: no kernel for channels last", hint="leave out the pass channels-last")


def conv2d(node: Node) -> Call:
    """A thread computes up to `CHANNELS` neighbouring channels of one group."""
    _want_first(node)
    a, (o, per_group, *kernel) = node.attributes, (int(d) for d in node.inputs[1].shape)
    outputs = o // a["groups"]
    window, tile = _Window((kernel[0], kernel[1]), a["stride"], a["dilation"]), min(CHANNELS, outputs)
    conv, panels = _Conv(window, tile, a["epilogue"]), -(-outputs // tile)
    size = product((node.shape[0], a["groups"] * panels, *node.shape[2:]))
    scalars = _scalars(node, (per_group, outputs, a["groups"], panels), size)
    flops = 2 * product(node.shape) * per_group * kernel[0] * kernel[1]
    return flat(node, "window", ("conv", conv), conv.emit, scalars, size, flops)


def pool2d(node: Node) -> Call:
    """max_pool2d and avg_pool2d"""
    _want_first(node)
    a, highest = node.attributes, node.op == "max_pool2d"
    window = _Window(a["kernel"], a["stride"], a.get("dilation", (1, 1)))

    def emit(k: GridEmitter) -> None:
        x, out, s = k.pointer("x", "f32"), k.pointer("out", "f32"), {n: k.scalar(n) for n in _SIZES}
        with k.each(s["size"]) as item:
            place = k.decode(item, [i64(1), s["rows"], s["columns"]])
            total = k.registers(1)
            k.set(total, 0, f32(float("-inf") if highest else 0.0))

            def tap(_: Expr, value: Expr) -> None:
                old: Any = k.let(k.get(total))
                k.set(total, 0, maximum(k, "f32", old, value) if highest else old + value)

            window.taps(k, x, s, place, tap)
            result = k.let(k.get(total))
            taps = f32(float(a["kernel"][0] * a["kernel"][1]))
            k.store(out, item, result if highest else k.let(result / taps))

    size = product(node.shape)
    return flat(node, "window", (node.op, window), emit, _scalars(node, (1, 1, 1, 1), size), size, size)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "conv2d": conv2d,
    "max_pool2d": pool2d,
    "avg_pool2d": pool2d,
}
