"""Convolution of 3x3 taps by tiles: 16 products for each 2x2 pixels of the result, where windows take 36.

It is F(2x2, 3x3) of A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015. A tile is 4x4
pixels of the image, from tile to tile two further, and Y = A^T [(G g G^T) * (B^T d B)] A, summed over channels within
the brackets. An item transforms a block of tiles into scratch, `[16][tile][channel]`, multiplies each of the 16 places
by one panel of the weight's, and makes pixels of the sums; items of one block that follow each other share the first
step. Every step has a fixed order (docs/numerics.md), so that neither blocks nor threads change a bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import Dim, ceil_div, dim, product
from llmc.compiler.graph import Node
from llmc.targets.cpu.products.blocking import Blocking, Schedule, panel_width
from llmc.targets.cpu.products.linear import Panel, extra_operands
from llmc.targets.cpu.storage.packing import pack_panels, pad_columns
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, i64
from llmc.targets.tir.epilogue import finish
from llmc.targets.tir.later import tirx

SIZES = ("tiles", "height", "width", "top", "left", "rows", "columns")
_PLACES = 16  # of a tile
_STEP = 4  # rows in scratch are a multiple of so many floats long: steps of the sums that are written out
_ROWS = (12, 28)  # tiles of an item at most, by narrow panels and by wide ones
_SCRATCH = 1 << 20  # bytes: with many channels there are fewer tiles


@dataclass(frozen=True)
class _Cut:
    """How the products are cut, and what lies in scratch: sums that wait, transformed tiles, complete sums.

    Args:
        outputs: channels of the result.
        schedule: its rows are tiles.
    """

    channels: int
    outputs: int
    schedule: Schedule

    @property
    def pitch(self) -> int:
        """Floats of a tile's place."""
        return -(-self.channels // _STEP) * _STEP

    @property
    def panels(self) -> int:
        return -(-self.outputs // self.schedule.width)

    @property
    def blocking(self) -> Blocking:
        return self.schedule.cut(self.pitch)

    @property
    def first(self) -> int:
        """The number of the first row of the first place."""
        waiting = self.schedule.rows * self.schedule.width if self.blocking.blocks > 1 else 0
        return -(-waiting // self.pitch)

    @property
    def stride(self) -> int:
        """Rows from a place to the next: an odd number, or all places of a tile would meet in one set of a cache."""
        return self.schedule.rows | 1

    @property
    def sums(self) -> int:
        """Where the complete sums lie, `[tile][16][width]`, in floats."""
        return -(-(self.first + _PLACES * self.stride) * self.pitch // LANES) * LANES

    @property
    def scratch(self) -> int:
        """Bytes."""
        return 4 * (self.sums + self.schedule.rows * _PLACES * self.schedule.width)


def _weights(g: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """G g along the first axis: in an order of its own, for the bits must not depend on who compiles."""
    return np.stack([g[0], ((g[0] + g[1]) + g[2]) / 2, ((g[0] - g[1]) + g[2]) / 2, g[2]])


def pack_winograd(array: np.ndarray[Any, Any], width: int, pitch: int) -> np.ndarray[Any, Any]:
    """f32 `[o, c, 3, 3]` -> G g G^T in float64, rounded once, by panels `[o / width, 16, pitch, width]`."""
    o, c = array.shape[:2]
    rows = _weights(array.transpose(2, 3, 0, 1).astype(np.float64))
    places = _weights(rows.swapaxes(0, 1)).swapaxes(0, 1).astype(np.float32).reshape(_PLACES, o, c)
    padded = np.pad(places, ((0, 0), (0, 0), (0, pitch - c)))
    return np.stack([pack_panels(place, width) for place in padded], axis=1)


def lower_winograd(node: Node) -> Call:
    """Items are (block of tiles, panel of output channels)."""
    x, w, *extras = node.inputs
    epilogue = node.attributes["epilogue"]
    outputs, channels = (int(d) for d in w.shape[:2])
    down, across = (ceil_div(d, 2) for d in node.shape[1:3])
    width = panel_width(outputs)
    cut = _Cut(channels, outputs, Schedule(width, _rows(channels, width, dim(down * across))))
    pack = partial(pack_winograd, width=width, pitch=cut.pitch)
    operands = (
        x,
        Packed(w.attributes["value"], f"winograd{width}x{cut.pitch}", pack),
        *extra_operands(node, extras, f"pad{width}", partial(pad_columns, width=width)),
    )
    kernel = Kernel(
        "winograd",
        (cut, epilogue),
        ("f32",) * (len(operands) + 1),
        len(SIZES),
        partial(emit_winograd, cut=cut, epilogue=epilogue),
        cut.scratch,
    )
    tiles, products = dim(node.shape[0] * down * across), _PLACES * outputs * channels
    return Call(
        kernel,
        (*operands, node),
        (tiles, *x.shape[1:3], *node.attributes["padding"][:2], *node.shape[1:3]),
        cut.panels * ceil_div(tiles, cut.schedule.rows),
        _PLACES * cut.pitch * (width // LANES) * sympy.Min(tiles, cut.schedule.rows),
        2 * tiles * products,
        4 * (product(x.shape) + product(node.shape) + products),
        node.source,
    )


def _rows(channels: int, width: int, tiles: Dim) -> int:
    """Tiles of an item: as many as lie in the caches, all items of an image equal."""
    room = _SCRATCH // (4 * _PLACES * (channels + 2 * width))
    most = max(1, min(_ROWS[width > 2 * LANES], room))
    return -(-tiles // -(-tiles // most)) if isinstance(tiles, int) and tiles else most


def emit_winograd(symbol: str, cpu: Cpu, *, cut: _Cut, epilogue: tuple[str, ...]) -> Any:
    """A block of tiles, in one panel of output channels, an item."""
    e = Emitter(symbol)
    x, w = e.pointer("x", "f32"), e.pointer("w", "f32")
    extras = [e.pointer(step, "f32") for step in epilogue if step in ("bias", "residual")]
    out = e.pointer("out", "f32")
    sizes = {name: e.scalar(name) for name in SIZES}
    memory, each = e.scratch(), cut.schedule.rows
    grid = _Grid(e, sizes)
    tiles, sums = _Tiles(e, cut, grid, x, memory), _Sums(e, cut, grid, memory)
    width = cut.schedule.width
    store = partial(finish, e, n=cut.outputs, width=width, epilogue=epilogue, extras=extras, out=out)
    with e.loop(e.begin, e.end, "item") as item:
        block = e.let(div(item, cut.panels))
        panel = e.let(item - block * cut.panels)
        first = e.let(block * each)
        count = e.let(tirx.min(i64(each), sizes["tiles"] - first))
        with e.when(tirx.any(panel < 1, item <= e.begin)):
            tiles.transform(first, count)
        with e.loop(0, _PLACES, "place") as place:
            start, number = e.let(place * cut.stride + cut.first), e.let(panel * _PLACES + place)
            keep = partial(sums.keep, place, start, number)
            Panel(e, cpu, memory, w, cut.blocking, cut.schedule, memory, keep).rows(number, start, count)
        sums.transform(first, count, panel, store)
    return e.function()


class _Grid:
    """Where tiles are, which are counted row by row through all images."""

    def __init__(self, e: Emitter, sizes: dict[str, Expr]) -> None:
        self.e, self.sizes = e, sizes
        self.across, self.down = (e.let(div(sizes[name] + 1, 2)) for name in ("columns", "rows"))

    def place(self, tile: Expr) -> tuple[Expr, Expr, Expr]:
        """The image, the row and the column of a tile, counted in tiles."""
        e = self.e
        line = e.let(div(tile, self.across))
        image = e.let(div(line, self.down))
        return image, e.let(line - image * self.down), e.let(tile - line * self.across)


class _Tiles:
    """Writes the code that transforms tiles of the image. Of one beside another, two columns are new."""

    def __init__(self, e: Emitter, cut: _Cut, grid: _Grid, x: Buffer, memory: Buffer) -> None:
        self.e, self.cut, self.grid, self.x, self.memory = e, cut, grid, x, memory
        self.columns = e.registers(_PLACES)  # of the tile, each transformed: [column][row]

    def transform(self, first: Expr, count: Expr) -> None:
        """B^T d B of the tiles first..first+count, those side by side in turn."""
        e, s = self.e, self.grid.sizes
        done = e.registers(1, "int64")
        e.set(done, 0, i64(0))
        with e.repeat(e.get(done) < count):
            image, row, column = self.grid.place(e.let(first + e.get(done)))
            here = e.let(tirx.min(self.grid.across - column, count - e.get(done)))
            self.left = e.let(column * 2 - s["left"])
            self._lines(e.let(image * s["height"]), e.let(row * 2 - s["top"]))
            self._run(e.let(e.get(done)), here)
            e.set(done, 0, e.get(done) + here)

    def _lines(self, image: Expr, top: Expr) -> None:
        """The four rows under the tiles: those that the image has not lie on others, and count as zeros."""
        e, s = self.e, self.grid.sizes
        ys = [e.let(top + r) for r in range(4)]
        self.inside = tirx.all(top >= 0, top + 3 < s["height"])
        self.exist = [e.let(tirx.Select(tirx.all(y >= 0, y < s["height"]), i64(1), i64(0))) for y in ys]
        there = [e.let(tirx.max(tirx.min(y, s["height"] - 1), i64(0))) for y in ys]
        self.starts = [e.let((image + y) * s["width"]) for y in there]

    def _run(self, number: Expr, count: Expr) -> None:
        """`count` tiles side by side: the new columns of those from `low` to `high` are in the image."""
        e, width = self.e, self.grid.sizes["width"]
        low = e.let(tirx.max(div(1 - tirx.min(self.left + 2, i64(0)), 2), i64(0)))
        low = e.let(tirx.Select(self.inside, tirx.min(low, count), count))
        high = e.let(div(tirx.max(width - self.left - 2, i64(0)), 2))
        high = e.let(tirx.max(tirx.min(high, count), low))
        parts = ((i64(0), low, False), (low, high, True), (high, count, False))
        full, rest = divmod(self.cut.channels, LANES)
        if full:
            with e.loop(0, full, "v") as v:
                self._channels(number, e.let(v * LANES), LANES, parts)
        if rest:
            self._channels(number, i64(full * LANES), rest, parts)

    def _channels(self, number: Expr, channel: Expr, lanes: int, parts: Sequence[Any]) -> None:
        """All tiles of a run, in `lanes` channels."""
        e, cut = self.e, self.cut
        self.channel, self.mask = channel, None if lanes == LANES else e.first(i64(lanes))
        self.counts = [e.let(exists * lanes) for exists in self.exist]
        padded = -(-lanes // _STEP) * _STEP
        kept = None if padded == LANES else e.first(i64(padded))
        for i in (0, 1):
            self._column(i, e.let(self.left + i), False)
        for begin, end, whole in parts:
            with e.loop(begin, end, "tile") as tile:
                for i in (2, 3):
                    self._column(i, e.let(self.left + tile * 2 + i), whole)
                self._store(e.let((number + tile + cut.first) * cut.pitch + channel), kept)

    def _column(self, at: int, x: Expr, whole: bool) -> None:
        """B^T of the tile's column `at`, which is x of the image; `whole`: the image has all of it."""
        e, width = self.e, self.grid.sizes["width"]
        masks: list[Expr | None] = [self.mask] * 4
        if not whole:
            exists = tirx.all(x >= 0, x < width)
            masks = [e.first(e.let(tirx.Select(exists, count, i64(0)))) for count in self.counts]
            x = e.let(tirx.max(tirx.min(x, width - 1), i64(0)))
        places = [e.let((start + x) * self.cut.channels + self.channel) for start in self.starts]
        values = [e.load(self.x, at, LANES, mask) for at, mask in zip(places, masks, strict=True)]
        for r, value in enumerate(_tile(e, values)):
            e.set(self.columns, at * 4 + r, value)

    def _store(self, start: Expr, mask: Expr | None) -> None:
        """The rows times B. The last two columns are the next tile's first."""
        e, columns, cut = self.e, self.columns, self.cut
        for r in range(4):
            row = [e.let(e.get(columns, i * 4 + r)) for i in range(4)]
            for i, value in enumerate(_tile(e, row)):
                e.store(self.memory, start + (r * 4 + i) * (cut.stride * cut.pitch), value, mask)
            for i in (0, 1):
                e.set(columns, i * 4 + r, row[i + 2])


def _tile(e: Emitter, d: Sequence[Expr]) -> list[Expr]:
    """B^T d"""
    return [e.let(d[0] - d[2]), e.let(d[1] + d[2]), e.let(d[2] - d[1]), e.let(d[1] - d[3])]


def _pixels(e: Emitter, m: Sequence[Expr]) -> list[Expr]:
    """A^T m"""
    together, apart = e.let(m[0] + m[1]), e.let(m[1] - m[2])
    return [e.let(together + m[2]), e.let(apart - m[3])]


class _Sums:
    """Writes the code that keeps the sums of each place, and makes pixels of them."""

    def __init__(self, e: Emitter, cut: _Cut, grid: _Grid, memory: Buffer) -> None:
        self.e, self.cut, self.grid, self.memory = e, cut, grid, memory
        self.width = cut.schedule.width

    def keep(
        self,
        place: Expr,
        start: Expr,
        number: Expr,
        acc: Buffer,
        row: Expr,
        column: Expr,
        rows: int,
        vectors: int,
    ) -> None:
        """A register tile of the place whose rows begin at `start`, of the panel `number` of all places."""
        e, width = self.e, self.width
        first = e.let(((row - start) * _PLACES + place) * width + (column - number * width) + self.cut.sums)
        for i, j in np.ndindex(rows, vectors):
            at = first + (i * _PLACES * width + j * LANES)
            e.store(self.memory, at, e.get(acc, i * vectors + j))

    def transform(self, first: Expr, count: Expr, panel: Expr, store: Any) -> None:
        """A^T m A of each tile, and what `store` makes of one or two pixels of a row."""
        e, s, width = self.e, self.grid.sizes, self.width
        with e.loop(0, count, "tile") as tile:
            image, row, column = self.grid.place(e.let(first + tile))
            y, x = e.let(row * 2), e.let(column * 2)
            pixel = e.let((image * s["rows"] + y) * s["columns"] + x)
            with e.loop(0, width // LANES, "v") as v:
                start = e.let(tile * (_PLACES * width) + v * LANES + self.cut.sums)
                column = e.let(panel * width + v * LANES)
                for r, pair in enumerate(self._pairs(start)):
                    there = e.let(pixel + r * s["columns"])
                    with e.when(tirx.all(y + r < s["rows"], x + 1 < s["columns"])):
                        store(pair, there, column, 2, 1)
                    with e.when(tirx.all(y + r < s["rows"], x + 1 >= s["columns"])):
                        store(pair, there, column, 1, 1)

    def _pairs(self, start: Expr) -> list[Buffer]:
        """Two rows of two pixels, of the sums from `start` on."""
        e = self.e
        halves = []
        for i in range(4):
            sums = [e.load(self.memory, start + (r * 4 + i) * self.width, LANES) for r in range(4)]
            halves.append(_pixels(e, sums))
        pairs = [e.registers(2) for _ in range(2)]
        for r, pair in enumerate(pairs):
            for i, value in enumerate(_pixels(e, [half[r] for half in halves])):
                e.set(pair, i, value)
        return pairs
