"""Products that skip zeros: weights of which blocks of outputs of one input are zero (`bitmask` of a height).

A block row is a list of blocks: the input each of them reads, in order, and its `height` weights, one for each output.
Each output is summed over its list in the order of k, one fused multiply-add for each, as everywhere: of finite values
the bits are those of the dense product, which adds zeros.

Four lists of about one length are a panel (they are sorted by it) and run side by side; the shorter end in blocks of
zeros. Blocks of 16 are a vector of outputs: a tile of rows reads each weight once. Of 4 they are a quarter of one, and
four lists fill it for one row. For more rows the lanes are rows too: 4, 8 or 16 to 64 of them are transposed once for
all panels, and each weight meets all.

Elsen, Dukhan, Gale, Simonyan 2020, "Fast Sparse ConvNets" (arXiv 1911.09723), for blocks of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import OPS
from llmc.targets.cpu.products.linear import extra_operands, rows_that_fit
from llmc.targets.cpu.storage.block_lists import HEAD, LISTS, blocks, heads, places
from llmc.targets.cpu.storage.packing import pad_columns
from llmc.targets.lowering import Lowerings
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, fma, i64, lanes_of, splat
from llmc.targets.tir.epilogue import finish
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import ACTIVATIONS
from llmc.targets.tir.tiling import tiles, zeros
from llmc.targets.tir.transpose import transpose, unzipped, zipped

ROWS = 64  # of an item
HEIGHTS = (4, 16)
_L2 = 512 << 10  # bytes that transposed rows may take, of a cache of 1 MB
_MOST = 1 << 16  # inputs that an index of 16 bits can name

Array = np.ndarray[Any, Any]
Store = Callable[[Buffer, Expr, Expr], None]  # (a register, row, panel): the outputs of a row


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
    held: list[Weight] = [i.attributes["value"] for i in w.inputs]
    dense = Weight(OPS["bitmask"].reference(*(h.array for h in held), **w.attributes), held[1].name)
    parts = [
        Packed(dense, f"{p.__name__}{height}", partial(p, height=height)) for p in (heads, places, blocks)
    ]
    operands = (x, *parts, *extra_operands(node, extras, f"pad{LANES}", partial(pad_columns, width=LANES)))
    rows, panels, count = product(x.shape[:-1]), -(-n // (LISTS * height)), held[1].array.size
    kernel = Kernel(
        "linear_sparse",
        (n, k, height, epilogue),
        ("f32", "i32", "u8", "f32", *("f32",) * (len(operands) - 3)),
        1,
        partial(emit_linear, n=n, k=k, height=height, epilogue=epilogue),
        4 * (_strip(k) * k + 2 * LANES * ROWS) if height < LANES else 0,
    )
    return Call(
        kernel,
        (*operands, node),
        (rows,),
        panels * ceil_div(rows, ROWS),
        (count // (panels * LANES) + 1) * sympy.Min(rows, ROWS),
        2 * rows * count,
        4 * rows * (k + n) + 4 * count + 2 * count // height,
        node.source,
    )


def _strip(k: int) -> int:
    """Rows that are transposed together at most."""
    return max(LANES, min(ROWS, _L2 // (4 * k) // LANES * LANES))


def emit_linear(symbol: str, cpu: Cpu, *, n: int, k: int, height: int, epilogue: tuple[str, ...]) -> Any:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T), w in blocks of `height` outputs"""
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    parts = e.pointer("heads", "i32"), e.pointer("places", "u8"), e.pointer("values", "f32")
    panels = _Panels(e, *parts, height)
    extras = [e.pointer(step, "f32") for step in epilogue if step in ("bias", "residual")]
    out, m = e.pointer("out", "f32"), e.scalar("m")
    count = -(-n // (LISTS * height))
    vectors = by_rows = None
    if height == LANES:
        whole = partial(finish, e, n=n, width=LANES, epilogue=epilogue, extras=extras, out=out)
        vectors = _Vectors(e, cpu, x, k, panels, whole)
    else:
        by_rows = _ByRows(e, cpu, x, k, panels, partial(_store_quarters, e, panels, n, epilogue, extras, out))
    with e.loop(e.begin, e.end, "item") as item:
        block = e.let(div(item, count))
        panel = e.let(item - block * count)
        with e.when(tirx.any(panel < 1, item <= e.begin)):
            last = e.let(tirx.min(i64(count), panel + (e.end - item)))
            first = e.let(block * ROWS)
            rows = e.let(tirx.min(i64(ROWS), m - first))
            if vectors is not None:
                vectors.all(panel, last, first, rows)
            if by_rows is not None:
                with e.when(rows == 1):
                    by_rows.one(panel, last, first)
                with e.when(rows > 1):
                    by_rows.all(panel, last, first, rows)
    return e.function()


class _Panels:
    """The lists of a weight."""

    def __init__(self, e: Emitter, heads: Buffer, places: Buffer, values: Buffer, height: int) -> None:
        self.e, self.heads, self.values, self.height = e, heads, values, height
        storage = {1: "uint16", 2: "int32", 4: "int64"}
        self.places = {count: e.alias(places, dtype) for count, dtype in storage.items()}

    def head(self, panel: Expr, number: int | Expr) -> Expr:
        """A number of a panel's head."""
        return self.e.let(tirx.Cast("int64", self.e.load(self.heads, panel * HEAD + number)))

    def row(self, panel: Expr, one: int | Expr) -> Expr:
        """The block row that a list is; below 0: none."""
        return self.head(panel, one + (1 + LISTS))

    @contextmanager
    def steps(self, panel: Expr, one: int | Expr) -> Iterator[Expr]:
        """The steps of a panel that its list `one` has."""
        start = self.head(panel, 0)
        with self.e.loop(start, self.e.let(start + self.head(panel, one + 1)), "step") as step:
            yield step

    def inputs(self, step: Expr, first: int | Expr, count: int) -> list[Expr]:
        """Of lists first..first+count, a power of 2 that divides `first`: what their blocks read, by one load."""
        e = self.e
        index = e.let((step * LISTS + first) if count == 1 else div(step * LISTS + first, count))
        if count == 1:
            return [e.let(tirx.Cast("int64", e.load(self.places[1], index)))]
        whole = e.let(tirx.Cast("int64", e.load(self.places[count], index)))
        parts = [e.let(tirx.shift_right(whole, i64(16 * i))) if i else whole for i in range(count)]
        return [e.let(tirx.bitwise_and(part, i64(_MOST - 1))) for part in parts]


def _joined(e: Emitter, parts: Sequence[Expr]) -> Expr:
    """Four vectors of four lanes, side by side."""
    return e.let(tirx.Shuffle(list(parts), [tirx.const(lane, "int32") for lane in range(LANES)]))


def _store_quarters(
    e: Emitter,
    panels: _Panels,
    n: int,
    epilogue: tuple[str, ...],
    extras: list[Buffer],
    out: Buffer,
    value: Expr,
    row: Expr,
    panel: Expr,
) -> None:
    """Apply the epilogue to the outputs of a panel of a row, which lie apart by fours, and store them."""
    rows = [panels.row(panel, i) for i in range(LISTS)]
    columns = [e.let(tirx.max(r, i64(0)) * 4) for r in rows]
    base, pending = e.let(row * n), iter(extras)

    def quarters(buffer: Buffer, base: Expr | int) -> Expr:
        return _joined(e, [e.load(buffer, e.let(column + base), 4) for column in columns])

    for step in epilogue:
        if step in ("bias", "residual"):
            value = e.let(value + quarters(next(pending), 0 if step == "bias" else base))
        else:
            value = ACTIVATIONS[step](e, value)
    for i, (number, column) in enumerate(zip(rows, columns, strict=True)):
        with e.when(number >= 0):
            e.store(out, e.let(base + column), _part(e, value, i))


def _picked(e: Emitter, value: Expr, lanes: Sequence[int]) -> Expr:
    """Sixteen lanes, each one of a shorter vector's."""
    copies = [value] * (LANES // lanes_of(value))
    return e.let(tirx.Shuffle(copies, [tirx.const(lane, "int32") for lane in lanes]))


def _part(e: Emitter, value: Expr, number: int) -> Expr:
    """Four lanes of sixteen."""
    lanes = [tirx.const(4 * number + i, "int32") for i in range(4)]
    return e.let(tirx.Shuffle([value], lanes))


class _Vectors:
    """Blocks of 16: lanes are their outputs."""

    def __init__(
        self, e: Emitter, cpu: Cpu, x: Buffer, k: int, panels: _Panels, store: Callable[..., None]
    ) -> None:
        self.e, self.x, self.k, self.panels, self.store = e, x, k, panels, store
        each = LANES // cpu.lanes  # registers of a block
        self.few = max(1, min(4, (cpu.vectors - 2 - each) // each // LISTS))  # rows of all lists at once
        self.height = min(12, rows_that_fit(cpu, 1))

    def all(self, panel: Expr, last: Expr, first: Expr, count: Expr) -> None:
        """Panels panel..last of rows first..first+count."""
        e = self.e
        with e.loop(panel, last, "panel") as number:
            here = e.let(number)
            with e.when(count <= self.few):
                tiles(e, first, count, self.few, partial(self._tile, here, range(LISTS)))
            with e.when(count > self.few), e.loop(0, LISTS, "list") as one:
                tiles(e, first, count, self.height, partial(self._tile, here, (one,)))

    def _tile(self, panel: Expr, lists: Sequence[Any], row: Expr, rows: int) -> None:
        e, panels = self.e, self.panels
        acc = zeros(e, len(lists) * rows)
        start = e.let(row * self.k)
        with panels.steps(panel, lists[0]) as step:
            inputs = panels.inputs(step, lists[0], len(lists))
            for i, (one, read) in enumerate(zip(lists, inputs, strict=True)):
                at = e.let(read + start)
                w = e.load(panels.values, e.let((step * LISTS + one) * LANES), LANES)
                for r in range(rows):
                    a = e.let(splat(e.load(self.x, at + r * self.k)))
                    e.set(acc, i * rows + r, fma(a, w, e.get(acc, i * rows + r)))
        for i, one in enumerate(lists):
            number = panels.row(panel, one)
            held = e.registers(rows)
            with e.when(number >= 0):
                for r in range(rows):
                    e.set(held, r, e.get(acc, i * rows + r))
                self.store(held, row, e.let(number * LANES), rows, 1)


class _ByRows:
    """Blocks of 4: lanes are rows and outputs; of `lanes` rows x lies transposed, `[k][lanes]`, in scratch memory."""

    def __init__(
        self, e: Emitter, cpu: Cpu, x: Buffer, k: int, panels: _Panels, store: Callable[..., None]
    ) -> None:
        self.e, self.cpu, self.x, self.k, self.panels, self.store = e, cpu, x, k, panels, store
        self.most = _strip(k) if cpu.wide else LANES
        self.memory = e.scratch()
        self.sums = k * _strip(
            k
        )  # where the sums of a panel lie, [output][lanes]; behind them a transposed piece
        self.result = self.sums + LANES * ROWS

    # one row: four lists are a vector

    def one(self, panel: Expr, last: Expr, row: Expr) -> None:
        """Panels panel..last of a row, two at a time: no sum waits for itself."""
        e = self.e
        pairs = e.let(div(last - panel, 2))
        with e.loop(0, pairs, "pair") as pair:
            self._one(e.let(panel + pair * 2), 2, row)
        with e.when(panel + pairs * 2 < last):
            self._one(e.let(last - 1), 1, row)

    def _one(self, panel: Expr, count: int, row: Expr) -> None:
        """Panels are sorted: the first of two is the longer one."""
        e, panels = self.e, self.panels
        acc, base = zeros(e, count), e.let(row * self.k)
        starts = [panels.head(panel + i, 0) for i in range(count)]
        lengths = [panels.head(panel + i, 1) for i in range(count)]
        done = i64(0)
        for together in range(count, 0, -1):
            with e.loop(done, lengths[together - 1], "step") as at:
                for i in range(together):
                    self._four(acc, i, e.let(starts[i] + at), base)
            done = lengths[together - 1]
        for i in range(count):
            self.store(e.let(e.get(acc, i)), row, e.let(panel + i))

    def _four(self, acc: Buffer, i: int, step: Expr, base: Expr) -> None:
        """A block of each list."""
        e = self.e
        first, *others = self.panels.inputs(step, 0, LISTS)
        value = splat(e.load(self.x, e.let(base + first)))
        for one, place in enumerate(others, 1):
            mine = splat(e.load(self.x, e.let(base + place)))
            lanes = [tirx.const(LANES * (lane // 4 == one) + lane, "int32") for lane in range(LANES)]
            value = e.let(tirx.Shuffle([value, mine], lanes))
        w = e.load(self.panels.values, e.let(step * LANES), LANES)
        e.set(acc, i, fma(value, w, e.get(acc, i)))

    # more

    def all(self, panel: Expr, last: Expr, first: Expr, count: Expr) -> None:
        """Panels panel..last of rows first..first+count."""
        e, most = self.e, self.most
        with e.loop(0, e.let(div(count + (most - 1), most)), "strip") as strip:
            row = e.let(first + strip * most)
            rows = e.let(tirx.min(i64(most), first + count - row))
            least = 0
            for lanes in (4, 8, *range(LANES, most + 1, LANES)):
                with e.when(tirx.all(rows > least, rows <= lanes)):
                    self._strip(panel, last, row, rows, lanes)
                least = lanes

    def _strip(self, panel: Expr, last: Expr, row: Expr, rows: Expr, lanes: int) -> None:
        e = self.e
        with e.loop(0, -(-self.k // LANES), "piece") as piece:
            self._turn(row, rows, e.let(piece * LANES), lanes)
        side = self._side(lanes)
        with e.loop(panel, last, "panel") as number:
            here = e.let(number)
            with e.loop(0, LISTS // side, "lists") as lists:
                self._sums(here, e.let(lists * side), side, lanes)
            self._store(here, row, rows, lanes)

    def _side(self, lanes: int) -> int:
        """Lists whose sums fit half of the registers."""
        room = self.cpu.vectors // 2 // (4 * lanes // self.cpu.lanes)
        return max(1, min(LISTS, 1 << max(0, room.bit_length() - 1)))

    def _turn(self, row: Expr, rows: Expr, column: Expr, lanes: int) -> None:
        """16 columns of rows as lanes; those past the end repeat the last."""
        e = self.e
        left = None if self.k % LANES == 0 else e.first(i64(self.k) - column)
        for part in range(0, lanes, LANES):
            count = min(lanes - part, LANES)
            at = [e.let((row + tirx.min(i64(part + i), rows - 1)) * self.k + column) for i in range(count)]
            lines = [e.load(self.x, a, LANES, left) for a in at]
            for i, value in enumerate(transpose(e, lines) if count == LANES else zipped(e, lines)):
                place = (column + i) * lanes + part if count == LANES else column * lanes + i * LANES
                e.store(self.memory, e.let(place), value)

    def _sums(self, panel: Expr, first: Expr, side: int, lanes: int) -> None:
        """The sums of lists first..first+side of a panel to scratch memory."""
        e, panels, vectors = self.e, self.panels, max(1, lanes // LANES)
        each = 4 * lanes // LANES
        acc = zeros(e, side * each)
        with panels.steps(panel, first) as step:
            inputs = panels.inputs(step, first, side)
            weights = self._weights(e.let((step * LISTS + first) * 4), side, lanes)
            for i, (read, values) in enumerate(zip(inputs, weights, strict=True)):
                at = e.let(read * lanes)
                for j in range(each):
                    if lanes < LANES:
                        a = self._repeated(at, lanes)
                    else:
                        a = e.load(self.memory, at + j % vectors * LANES, LANES)
                    e.set(acc, i * each + j, fma(a, values[j // vectors], e.get(acc, i * each + j)))
        for j in range(side * each):
            place = e.let(first * (4 * lanes) + (self.sums + j * LANES))
            e.store(self.memory, place, e.get(acc, j))

    def _repeated(self, at: Expr, lanes: int) -> Expr:
        """x of fewer rows than lanes, for several outputs."""
        few = self.e.load(self.memory, at, lanes)
        return _picked(self.e, few, [lane % lanes for lane in range(LANES)])

    def _weights(self, at: Expr, side: int, lanes: int) -> list[list[Expr]]:
        """The four of each block, each in as many lanes as there are rows."""
        e, values, outputs = self.e, self.panels.values, LANES // lanes
        if lanes >= LANES:
            return [[e.let(splat(e.load(values, at + (4 * i + j)))) for j in range(4)] for i in range(side)]
        lines = [[j * outputs + lane // lanes for lane in range(LANES)] for j in range(4 // outputs)]
        if side == LISTS and self.cpu.wide:
            whole = e.load(values, at, LANES)
            return [[_picked(e, whole, [4 * i + n for n in line]) for line in lines] for i in range(side)]
        fours = [e.load(values, at + 4 * i, 4) for i in range(side)]
        return [[_picked(e, four, line) for line in lines] for four in fours]

    def _store(self, panel: Expr, row: Expr, rows: Expr, lanes: int) -> None:
        """The sums of a panel, a row at a time."""
        e, each = self.e, min(lanes, LANES)
        with e.loop(0, lanes // each, "vector") as v:
            if lanes < LANES:
                lines = unzipped(e, [e.load(self.memory, self.sums + i * LANES, LANES) for i in range(lanes)])
            else:
                places = [e.let(v * LANES + (self.sums + i * lanes)) for i in range(LANES)]
                lines = transpose(e, [e.load(self.memory, place, LANES) for place in places])
            for i, value in enumerate(lines):
                e.store(self.memory, self.result + i * LANES, value)
            with e.loop(0, e.let(tirx.min(i64(each), rows - v * LANES)), "row") as i:
                value = e.load(self.memory, e.let(i * LANES + self.result), LANES)
                self.store(value, e.let(row + v * LANES + i), panel)


LOWERINGS: Lowerings = {"linear": lower_linear}
