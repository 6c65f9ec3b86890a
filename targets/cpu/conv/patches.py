"""Convolution with channels last: what lies under each window becomes a row, and rows are multiplied as everywhere.

An item copies the patches of a block of pixels into scratch, `[pixels, row, column, channel]`, padding as zeros, and
multiplies them by one panel of the weight; items of one block that follow each other share the copy. With 64 output
channels the copy costs a twentieth of the product. Sums run over (row, column, channel) of the window in order, one
fma each, so that neither blocks nor threads change a bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Kernel, Operand, Packed
from llmc.compiler.dims import Dim, ceil_div, product
from llmc.compiler.graph import Node
from llmc.targets.cpu.products.blocking import GROUP_BYTES, Schedule, panel_width
from llmc.targets.cpu.products.linear import Panel, extra_operands
from llmc.targets.cpu.storage.packing import pack_panels, pad_columns
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, i64, splat
from llmc.targets.tir.epilogue import Part, finish
from llmc.targets.tir.later import tirx

_ROWS = (24, 144)  # of an item, least and most
_STEP = 4  # rows of floats in scratch are a multiple of so many long: steps of k that are written out
_SHORT = 12  # a shorter row is not made longer: a fourth more products cost more than a loop of single steps
_UNROLLED = 8  # vectors of a copy that are written out
SIZES = ("pixels", "height", "width", "top", "left", "rows", "columns")


@dataclass(frozen=True)
class Patch:
    """What a group of channels has under a window, in stretches of memory: lines of it, or single taps.

    Args:
        channels: of the group.
        groups: of channels in a pixel.
        kernel, stride, dilation: (rows, columns).
        step: patches in scratch are a multiple of so many elements long.
    """

    channels: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    step: int = _STEP

    @property
    def length(self) -> int:
        return self.channels * self.kernel[0] * self.kernel[1]

    @property
    def pitch(self) -> int:
        """Elements from one patch to the next in scratch."""
        return -(-self.length // self.step) * self.step

    @property
    def taps(self) -> int:
        """Columns of a stretch."""
        return self.kernel[1] if self.dilation[1] == self.groups == 1 else 1


@dataclass(frozen=True)
class _Cut:
    """How the product is cut, and what of it lies in scratch: sums that wait, then patches."""

    patch: Patch
    outputs: int  # of a group
    schedule: Schedule

    @property
    def panels(self) -> int:
        return -(-self.outputs // self.schedule.width)

    @property
    def first(self) -> int:
        """The number of the first patch in scratch."""
        return -(-self.schedule.rows * self.schedule.width // self.patch.pitch)

    @property
    def scratch(self) -> int:
        """Bytes. The last vector of a copy may reach beyond its patch."""
        return 4 * ((self.first + self.schedule.rows) * self.patch.pitch + LANES)


def pack_patches(array: np.ndarray[Any, Any], groups: int, width: int, pitch: int) -> np.ndarray[Any, Any]:
    """f32 `[o, c, kh, kw]` -> panels of `[o, kh * kw * c]`, group by group, rows padded with zeros to `pitch`."""
    rows = array.transpose(0, 2, 3, 1).reshape(len(array), -1)
    padded = np.pad(rows, ((0, 0), (0, pitch - rows.shape[1])))
    return np.concatenate([pack_panels(part, width) for part in np.split(padded, groups)])


def pad_groups(array: np.ndarray[Any, Any], groups: int, width: int) -> np.ndarray[Any, Any]:
    """`[o]` -> each group's part as long as its panels."""
    return np.concatenate([pad_columns(part, width) for part in np.split(array, groups)])


