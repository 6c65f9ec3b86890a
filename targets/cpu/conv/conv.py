"""Convolution and pooling, 16 neighbouring columns (or pixels) of one output row in a vector.

A 1x1 convolution is a product over channels (pointwise.py). Any other one first copies the rows under
its windows into scratch, with padding, and columns sorted by their remainder of the stride: then the elements
under one tap lie side by side whatever stride, padding and dilation are.

Sums run over (channel, row, column) of the window in order, one fma for each tap, padding included, so the
bits depend neither on threads nor on vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from llmc.compiler.calls import Call, Kernel, Operand, Packed
from llmc.compiler.dims import Dim, ceil_div, product
from llmc.compiler.graph import Node
from llmc.errors import LlmcError
from llmc.targets.cpu.conv.channel_tile import CHANNELS, extras_of, finish, multiply
from llmc.targets.cpu.conv.pointwise import PIXELS, VECTORS, emit_flat
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, i64, mod, splat
from llmc.targets.tir.scalar_ops import maximum
from llmc.targets.tir.tiling import zeros

_SIZES = ("per_group", "outputs", "groups", "height", "width", "top", "left", "rows", "columns", "pitch")


@dataclass(frozen=True)
class Window:
    """What the code of a kernel depends on: the key of its `Kernel`; sizes of images and channels are scalars.

    Args:
        kind: "conv", "max" or "avg".
        kernel, stride, dilation: (rows, columns).
        tile: output channels of a register tile.
        epilogue: as the op's.
        scratch: bytes.
    """

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    tile: int
    epilogue: tuple[str, ...]
    scratch: int


def pack_channels(array: np.ndarray[Any, Any], groups: int, tile: int) -> np.ndarray[Any, Any]:
    """f32 `[o, c, kh, kw]` -> `[groups, ceil(o / groups / tile), c*kh*kw, tile]`, missing channels zero."""
    rows = array.reshape(groups, array.shape[0] // groups, -1)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % tile), (0, 0)))
    panels = padded.reshape(groups, -1, tile, rows.shape[2])
    return np.ascontiguousarray(panels.transpose(0, 1, 3, 2))


def lower_conv2d(node: Node) -> Call:
    """Items are (image, block of pixels, six channels) or (image, group, output row)."""
    a = node.attributes
    x, w, *extras = node.inputs
    if w.op != "constant":
        raise LlmcError("conv2d: the weight is computed at run time")
    sizes = _fixed(node)
    o, per_group, kh, kw = (int(d) for d in w.shape)
    groups = a["groups"]
    flat = (kh, kw) == a["stride"] == (1, 1) and groups == 1 and not any(a["padding"])
    tile = 1 if o == groups else CHANNELS
    layout = f"channels{groups}x{tile}"
    packed = Packed(w.attributes["value"], layout, partial(pack_channels, groups=groups, tile=tile))
    operands: tuple[Operand, ...] = (x, packed, *extras, node)
    panels = -(-o // groups // tile)
    flops, moved = 2 * product(node.shape) * per_group * kh * kw, _bytes(node) + 4 * product(w.shape)
    if flat:
        kernel = Kernel(
            "pointwise",
            a["epilogue"],
            ("f32",) * len(operands),
            3,
            partial(emit_flat, epilogue=a["epilogue"]),
        )
        pixels = sizes[0] * sizes[1]
        items = x.shape[0] * ceil_div(pixels, PIXELS) * panels
        cost = per_group * tile * min(VECTORS, -(-pixels // LANES))
        return Call(kernel, operands, (per_group, o, pixels), items, cost, flops, moved, node.source)
    window = ((kh, kw), a["stride"], a["dilation"])
    scalars, scratch = _scalars(node, window, per_group, o // groups, groups)
    key = Window("conv", *window, tile, a["epilogue"], scratch)
    cost = per_group * kh * (kw * panels * tile * -(-sizes[3] // LANES) + sizes[1])
    return _call(node, key, operands, scalars, x.shape[0] * groups * sizes[2], (cost, flops, moved))


def lower_pool(node: Node) -> Call:
    """Items are (image, channel, output row)."""
    a = node.attributes
    (x,) = node.inputs
    sizes = _fixed(node)
    window = (a["kernel"], a["stride"], a.get("dilation", (1, 1)))
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise LlmcError(f"{node.op}: the number of channels must be fixed, found {x.type}")
    scalars, scratch = _scalars(node, window, 1, 1, channels)
    key = Window(node.op[:3], *window, 1, (), scratch)
    taps = a["kernel"][0] * a["kernel"][1]
    cost = taps * -(-sizes[3] // LANES) + a["kernel"][0] * sizes[1]
    work = (cost, product(node.shape) * taps, _bytes(node))
    return _call(node, key, (x, node), scalars, x.shape[0] * channels * sizes[2], work)


def _call(
    node: Node, key: Window, operands: Any, scalars: tuple[int, ...], items: Dim, work: tuple[Dim, Dim, Dim]
) -> Call:
    kernel = Kernel(
        "window", key, ("f32",) * len(operands), len(_SIZES), partial(emit_window, key=key), key.scratch
    )
    return Call(kernel, operands, scalars, items, *work, node.source)


def _fixed(node: Node) -> tuple[int, int, int, int]:
    """Height and width of input and output."""
    sizes = (*node.inputs[0].shape[2:], *node.shape[2:])
    if not all(isinstance(d, int) for d in sizes):
        raise LlmcError(f"{node.op}: height and width must be fixed, found {node.inputs[0].type}")
    return sizes[0], sizes[1], sizes[2], sizes[3]


def _bytes(node: Node) -> Dim:
    images = [i for i in node.inputs if i.type.rank == 4 and i.op != "constant"]
    return 4 * sum(product(i.shape) for i in (*images, node))


def _scalars(
    node: Node, window: Any, per_group: int, outputs: int, groups: int
) -> tuple[tuple[int, ...], int]:
    """The kernel's scalars, and bytes of scratch: a power of two, so that layers share a kernel."""
    (kh, kw), (_, step), (_, dilation) = window
    height, width, rows, columns = _fixed(node)
    top, left = node.attributes["padding"][:2]
    pitch = -(-(columns + LANES + (kw - 1) * dilation // step) // LANES) * LANES
    scratch = 4 * per_group * kh * step * pitch
    sizes = (per_group, outputs, groups, height, width, top, left, rows, columns, pitch)
    return sizes, 1 << (scratch - 1).bit_length()


class _Rows:
    """One output row: the input rows under its windows in scratch, and what is computed from them."""

    def __init__(self, e: Emitter, key: Window, x: Buffer) -> None:
        self.e, self.key, self.x = e, key, x
        self.memory = e.scratch()

    def locate(self, sizes: Mapping[str, Expr], item: Expr) -> None:
        e = self.e
        self.sizes = sizes
        rest = e.let(div(item, sizes["rows"]))
        self.row = e.let(item - rest * sizes["rows"])
        self.image, self.group = e.let(div(rest, sizes["groups"])), e.let(mod(rest, sizes["groups"]))
        self.plane = e.let(rest * sizes["per_group"])  # number of the first input channel
        self.line = e.let(sizes["pitch"] * self.key.stride[1])  # elements of a row in scratch

    def copy(self, fill: float) -> None:
        """scratch[channel, window row][column mod stride][column div stride] = x, `fill` outside the image."""
        e, s, key = self.e, self.sizes, self.key
        kh, step = key.kernel[0], key.stride[1]
        known = e.let(tirx.min(s["width"], self.line - s["left"]))
        with e.loop(0, s["per_group"], "c") as c, e.loop(0, kh, "r") as r:
            base = e.let((c * kh + r) * self.line)
            with e.loop(0, div(self.line, LANES), "z") as z:
                e.store(self.memory, base + z * LANES, splat(f32(fill)))
            y = e.let(self.row * key.stride[0] - s["top"] + r * key.dilation[0])
            with e.when(y >= 0), e.when(y < s["height"]):
                source = e.let(((self.plane + c) * s["height"] + y) * s["width"])
                if step == 1:
                    self._copy_vectors(source, base, known)
                else:
                    with e.loop(0, known, "x") as column:
                        place = e.let(column + s["left"])
                        at = mod(place, step) * s["pitch"] + div(place, step)
                        e.store(self.memory, base + at, e.load(self.x, source + column))

    def _copy_vectors(self, source: Expr, base: Expr, count: Expr) -> None:
        e = self.e
        with e.loop(0, div(count + (LANES - 1), LANES), "v") as v:
            mask = e.first(count - v * LANES)
            value = e.load(self.x, source + v * LANES, LANES, mask)
            e.store(self.memory, base + self.sizes["left"] + v * LANES, value, mask)

    def taps(self, column: Expr, vectors: int, body: Callable[[Expr, list[Expr]], None]) -> None:
        """`body(number of the tap, the 16 * vectors elements under it from `column` on)`, in order."""
        e, key = self.e, self.key
        (kh, kw), step, dilation = key.kernel, key.stride[1], key.dilation[1]
        with e.loop(0, self.sizes["per_group"] * kh, "cr") as line:
            base = e.let(line * self.line + column)

            def tap(j: Any) -> None:
                shift = mod(i64(0) + j * dilation, step) * self.sizes["pitch"] + div(
                    i64(0) + j * dilation, step
                )
                at = e.let(base + shift)
                values = [e.load(self.memory, at + v * LANES, LANES) for v in range(vectors)]
                body(e.let(line * kw + j), values)

            if kw <= 7:
                for j in range(kw):
                    tap(i64(j))
            else:
                with e.loop(0, kw, "tap") as j:
                    tap(j)

    def strips(self, cpu: Cpu, body: Callable[[Expr, int, Expr | None], None]) -> None:
        """`body(column, vectors, mask)` over the output row."""
        e, columns = self.e, self.sizes["columns"]
        done: Expr = i64(0)
        if cpu.vectors >= 32:
            full = e.let(div(columns, PIXELS))
            with e.loop(0, full, "strip") as strip:
                body(e.let(strip * PIXELS), VECTORS, None)
            done = e.let(full * PIXELS)
        with e.loop(0, div(columns - done + (LANES - 1), LANES), "strip") as strip:
            column = e.let(done + strip * LANES)
            body(column, 1, e.first(columns - column))


def emit_window(symbol: str, cpu: Cpu, *, key: Window) -> Any:
    """One output row an item, for all output channels of its group."""
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    w = e.pointer("w", "f32") if key.kind == "conv" else None
    extras, out = extras_of(e, key.epilogue), e.pointer("out", "f32")
    sizes = {name: e.scalar(name) for name in _SIZES}
    rows = _Rows(e, key, x)
    with e.loop(e.begin, e.end, "item") as item:
        rows.locate(sizes, item)
        rows.copy(float("-inf") if key.kind == "max" else 0.0)
        if w is None:
            rows.strips(cpu, partial(_pool_tile, rows, out))
        else:
            with e.loop(0, div(sizes["outputs"] + (key.tile - 1), key.tile), "panel") as panel:
                rows.strips(cpu, partial(_conv_tile, rows, w, extras, out, panel))
    return e.function()


def _conv_tile(
    rows: _Rows,
    w: Buffer,
    extras: Mapping[str, list[Buffer]],
    out: Buffer,
    panel: Expr,
    column: Expr,
    vectors: int,
    mask: Expr | None,
) -> None:
    e, s, tile = rows.e, rows.sizes, rows.key.tile
    kh, kw = rows.key.kernel
    acc = zeros(e, tile * vectors)
    panels = e.let(div(s["outputs"] + (tile - 1), tile))
    weights = e.let((rows.group * panels + panel) * s["per_group"] * (kh * kw * tile))

    def tap(number: Expr, values: list[Expr]) -> None:
        multiply(e, acc, w, weights + number * tile, tile, values)

    def at(i: Expr) -> tuple[Expr, Expr, Expr]:
        place = e.let(panel * tile + i)
        channel = e.let(rows.group * s["outputs"] + place)
        plane = rows.image * s["groups"] * s["outputs"] + channel
        return place < s["outputs"], channel, e.let((plane * s["rows"] + rows.row) * s["columns"] + column)

    rows.taps(column, vectors, tap)
    finish(e, acc, tile, vectors, extras, at, out, mask, rows.key.epilogue)


def _pool_tile(rows: _Rows, out: Buffer, column: Expr, vectors: int, mask: Expr | None) -> None:
    e, s, highest = rows.e, rows.sizes, rows.key.kind == "max"
    total = e.registers(vectors)
    for v in range(vectors):
        e.set(total, v, splat(f32(float("-inf") if highest else 0.0)))

    def tap(number: Expr, values: list[Expr]) -> None:
        for v in range(vectors):
            old = e.let(e.get(total, v))
            e.set(total, v, maximum(e, "f32", old, values[v]) if highest else old + values[v])

    rows.taps(column, vectors, tap)
    plane = rows.image * s["groups"] + rows.group
    line = e.let((plane * s["rows"] + rows.row) * s["columns"] + column)
    for v in range(vectors):
        value = e.let(e.get(total, v))
        if not highest:
            value = e.let(value / splat(f32(float(rows.key.kernel[0] * rows.key.kernel[1]))))
        e.store(out, line + v * LANES, value, mask)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "conv2d": lower_conv2d,
    "max_pool2d": lower_pool,
    "avg_pool2d": lower_pool,
}
