"""Products that skip zeros: weights of which blocks of outputs of one input are zero (`bitmask` of a height).

A block row is a list of blocks: the input each of them reads, in order, and its `height` weights, one for each output.
Four block rows are a panel. Each output is summed over the blocks of its row in the order of k, one fused
multiply-add for each, as everywhere: the bits are those of the dense product of finite values, which adds zeros.

Blocks of 16 are a vector of outputs: a tile of rows reads the weights once. Of 4 they are a quarter of one, too little
for many rows; then rows are the lanes: 16 to 64 of them are transposed once for all panels, and each weight is
multiplied by a vector of rows. Few rows run four block rows side by side, that no sum waits for itself. Lists differ in
length: as far as the shortest reaches all go together, and each ends alone.

Elsen, Dukhan, Gale, Simonyan 2020, "Fast Sparse ConvNets" (arXiv 1911.09723), for blocks of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import Node, Weight
from llmc.targets.cpu.products.linear import extra_operands, rows_that_fit
from llmc.targets.cpu.storage.packing import pad_columns
from llmc.targets.lowering import Lowerings
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, fma, i64, splat, vector
from llmc.targets.tir.epilogue import finish
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles
from llmc.targets.tir.transpose import load_transposed, transpose

LISTS = 4  # block rows of a panel
ROWS = 64  # of an item
HEIGHTS = (4, 16)
_MOST = 1 << 16  # inputs that an index of 16 bits can name

Array = np.ndarray[Any, Any]
Step = Callable[[int, Expr], None]  # (list, block): the products of a block


def lower_linear(node: Node) -> Call | None:
    """`linear` with a weight of blocks; None for any other."""
    x, w, *extras = node.inputs
    if (
        w.op != "bitmask"
        or w.attributes["height"] not in HEIGHTS
        or any(i.op != "constant" for i in w.inputs)
    ):
        return None
    n, k = (int(d) for d in w.shape)
    if k > _MOST:
        return None
    height, epilogue = w.attributes["height"], node.attributes["epilogue"]
    mask, values = (i.attributes["value"] for i in w.inputs)
    width = LISTS * height
    operands = (
        x,
        Packed(mask, f"starts of {k}", partial(starts, columns=k)),
        Packed(mask, f"indices of {k}", partial(indices, columns=k)),
        values_of(values),
        *extra_operands(node, extras, f"pad{width}", partial(pad_columns, width=width)),
    )
    rows = product(x.shape[:-1])
    kernel = Kernel(
        "linear_sparse",
        (n, k, height, epilogue),
        ("f32", "i32", "u8", "f32", *("f32",) * (len(operands) - 3)),
        1,
        partial(emit_linear, n=n, k=k, height=height, epilogue=epilogue),
        4 * (k * ROWS + LANES * ROWS + LANES * LANES) if height < LANES else 0,
    )
    share = values.array.size / max(1, n * k)
    return Call(
        kernel,
        (*operands, node),
        (rows,),
        -(-n // width) * ceil_div(rows, ROWS),
        int(k * share * width / LANES + 1) * sympy.Min(rows, ROWS),
        2 * rows * int(values.array.size),
        4 * rows * (k + n) + values.array.nbytes * (1 + 1 / (2 * height)),
        node.source,
    )


def values_of(weight: Weight) -> Packed:
    """As they are, and a vector of zeros that may be read past the end."""
    return Packed(weight, "blocks", lambda array: np.concatenate([array, np.zeros(LANES, np.float32)]))


def _bits(mask: Array, columns: int) -> Array:
    return np.unpackbits(mask, axis=-1, count=columns, bitorder="little")


def starts(mask: Array, columns: int) -> Array:
    """i32 [panels * LISTS + 1]: the first block of each row, and behind the last; missing rows are empty."""
    counts = _bits(mask, columns).sum(-1, dtype=np.int64)
    ends = np.cumsum(np.pad(counts, (0, -len(counts) % LISTS)))
    return np.concatenate([[0], ends]).astype(np.int32)


def indices(mask: Array, columns: int) -> Array:
    """The column of each block, 16 bits, as bytes."""
    return np.nonzero(_bits(mask, columns))[1].astype("<u2").view(np.uint8)


def emit_linear(symbol: str, cpu: Cpu, *, n: int, k: int, height: int, epilogue: tuple[str, ...]) -> Any:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T), w in blocks of `height` outputs"""
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    lists = _Lists(
        e, e.pointer("starts", "i32"), e.pointer("indices", "u8"), e.pointer("values", "f32"), height
    )
    extras = [e.pointer(step, "f32") for step in epilogue if step in ("bias", "residual")]
    out, m = e.pointer("out", "f32"), e.scalar("m")
    width = LISTS * height
    store = partial(finish, e, n=n, width=width, epilogue=epilogue, extras=extras, out=out)
    panels = -(-n // width)
    by_rows = _ByOutputs(e, cpu, x, n, k, lists, store)
    by_lanes = _ByRows(e, cpu, x, k, lists, store) if height < LANES else None
    with e.loop(e.begin, e.end, "item") as item:
        block = e.let(div(item, panels))
        panel = e.let(item - block * panels)
        with e.when(tirx.any(panel < 1, item <= e.begin)):
            last = e.let(tirx.min(i64(panels), panel + (e.end - item)))
            first = e.let(block * ROWS)
            count = e.let(tirx.min(i64(ROWS), m - first))
            if by_lanes is None:
                by_rows.all(panel, last, first, count)
            else:
                with e.when(count <= by_rows.few):
                    by_rows.all(panel, last, first, count)
                with e.when(count > by_rows.few):
                    by_lanes.all(panel, last, first, count)
    return e.function()


class _Lists:
    """The block rows of a weight."""

    def __init__(self, e: Emitter, starts: Buffer, indices: Buffer, values: Buffer, height: int) -> None:
        self.e, self.starts, self.values, self.height = e, starts, values, height
        self.indices = e.alias(indices, "uint16")

    def column(self, block: Expr) -> Expr:
        """The input that a block reads."""
        return self.e.let(tirx.Cast("int64", self.e.load(self.indices, block)))

    def together(self, row: Expr, count: int, step: Step) -> None:
        """`step` for the blocks of `count` rows from `row` on: side by side as far as the shortest reaches."""
        e = self.e
        ends = [e.let(tirx.Cast("int64", e.load(self.starts, row + i))) for i in range(count + 1)]
        if count == 1:
            with e.loop(ends[0], ends[1], "block") as block:
                step(0, block)
            return
        common = ends[1] - ends[0]
        for i in range(1, count):
            common = tirx.min(common, ends[i + 1] - ends[i])
        common = e.let(common)
        with e.loop(0, common, "block") as at:
            for i in range(count):
                step(i, e.let(ends[i] + at))
        for i in range(count):
            with e.loop(e.let(ends[i] + common), ends[i + 1], "block") as block:
                step(i, block)


class _ByOutputs:
    """Lanes are the outputs of a block."""

    def __init__(
        self, e: Emitter, cpu: Cpu, x: Buffer, n: int, k: int, lists: _Lists, store: Callable[..., None]
    ) -> None:
        self.e, self.x, self.n, self.k, self.lists, self.store = e, x, n, k, lists, store
        self.lanes = lists.height
        each = max(1, lists.height // cpu.lanes)  # registers of a block
        room = cpu.vectors - 2 - each
        self.few = max(1, min(4, room // each // LISTS))  # rows that run the lists of a panel side by side
        self.height = min(12, rows_that_fit(cpu, 1))

    def all(self, panel: Expr, last: Expr, first: Expr, count: Expr) -> None:
        """Panels panel..last of rows first..first+count."""
        e = self.e
        with e.loop(panel, last, "panel") as number:
            few = partial(self._few, e.let(number))
            if self.lanes < LANES:
                tiles(e, first, count, self.few, few)
            else:
                with e.when(count <= self.few):
                    tiles(e, first, count, self.few, few)
                with e.when(count > self.few), e.loop(0, LISTS, "list") as one:
                    with e.when(number * LANES * LISTS + one * LANES < self.n):
                        tiles(e, first, count, self.height, partial(self._tile, e.let(number * LISTS + one)))

    def _sums(self, row: Expr, rows: int, number: Expr, lists: int) -> Buffer:
        """[list][row] of the lists from `number` on."""
        e, dtype = self.e, vector("float32", self.lanes)
        acc = e.registers(lists * rows, dtype)
        for i in range(lists * rows):
            e.set(acc, i, splat(0.0, self.lanes))
        start = e.let(row * self.k)

        def step(one: int, block: Expr) -> None:
            at = e.let(start + self.lists.column(block))
            w = e.load(self.lists.values, e.let(block * self.lanes), self.lanes)
            for i in range(rows):
                a = e.let(splat(e.load(self.x, at + i * self.k), self.lanes))
                e.set(acc, one * rows + i, fma(a, w, e.get(acc, one * rows + i)))

        self.lists.together(number, lists, step)
        return acc

    def _few(self, panel: Expr, row: Expr, rows: int) -> None:
        e = self.e
        acc = self._sums(row, rows, e.let(panel * LISTS), LISTS)
        vectors = LISTS * self.lanes // LANES
        whole = e.registers(rows * vectors)
        for i in range(rows):
            held = [e.let(e.get(acc, one * rows + i)) for one in range(LISTS)]
            for j, value in enumerate(held if self.lanes == LANES else [_joined(e, held)]):
                e.set(whole, i * vectors + j, value)
        self.store(whole, row, e.let(panel * (LISTS * self.lanes)), rows, vectors)

    def _tile(self, number: Expr, row: Expr, rows: int) -> None:
        self.store(self._sums(row, rows, number, 1), row, self.e.let(number * LANES), rows, 1)


def _joined(e: Emitter, parts: Sequence[Expr]) -> Expr:
    """Vectors side by side."""
    return e.let(tirx.Shuffle(list(parts), [tirx.const(lane, "int32") for lane in range(LANES)]))


class _ByRows:
    """Lanes are rows, transposed: `[k][16 v]` for v vectors of rows."""

    def __init__(
        self, e: Emitter, cpu: Cpu, x: Buffer, k: int, lists: _Lists, store: Callable[..., None]
    ) -> None:
        self.e, self.x, self.k, self.lists, self.store = e, x, k, lists, store
        self.most = 4 if cpu.wide else 1  # vectors of rows
        self.turned = e.scratch()
        self.sums, self.result = k * ROWS, k * ROWS + LANES * ROWS  # places in the scratch memory

    def all(self, panel: Expr, last: Expr, first: Expr, count: Expr) -> None:
        """Panels panel..last of rows first..first+count."""
        e, each = self.e, self.most * LANES
        with e.loop(0, e.let(div(count + (each - 1), each)), "strip") as strip:
            row = e.let(first + strip * each)
            rows = e.let(tirx.min(i64(each), first + count - row))
            vectors = e.let(div(rows + (LANES - 1), LANES))
            self._turn(row, rows, vectors)
            with e.loop(panel, last, "panel") as number:
                for v in range(1, self.most + 1):
                    with e.when(vectors == v):
                        self._panel(e.let(number), v)
                self._store(e.let(number), row, rows, vectors)

    def _turn(self, row: Expr, rows: Expr, vectors: Expr) -> None:
        """Rows as lanes; those past the end repeat the last."""
        e, length = self.e, self.k // LANES
        stride = e.let(vectors * LANES)
        with e.loop(0, vectors, "vector") as v:
            at = [e.let((row + tirx.min(v * LANES + i, rows - 1)) * self.k) for i in range(LANES)]
            with e.loop(0, length, "piece") as piece:
                column = e.let(piece * LANES)
                self._write([e.let(a + column) for a in at], LANES, column, v, stride)
            if self.k % LANES:
                column = i64(length * LANES)
                self._write([e.let(a + column) for a in at], self.k % LANES, column, v, stride)

    def _write(self, at: list[Expr], columns: int, column: Expr, v: Expr, stride: Expr) -> None:
        e = self.e
        for i, value in enumerate(load_transposed(e, self.x, at, columns)):
            e.store(self.turned, e.let((column + i) * stride + v * LANES), value)

    def _panel(self, panel: Expr, v: int) -> None:
        """Sums of the 16 outputs of a panel: [output][row], in scratch memory."""
        side = max(1, self.most // v) if self.most > 1 else 1  # lists side by side
        for one in range(0, LISTS, side):
            self._sums(self.e.let(panel * LISTS + one), min(side, LISTS - one), v, one * self.lists.height)

    def _sums(self, number: Expr, count: int, v: int, output: int) -> None:
        e, height = self.e, self.lists.height
        acc = e.registers(count * height * v)
        for i in range(count * height * v):
            e.set(acc, i, splat(0.0))

        def step(one: int, block: Expr) -> None:
            at = e.let(self.lists.column(block) * (LANES * v))
            x = [e.load(self.turned, at + j * LANES, LANES) for j in range(v)]
            start = e.let(block * height)
            for i in range(height):
                w = e.let(splat(e.load(self.lists.values, start + i)))
                for j in range(v):
                    place = (one * height + i) * v + j
                    e.set(acc, place, fma(x[j], w, e.get(acc, place)))

        self.lists.together(number, count, step)
        for i in range(count * height):
            for j in range(v):
                e.store(self.turned, i64(self.sums + ((output + i) * v + j) * LANES), e.get(acc, i * v + j))

    def _store(self, panel: Expr, row: Expr, rows: Expr, vectors: Expr) -> None:
        e = self.e
        with e.loop(0, vectors, "vector") as v:
            held = [
                e.load(self.turned, e.let(self.sums + (vectors * i + v) * LANES), LANES) for i in range(LANES)
            ]
            for i, value in enumerate(transpose(e, held)):
                e.store(self.turned, i64(self.result + i * LANES), value)
            here = e.let(row + v * LANES)
            with e.loop(0, e.let(tirx.min(i64(LANES), rows - v * LANES)), "row") as i:
                acc = e.registers(1)
                e.set(acc, 0, e.load(self.turned, e.let(self.result + i * LANES), LANES))
                self.store(acc, e.let(here + i), e.let(panel * LANES), 1, 1)


LOWERINGS: Lowerings = {"linear": lower_linear}