def lower_patches(node: Node) -> Call:
    """Items are (block of pixels, group, panel of its output channels)."""
    a = node.attributes
    x, w, *extras = node.inputs
    o, channels, kh, kw = (int(d) for d in w.shape)
    groups = a["groups"]
    outputs = o // groups
    step = 1 if channels * kh * kw < _SHORT else _STEP
    patch = Patch(channels, groups, (kh, kw), a["stride"], a["dilation"], step)
    cut = _Cut(patch, outputs, Schedule(panel_width(outputs), rows_of(4 * patch.pitch, node.shape[1:3])))
    width = cut.schedule.width
    pack = partial(pack_patches, groups=groups, width=width, pitch=patch.pitch)
    layout = f"patches{groups}x{width}x{patch.pitch}"
    operands: tuple[Operand, ...] = (
        x,
        Packed(w.attributes["value"], layout, pack),
        *extra_operands(
            node, extras, f"pad{groups}x{width}", partial(pad_groups, groups=groups, width=width)
        ),
    )
    pixels = product(node.shape[:3])
    kernel = Kernel(
        "patches",
        (cut, a["epilogue"]),
        ("f32",) * (len(operands) + 1),
        len(SIZES),
        partial(emit_patches, cut=cut, epilogue=a["epilogue"]),
        cut.scratch,
    )
    rows = sympy.Min(pixels, cut.schedule.rows)
    return Call(
        kernel,
        (*operands, node),
        (pixels, *x.shape[1:3], *a["padding"][:2], *node.shape[1:3]),
        groups * cut.panels * ceil_div(pixels, cut.schedule.rows),
        patch.pitch * (width // LANES) * rows,
        2 * product(node.shape) * patch.length,
        4 * (product(x.shape) + product(node.shape) + product(w.shape)),
        node.source,
    )


def rows_of(size: int, image: Sequence[Dim]) -> int:
    """Of an item: as many of `size` bytes as a cache holds, all items of an image equal."""
    least, most = _ROWS
    rows = max(least, min(most, GROUP_BYTES // size))
    pixels = product(image)
    return -(-pixels // -(-pixels // rows)) if isinstance(pixels, int) and pixels else rows


def emit_patches(symbol: str, cpu: Cpu, *, cut: _Cut, epilogue: tuple[str, ...]) -> Any:
    """out[p, o] = epilogue(sum over r, c, i of patch(p)[r, c, i] * w[o, r, c, i])"""
    e = Emitter(symbol)
    x, w = e.pointer("x", "f32"), e.pointer("w", "f32")
    extras = [e.pointer(step, "f32") for step in epilogue if step in ("bias", "residual")]
    out = e.pointer("out", "f32")
    sizes = {name: e.scalar(name) for name in SIZES}
    memory, each, n, width = e.scratch(), cut.schedule.rows, cut.outputs, cut.schedule.width
    copier = _FloatCopier(e, cut, x, memory, sizes)
    with e.loop(e.begin, e.end, "item") as item:
        each_block = cut.panels * cut.patch.groups
        block = e.let(div(item, each_block))
        number = e.let(item - block * each_block)  # of the panel among those of all groups
        group = e.let(div(number, cut.panels))
        first = e.let(block * each)
        count = e.let(tirx.min(i64(each), sizes["pixels"] - first))
        with e.when(tirx.any(number - group * cut.panels < 1, item <= e.begin)):
            copier.copy(first, count, e.let(group * cut.patch.channels))
        part = Part(n * cut.patch.groups, e.let(group * n), e.let(group * (cut.panels * width)))
        store = partial(_store, e, cut, first, part, epilogue=epilogue, extras=extras, out=out)
        body = Panel(e, cpu, memory, w, cut.schedule.cut(cut.patch.pitch), cut.schedule, memory, store)
        body.rows(number, i64(cut.first), count)
    return e.function()


def _store(
    e: Emitter,
    cut: _Cut,
    first: Expr,
    part: Part,
    acc: Buffer,
    row: Expr,
    column: Expr,
    rows: int,
    vectors: int,
    **more: Any,
) -> None:
    """A tile of the patches from number `row` in scratch on, of the panels of all groups from `column` on."""
    place, within = e.let(row + (first - cut.first)), e.let(column - part.bias)
    finish(e, acc, place, within, rows, vectors, n=cut.outputs, width=cut.schedule.width, part=part, **more)


class Copier:
    """Writes the code that copies patches into scratch, one after the other in the order of their pixels.

    Args:
        first: where the patches begin, counted in patches.
    """

    def __init__(
        self, e: Emitter, patch: Patch, first: int, x: Buffer, memory: Buffer, sizes: dict[str, Expr]
    ) -> None:
        self.e, self.patch, self.first, self.x, self.memory, self.sizes = e, patch, first, x, memory, sizes

    def one(self, start: Expr, image: Expr, top: Expr, left: Expr, whole: bool) -> None:
        """The patch at `start`; `whole`: the image has all of it."""
        raise NotImplementedError

    def copy(self, first: Expr, count: Expr, channel: Expr) -> None:
        """Those of the pixels first..first+count, row by row of the output, from `channel` on."""
        e, s = self.e, self.sizes
        self.channel, self.pixel = channel, self.patch.channels * self.patch.groups
        done = e.registers(1, "int64")
        e.set(done, 0, i64(0))
        with e.repeat(e.get(done) < count):
            pixel = e.let(first + e.get(done))
            line = e.let(div(pixel, s["columns"]))
            column = e.let(pixel - line * s["columns"])
            here = e.let(tirx.min(s["columns"] - column, count - e.get(done)))
            image = e.let(div(line, s["rows"]))
            top = e.let((line - image * s["rows"]) * self.patch.stride[0] - s["top"])
            self._run(e.let(e.get(done)), here, column, e.let(image * s["height"]), top)
            e.set(done, 0, e.get(done) + here)

    def _run(self, number: Expr, count: Expr, column: Expr, image: Expr, top: Expr) -> None:
        """`count` pixels side by side from `column` on: those at the ends of the row look where the image is."""
        e, s, patch = self.e, self.sizes, self.patch
        (kh, kw), step = patch.kernel, patch.stride[1]
        reach = e.let(
            s["width"] + s["left"] - (kw - 1) * patch.dilation[1] - 1
        )  # the last window that fits is there
        fit = tirx.Select(reach < 0, i64(0), div(tirx.max(reach, i64(0)), step) + 1)
        inside = tirx.all(top >= 0, top + (kh - 1) * patch.dilation[0] < s["height"])
        low = e.let(tirx.max(div(s["left"] + (step - 1), step) - column, i64(0)))
        low = e.let(tirx.Select(inside, tirx.min(low, count), count))
        high = e.let(tirx.max(tirx.min(fit - column, count), low))
        for begin, end, whole in ((i64(0), low, False), (low, high, True), (high, count, False)):
            with e.loop(begin, end, "pixel") as pixel:
                start = e.let((number + pixel + self.first) * patch.pitch)
                self.one(start, image, top, e.let((column + pixel) * step - s["left"]), whole)


class _FloatCopier(Copier):
    """Whole vectors are stored: what reaches beyond a stretch is zeros, or written again by the next one."""

    def __init__(self, e: Emitter, cut: _Cut, x: Buffer, memory: Buffer, sizes: dict[str, Expr]) -> None:
        super().__init__(e, cut.patch, cut.first, x, memory, sizes)
        self.zero = splat(f32(0.0))

    def one(self, start: Expr, image: Expr, top: Expr, left: Expr, whole: bool) -> None:
        """All stretches of a patch, and zeros behind it."""
        self._stretches(start, image, top, left, whole)
        if self.patch.pitch > self.patch.length:
            self.e.store(self.memory, start + self.patch.length, self.zero)

    def _stretches(self, start: Expr, image: Expr, top: Expr, left: Expr, whole: bool) -> None:
        e, s, patch = self.e, self.sizes, self.patch
        (kh, kw), channels = patch.kernel, patch.channels
        with e.loop(0, kh, "r", unroll=kh <= _UNROLLED) as r:
            y = e.let(top + r * patch.dilation[0])
            line = e.let((image + y) * s["width"])
            stretches = kw // patch.taps
            with e.loop(0, stretches, "tap", unroll=stretches <= _UNROLLED) as tap:
                begin = e.let(left + tap * patch.dilation[1])
                target = e.let(start + (r * kw + tap) * channels)
                if whole:
                    self._stretch((line + begin) * self.pixel + self.channel, target)
                else:
                    self._edge(tirx.all(y >= 0, y < s["height"]), line, begin, target)

    def _stretch(self, source: Expr, target: Expr) -> None:
        """All of a stretch."""
        e, length = self.e, self.patch.taps * self.patch.channels
        source, full = e.let(source), length // LANES
        if full <= _UNROLLED:
            for v in range(full):
                e.store(self.memory, target + v * LANES, e.load(self.x, source + v * LANES, LANES))
        else:
            with e.loop(0, full, "v") as v:
                e.store(self.memory, target + v * LANES, e.load(self.x, source + v * LANES, LANES))
        if rest := length % LANES:
            value = e.load(self.x, source + full * LANES, LANES, e.first(i64(rest)))
            e.store(self.memory, target + full * LANES, value)

    def _edge(self, within: Expr, line: Expr, begin: Expr, target: Expr) -> None:
        """A stretch of which some columns, or all, are padding."""
        e, taps, channels = self.e, self.patch.taps, self.patch.channels
        with e.loop(0, -(-taps * channels // LANES), "z") as z:
            e.store(self.memory, target + z * LANES, self.zero)
        low = e.let(tirx.max(-begin, i64(0)))
        high = e.let(tirx.min(self.sizes["width"] - begin, i64(taps)))
        with e.when(tirx.all(within, high > low)):
            count = e.let((high - low) * channels)
            source = e.let((line + begin + low) * self.pixel + self.channel)
            at = e.let(target + low * channels)
            with e.loop(0, div(count + (LANES - 1), LANES), "v") as v:
                value = e.load(self.x, source + v * LANES, LANES, e.first(count - v * LANES))
                e.store(self.memory, at + v * LANES, value)
