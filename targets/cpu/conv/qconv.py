"""`qconv2d`: patches of levels in scratch, multiplied as rows of `qlinear` are, by what each CPU has for bytes.

As in `patches.py` an item copies the patches of a block of pixels, and multiplies them by one panel of the weight;
items of one block that follow each other share the copy. Levels are unsigned bytes in scratch, those of i8 + 128, as
packed rows are; around the image lies the zero point. Sums are exact in int32, so no order of them changes a bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Kernel, Operand, Packed
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rows import ZERO
from llmc.errors import LlmcError
from llmc.targets.cpu.conv.patches import SIZES, Copier, Patch, pad_groups, rows_of
from llmc.targets.cpu.products import amx, widened
from llmc.targets.cpu.products.blocking import panel_width
from llmc.targets.cpu.products.integer import Item, Product
from llmc.targets.cpu.products.linear import extra_operands
from llmc.targets.cpu.products.qlinear import WIDTHS, multiply, pack_dots, pack_starts
from llmc.targets.cpu.rows.quantised import zero_byte
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, i64, splat
from llmc.targets.tir.later import tirx

_LINE = 64  # bytes of a row of a tile, of a cache line, and of the longest piece of a copy
_UNROLLED = 8

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Cut:
    """What the code depends on besides the epilogue.

    Args:
        outputs: of a group.
        width: columns of a panel.
        rows: of an item at most.
        levels: dtype of the image.
        zero: dtype of the zero point, "" without one.
        by_image: whether each image has a scale.
    """

    patch: Patch
    outputs: int
    width: int
    rows: int
    levels: str
    zero: str
    by_image: bool

    @property
    def panels(self) -> int:
        """Of a group."""
        return -(-self.outputs // self.width)

    @property
    def first(self) -> int:
        """The number of the first patch in scratch: before it lies what the product kernel wants."""
        return -(-max(amx.scratch(), widened.scratch(self.patch.pitch)) // self.patch.pitch)

    @property
    def scratch(self) -> int:
        return (self.first + self.rows) * self.patch.pitch


def _rows_of_weight(array: Array, pitch: int) -> Array:
    """i8 `[o, c, kh, kw]` -> `[o, pitch]` in the order of patches, padded with zeros."""
    rows = array.transpose(0, 2, 3, 1).reshape(len(array), -1)
    return np.pad(rows, ((0, 0), (0, pitch - rows.shape[1])))


def pack_levels(array: Array, groups: int, width: int, pitch: int) -> Array:
    """i8 `[o, c, kh, kw]` -> panels as `pack_dots` has them, group by group."""
    return np.concatenate([pack_dots(p, width) for p in np.split(_rows_of_weight(array, pitch), groups)])


def start_levels(array: Array, groups: int, width: int) -> Array:
    """What the sums of each output start from, group by group."""
    return np.concatenate([pack_starts(p, width) for p in np.split(array.reshape(len(array), -1), groups)])


def lower_qconv2d(node: Node) -> Call:
    """Items are (block of pixels, group, panel of its output channels)."""
    q, x_scale, w, w_scale, *others = node.inputs
    if w.op != "constant" or w_scale.op != "constant":
        raise LlmcError("qconv2d: the weight is computed at run time")
    a, count = node.attributes, int(node.attributes["has_zero"])
    zero, extras = others[:count], others[count:]
    cut = _cut(node, zero)
    groups, width = cut.patch.groups, cut.width
    layout, pad = f"{groups}x{width}x{cut.patch.pitch}", partial(pad_groups, groups=groups, width=width)
    weight = w.attributes["value"]
    operands: tuple[Operand, ...] = (
        q,
        x_scale,
        Packed(
            weight, f"levels{layout}", partial(pack_levels, groups=groups, width=width, pitch=cut.patch.pitch)
        ),
        Packed(weight, f"startlevels{groups}x{width}", partial(start_levels, groups=groups, width=width)),
        Packed(w_scale.attributes["value"], f"pad{groups}x{width}", pad),
        *zero,
        *extra_operands(node, extras, f"pad{groups}x{width}", pad),
    )
    pointers = (q.dtype, "f32", "i8", "i32", "f32", *(z.dtype for z in zero), *("f32",) * (len(extras) + 1))
    emit = partial(emit_qconv2d, cut=cut, epilogue=a["epilogue"])
    kernel = Kernel("qconv2d", (cut, a["epilogue"]), pointers, len(SIZES), emit, cut.scratch)
    pixels = product(node.shape[:3])
    return Call(
        kernel,
        (*operands, node),
        (pixels, *q.shape[1:3], *a["padding"][:2], *node.shape[1:3]),
        groups * cut.panels * ceil_div(pixels, cut.rows),
        cut.patch.pitch // 4 * (width // LANES) * sympy.Min(pixels, cut.rows),
        2 * product(node.shape) * cut.patch.length,
        product(q.shape) + 4 * product(node.shape) + product(w.shape),
        node.source,
    )


def _cut(node: Node, zero: list[Node]) -> _Cut:
    a, q, w = node.attributes, node.inputs[0], node.inputs[2]
    o, channels, kh, kw = (int(d) for d in w.shape)
    groups = a["groups"]
    patch = Patch(channels, groups, (kh, kw), a["stride"], a["dilation"], _LINE)
    rows = rows_of(patch.pitch, node.shape[1:3])
    kind = "".join(z.dtype for z in zero)
    width = panel_width(o // groups, WIDTHS)
    return _Cut(patch, o // groups, width, rows, q.dtype, kind, node.inputs[1].type.rank > 0)


def emit_qconv2d(symbol: str, cpu: Cpu, *, cut: _Cut, epilogue: tuple[str, ...]) -> Any:
    """out[p, o] = epilogue(sum over r, c, i of (patch(p)[r, c, i] - zero) * w[o, r, c, i] * scales)"""
    e = Emitter(symbol)
    multiply(_Patches(e, cpu, cut, epilogue), e.scratch("int32"))
    return e.function()


class _Patches(Product):
    """A product whose rows are patches; columns are numbered over the padded panels of all groups."""

    def __init__(self, e: Emitter, cpu: Cpu, cut: _Cut, epilogue: tuple[str, ...]) -> None:
        patch = cut.patch
        self._shape(e, cpu, cut.outputs, patch.pitch, cut.width, epilogue)
        self.cut = cut
        if not cpu.tiles:
            self.part = patch.length  # what lies behind it meets weights of zero
        image = e.pointer("q", cut.levels)
        self.x_scale = e.pointer("x_scale", "f32")
        self._operands(cut.zero)
        self.sizes = {name: e.scalar(name) for name in SIZES}
        self.rows = e.scratch("uint8")
        self._aliases()
        self._start_around(cut.zero)
        self.m = self.sizes["pixels"]
        self.blocks = e.let(tirx.max(div(self.m + (cut.rows - 1), cut.rows), i64(1)))
        self.first: Expr = i64(0)  # pixel of the block whose patches lie in scratch
        fill = tirx.const(ZERO, "int32") if self.zero_at is None else zero_byte(e, self.zero_at, cut.zero)
        levels = e.alias(image, "uint8")
        around = e.let(tirx.Cast("uint8", fill))
        self.copier = _Bytes(e, patch, cut.first, levels, self.rows, self.sizes, around, cut.levels == "i8")

    @contextmanager
    def items(self) -> Iterator[Item]:
        """The panels of a block of pixels one after the other."""
        e, cut = self.e, self.cut
        each = cut.panels * cut.patch.groups
        with e.loop(e.begin, e.end, "item") as item:
            block = e.let(div(item, each))
            number = e.let(item - block * each)
            self.first = e.let(div(block * self.m, self.blocks))
            count = e.let(div((block + 1) * self.m, self.blocks) - self.first)
            group = e.let(div(number, cut.panels))
            with e.when(tirx.any(number - group * cut.panels < 1, item <= e.begin)):
                self.copier.copy(self.first, count, e.let(group * cut.patch.channels))
            share = i64(self.panel_bytes)
            yield Item(number, self.first, count, e.let((number + 1) * self.panel_bytes), share)

    @property
    def stride(self) -> int:
        return self.cut.patch.pitch

    def row_start(self, row: Expr) -> Expr:
        return (row - self.first + self.cut.first) * self.stride

    def row_base(self, row: Expr) -> Expr:
        return self.e.let((row - self.first + self.cut.first) * (self.stride // 4))

    def scale_of(self, row: Expr) -> Expr:
        if not self.cut.by_image:
            return self.e.load(self.x_scale, i64(0))
        return self.e.load(self.x_scale, div(row, self.sizes["rows"] * self.sizes["columns"]))

    def within(self, column: Expr) -> Expr:
        if self.cut.patch.groups == 1:
            return column
        padded = self.cut.panels * self.width
        return self.e.let(column - div(column, padded) * padded)

    def place(self, row: Expr, column: Expr) -> Expr:
        groups, n = self.cut.patch.groups, self.n
        if groups == 1:
            return row * n + column
        padded = self.cut.panels * self.width
        return row * (groups * n) + column - div(column, padded) * (padded - n)


def _pieces(length: int) -> Iterator[tuple[int, int]]:
    """(where, how many) of the vectors of a copy of a fixed length, which reads and writes nothing beyond it."""
    at = 0
    for lanes in (_LINE, 32, 16, 8, 4, 2, 1):
        while length - at >= lanes:
            yield at, lanes
            at += lanes


class _Bytes(Copier):
    """Patches of bytes. Behind a patch may lie anything: it meets weights of zero.

    Args:
        fill: what lies around the image.
        flip: whether the image's levels are signed.
    """

    def __init__(
        self,
        e: Emitter,
        patch: Patch,
        first: int,
        x: Buffer,
        memory: Buffer,
        sizes: dict[str, Expr],
        fill: Expr,
        flip: bool,
    ) -> None:
        super().__init__(e, patch, first, x, memory, sizes)
        self.fill, self.flip = fill, flip

    def one(self, start: Expr, image: Expr, top: Expr, left: Expr, whole: bool) -> None:
        e, s, patch = self.e, self.sizes, self.patch
        (kh, kw), channels = patch.kernel, patch.channels
        stretches = kw // patch.taps if whole else kw
        with e.loop(0, kh, "r", unroll=kh <= _UNROLLED) as r:
            y = e.let(top + r * patch.dilation[0])
            line = e.let((image + y) * s["width"])
            with e.loop(0, stretches, "tap", unroll=stretches <= _UNROLLED) as tap:
                x = e.let(left + tap * patch.dilation[1])
                source = e.let((line + x) * self.pixel + self.channel)
                target = e.let(start + (r * kw + tap) * channels)
                if whole:
                    self._copy(source, target, patch.taps * channels)
                else:
                    inside = e.let(tirx.all(y >= 0, y < s["height"], x >= 0, x < s["width"]))
                    with e.when(inside):
                        self._copy(source, target, channels)
                    with e.when(tirx.Not(inside)):
                        self._fill(target, channels)

    def _copy(self, source: Expr, target: Expr, length: int) -> None:
        e, lines = self.e, length // _LINE
        if lines > _UNROLLED:
            with e.loop(0, lines, "line") as line:
                self._piece(e.let(source + line * _LINE), e.let(target + line * _LINE), _LINE)
        done = lines * _LINE if lines > _UNROLLED else 0
        for at, lanes in _pieces(length - done):
            self._piece(source + (done + at), target + (done + at), lanes)

    def _piece(self, source: Expr, target: Expr, lanes: int) -> None:
        value = self.e.load(self.x, source, lanes)
        if self.flip:
            value = self.e.let(tirx.bitwise_xor(value, splat(tirx.const(ZERO, "uint8"), lanes)))
        self.e.store(self.memory, target, value)

    def _fill(self, target: Expr, length: int) -> None:
        e, lines = self.e, length // _LINE
        with e.loop(0, lines, "line") as line:
            e.store(self.memory, target + line * _LINE, splat(self.fill, _LINE))
        for at, lanes in _pieces(length % _LINE):
            e.store(self.memory, target + (lines * _LINE + at), splat(self.fill, lanes))
