"""The kernel of what looks at windows of an image: a row of the output, from rows of the input in scratch.

The rows under its windows are copied with padding, and columns sorted by their remainder of the stride: then the
elements under one tap lie side by side whatever stride, padding and dilation are. Of rows of dynamic width a part is
an item, so that what it copies has a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmc.targets.cpu.conv.channel_tile import extras_of, finish, multiply
from llmc.targets.cpu.conv.pointwise import PIXELS, VECTORS
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, i64, mod, splat
from llmc.targets.tir.later import tirx
from llmc.targets.tir.scalar_ops import maximum
from llmc.targets.tir.tiling import zeros

# scalars of the kernel
_IMAGE = ("per_group", "outputs", "groups", "height", "width", "top", "left", "rows", "columns")
SIZES = (*_IMAGE, "span", "pitch")


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


class _Rows:
    """A part of an output row: the input rows under its windows in scratch, and what is computed from them.

    Attributes:
        first: its first column.
        count: how many it has: `span`, or those that are left.
    """

    def __init__(self, e: Emitter, key: Window, x: Buffer) -> None:
        self.e, self.key, self.x = e, key, x
        self.memory = e.scratch()

    def locate(self, sizes: Mapping[str, Expr], item: Expr) -> None:
        e = self.e
        self.sizes = sizes
        parts = e.let(div(sizes["columns"] + (sizes["span"] - 1), sizes["span"]))
        row = e.let(div(item, parts))
        self.first = e.let((item - row * parts) * sizes["span"])
        self.count = e.let(tirx.min(sizes["span"], sizes["columns"] - self.first))
        rest = e.let(div(row, sizes["rows"]))
        self.row = e.let(row - rest * sizes["rows"])
        self.image, self.group = e.let(div(rest, sizes["groups"])), e.let(mod(rest, sizes["groups"]))
        self.plane = e.let(rest * sizes["per_group"])  # number of the first input channel
        self.line = e.let(sizes["pitch"] * self.key.stride[1])  # elements of a row in scratch

    def copy(self, fill: float) -> None:
        """scratch[channel, window row][column mod stride][column div stride] = x, `fill` outside the image."""
        e, s, key = self.e, self.sizes, self.key
        kh, step = key.kernel[0], key.stride[1]
        shift = e.let(self.first * step - s["left"])  # column of x that comes first, from -left on
        origin, skip = e.let(tirx.max(shift, i64(0))), e.let(tirx.max(-shift, i64(0)))
        known = e.let(tirx.max(tirx.min(s["width"] - origin, self.line - skip), i64(0)))
        with e.loop(0, s["per_group"], "c") as c, e.loop(0, kh, "r") as r:
            base = e.let((c * kh + r) * self.line)
            with e.loop(0, div(self.line, LANES), "z") as z:
                e.store(self.memory, base + z * LANES, splat(f32(fill)))
            y = e.let(self.row * key.stride[0] - s["top"] + r * key.dilation[0])
            with e.when(y >= 0), e.when(y < s["height"]):
                source = e.let(((self.plane + c) * s["height"] + y) * s["width"] + origin)
                if step == 1:
                    self._copy_vectors(source, e.let(base + skip), known)
                else:
                    with e.loop(0, known, "x") as column:
                        place = e.let(column + skip)
                        at = mod(place, step) * s["pitch"] + div(place, step)
                        e.store(self.memory, base + at, e.load(self.x, source + column))

    def _copy_vectors(self, source: Expr, base: Expr, count: Expr) -> None:
        e = self.e
        with e.loop(0, div(count + (LANES - 1), LANES), "v") as v:
            mask = e.first(count - v * LANES)
            value = e.load(self.x, source + v * LANES, LANES, mask)
            e.store(self.memory, base + v * LANES, value, mask)

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

    def place(self, plane: Expr, column: Expr) -> Expr:
        """Where a column of the part lies in the output."""
        line = (plane * self.sizes["rows"] + self.row) * self.sizes["columns"]
        return self.e.let(line + self.first + column)

    def strips(self, cpu: Cpu, body: Callable[[Expr, int, Expr | None], None]) -> None:
        """`body(column, vectors, mask)` over the part; columns count from its first."""
        e, columns = self.e, self.count
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
    """A part of an output row an item, for all output channels of its group."""
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    w = e.pointer("w", "f32") if key.kind == "conv" else None
    extras, out = extras_of(e, key.epilogue), e.pointer("out", "f32")
    sizes = {name: e.scalar(name) for name in SIZES}
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
        return place < s["outputs"], channel, rows.place(plane, column)

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
    line = rows.place(plane, column)
    for v in range(vectors):
        value = e.let(e.get(total, v))
        if not highest:
            value = e.let(value / splat(f32(float(rows.key.kernel[0] * rows.key.kernel[1]))))
        e.store(out, line + v * LANES, value, mask)
