"""What the kernels of integer products share: operands, work items, and the float steps after the exact sums.

Weights are packed once for all CPUs as `[ceil(n / strip)][ceil(k / 4)][strip][4]` int8, so that 4 bytes of a row
meet 4 bytes of each of 16 columns. A panel is one strip, or two of 32 columns: AMX reads one after the other,
vectors both at once. Activations are stored as q + 128, unsigned, as `vpdpbusd` and `tdpbusd` want
one operand: sums start at -128 times the column's weights, or at -z times them where a zero point z is given.

A row may hold values in `parts` of 8 bits each, one part of all values after the other, and a column the same the
other way round (`compiler/ops/split.py`). Bracket i is then a sum of its own: the first i + 1 parts of the row times
the last i + 1 of the column, to be divided by 256^i. Plain rows have one part and one bracket.

Levels of int16 are two `pieces` of bytes, 256 h + m (`compiler/ops/int16.py`): both rows, of all h and of all m, meet
the same column, as if there were twice as many rows, and have a sum each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy

from llmc.compiler.dims import Dim, ceil_div, dim
from llmc.compiler.ops.rows import ZERO, line_stride
from llmc.targets.cpu.rows.quantised import row_scale, zero_byte
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import (
    LANES,
    Buffer,
    Emitter,
    Expr,
    div,
    f32,
    fma,
    i64,
    lanes_of,
    splat,
    vector,
)
from llmc.targets.tir.epilogue import Coming, scaled, unpadded
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import ACTIVATIONS, SHORT

STRIP = 32  # columns of two tiles
FEW_BYTES = (
    32 << 10
)  # weights that stay in an L1: of these all panels meet a block of rows before the next one does
ROWS_PER_ITEM = 128  # a panel in the cache is used for so many rows before the next one is
ROWS_TOGETHER = (
    32  # more rows are cut into halves, one for each of the pool's two stretches (runtime/c/pool.c)
)


def row_blocks(rows: Dim) -> Dim:
    """How many blocks of rows a product is cut into: of more than ROWS_TOGETHER as many for each half of the rows."""
    return dim(sympy.Min(ceil_div(rows, ROWS_TOGETHER), 2) * ceil_div(rows, 2 * ROWS_PER_ITEM))


def rows_of_block(rows: Dim) -> Dim:
    """The rows of a block, at most."""
    halved = sympy.Max(ceil_div(rows, 2), ROWS_TOGETHER)
    return dim(sympy.Min(rows, halved, ROWS_PER_ITEM))


def strip_of(width: int) -> int:
    """Columns of the strips of a panel."""
    return width if width % STRIP else STRIP


@dataclass(frozen=True)
class Item:
    """One work item: a panel of columns and a block of rows."""

    panel: Expr
    first: Expr  # row
    count: Expr
    ahead: Expr  # byte of `w` from which on this item asks for its share of the next panel
    share: Expr  # bytes of that

    def part(self, e: Emitter, row: Expr, rows: int) -> tuple[Expr, Expr]:
        """`ahead` and `share` of a tile of `rows` rows from `row` on."""
        ahead = e.let(self.ahead + div((row - self.first) * self.share, self.count))
        return ahead, e.let(div(rows * self.share, self.count))


@dataclass(frozen=True)
class Columns:
    """One vector of columns: the first, which are no padding, and what each row's sums meet there."""

    column: Expr
    mask: Expr | None
    scale: Expr | None
    bias: Mapping[int, Expr]  # by number among the operands of the epilogue


class Product:
    """The operands of a kernel `qlinear` of `n` columns and `k` products each, and what follows the sums."""

    pieces = 1  # bytes of a level of a row

    def __init__(
        self,
        e: Emitter,
        cpu: Cpu,
        n: int,
        k: int,
        width: int,
        epilogue: tuple[str, ...],
        parts: int = 1,
        zero: str = "",
        pieces: int = 1,
    ) -> None:
        self.pieces = pieces
        self._shape(e, cpu, n, k, width, epilogue, parts)
        self.rows = e.pointer("rows", "u8")
        self._operands(zero)
        self.m = e.scalar("m")
        self._aliases()
        self.row_floats = e.alias(self.rows, "float32")
        self._start_around(zero)
        self._cut_rows()

    def _shape(
        self, e: Emitter, cpu: Cpu, n: int, k: int, width: int, epilogue: tuple[str, ...], parts: int = 1
    ) -> None:
        self.e, self.cpu, self.n, self.k, self.width, self.epilogue = e, cpu, n, k, width, epilogue
        self.parts, self.part = parts, k // parts
        self.groups, self.strip = -(-k // 4), strip_of(width)
        self.panel_bytes = self.groups * 4 * width

    def _operands(self, zero: str) -> None:
        """The pointers behind the rows; `zero` is the dtype of a zero point."""
        e = self.e
        self._weights()
        self.starts, self.w_scale = e.pointer("starts", "i32"), e.pointer("w_scale", "f32")
        self.zero_at = e.pointer("zero", zero) if zero else None
        self.extras = [e.pointer(step, "f32") for step in self.epilogue if step not in ACTIVATIONS]
        self.out = e.pointer("out", "f32")

    def _weights(self) -> None:
        self.w = self.e.pointer("w", "i8")

    def _aliases(self) -> None:
        self.row_words = self.e.alias(self.rows, "int32")
        self.w_words = self.e.alias(self.w, "int32")

    def _start_around(self, zero: str) -> None:
        """Sums of bytes start at -zero times the weights, those of ARM's signed ones at (128 - zero) times them."""
        self.zero: Expr | None = None
        if self.zero_at is not None:
            taken_off = ZERO if self.cpu.machine == "aarch64" else 0
            byte = zero_byte(self.e, self.zero_at, zero)
            self.zero = self.e.let(byte - tirx.const(taken_off, "int32"))

    def _cut_rows(self) -> None:
        """Blocks of rows, as `row_blocks` counts them; a call of all items has no halves, so it reads weights once."""
        e, panels = self.e, -(-self.n // self.width)
        halves = e.let(tirx.Select(self.m > ROWS_TOGETHER, i64(2), i64(1)))
        of_half = e.let(tirx.max(div(self.m + (2 * ROWS_PER_ITEM - 1), 2 * ROWS_PER_ITEM), i64(1)))
        of_whole = e.let(tirx.max(div(self.m + (ROWS_PER_ITEM - 1), ROWS_PER_ITEM), i64(1)))
        whole = e.let(e.end - e.begin >= halves * of_half * panels)
        self.turns = e.let(tirx.Select(whole, of_whole, of_half))  # blocks that take turns on a panel
        self.blocks = e.let(tirx.Select(whole, of_whole, halves * of_half))
        self.end = e.let(tirx.Select(whole, of_whole * panels, e.end))

    @contextmanager
    def items(self) -> Iterator[Item]:
        """The work items begin..end: the rows in halves, of each the panels, of these the blocks, as equal as can be.

        Two threads that begin with a half each keep its rows in their caches from one kernel to the next. With few
        weights it is the other way round, of each block the panels: whole rows of the result are written one after
        the other, where panel by panel a large one would go from memory to the cache once for each.
        """
        e, panels, turns = self.e, -(-self.n // self.width), self.turns
        few = panels * self.panel_bytes <= FEW_BYTES
        with e.loop(e.begin, self.end, "item") as item:
            half = e.let(div(item, turns * panels))
            within = e.let(item - half * (turns * panels))
            if few:
                turn = e.let(div(within, panels))
                panel = e.let(within - turn * panels)
            else:
                panel = e.let(div(within, turns))
                turn = e.let(within - panel * turns)
            block = e.let(half * turns + turn)
            first = e.let(div(block * self.m, self.blocks))
            count = e.let(div((block + 1) * self.m, self.blocks) - first)
            share = i64(0) if few else e.let(div(i64(self.panel_bytes), turns))
            yield Item(panel, first, count, e.let((panel + 1) * self.panel_bytes + turn * share), share)

    def columns(self, column: Expr, vectors: int, lanes: int = LANES) -> list[Columns]:
        """What the rows of `vectors` times `lanes` columns share; padded columns stay unwritten."""
        return [self._columns(self.e.let(column + j * lanes), lanes) for j in range(vectors)]

    def _columns(self, column: Expr, lanes: int) -> Columns:
        e, mask = self.e, unpadded(self.e, self.n, self.width, self.within(column), lanes)
        loaded = [s for s in self.epilogue if s not in ACTIVATIONS]
        bias = {i: e.load(self.extras[i], column, lanes) for i, s in enumerate(loaded) if s == "bias"}
        return Columns(column, mask, self.scale_columns(column, lanes), bias)

    def scale_columns(self, column: Expr, lanes: int) -> Expr | None:
        """By which the sums of columns are multiplied, with their row's scale."""
        return self.e.load(self.w_scale, column, lanes)

    def store(self, row: Expr, columns: list[Columns], totals: list[Expr], lanes: int = LANES) -> None:
        """These columns of one row: total * (row scale * column scale), the epilogue."""
        e = self.e
        x_scale = e.let(splat(self.scale_of(row), lanes))
        for here, total in zip(columns, totals, strict=True):
            at = e.let(self.place(row, here.column))

            def load(number: int, step: str, here: Columns = here, at: Expr = at) -> Expr:
                return (
                    here.bias[number] if step == "bias" else e.load(self.extras[number], at, lanes, here.mask)
                )

            scale = x_scale if here.scale is None else e.let(x_scale * here.scale)
            e.store(self.out, at, scaled(e, self.epilogue, total, scale, load), here.mask)

    def scale_of(self, row: Expr) -> Expr:
        """By which the levels of a row are multiplied."""
        return row_scale(self.e, self.row_floats, row, self.pieces * self.k, self.stride)

    def within(self, column: Expr) -> Expr:
        """The number of a column of a panel among the `n`, beyond which it is padding."""
        return column

    def place(self, row: Expr, column: Expr) -> Expr:
        """Where a column of a row lies in the result."""
        return row * self.n + column

    def total(self, sums: list[Expr]) -> Expr:
        """The sums of pieces as one float; or those of brackets: the first, plus the next / 256, and so on."""
        e, lanes = self.e, lanes_of(sums[0])
        if self.pieces == 2:
            return self._joined(*sums)
        first, *others = (e.let(tirx.Cast(vector("float32", lanes), total)) for total in sums)
        for number, other in enumerate(others, 1):
            first = e.let(fma(other, splat(256.0**-number, lanes), first))
        return first

    def _joined(self, high: Expr, low: Expr) -> Expr:
        """256 high + low, as 256 times what its bits from the eighth on say, and the others."""
        e, lanes = self.e, lanes_of(high)
        eight, last = (splat(tirx.const(value, "int32"), lanes) for value in (8, 255))
        above = e.let(high + e.let(tirx.shift_right(low, eight)))
        both = (above, e.let(tirx.bitwise_and(low, last)))
        first, second = (e.let(tirx.Cast(vector("float32", lanes), part)) for part in both)
        return e.let(fma(first, splat(f32(256.0), lanes), second))

    def coming(self, row: Expr, column: Expr, rows: int, columns: int) -> Coming:
        """The residual of a tile."""
        length = self.place(i64(1), i64(0)) - self.place(i64(0), i64(0))
        return Coming(self.e, self.residual, self.place(row, column), length, rows, columns)

    @property
    def residual(self) -> Buffer | None:
        """What the epilogue adds to each element, if it does."""
        names = [step for step in self.epilogue if step not in ACTIVATIONS]
        return self.extras[names.index("residual")] if "residual" in names else None

    @property
    def long(self) -> bool:
        """Whether the epilogue has an activation whose code is long."""
        return any(step in ACTIVATIONS and step not in SHORT for step in self.epilogue)

    def start(self, column: Expr, lanes: int = LANES, bracket: Expr | int = 0) -> Expr:
        """What the sums of `lanes` columns start from."""
        padded = -(-self.n // self.width) * self.width
        starts = self.e.load(self.starts, column + bracket * padded, lanes)
        if self.zero is None:
            return starts
        sums = self.e.let(
            tirx.shift_right(starts, splat(tirx.const(7, "int32"), lanes))
        )  # -128 of them are exact
        return self.e.let(sums * splat(self.zero, lanes))

    def skipped(self, bracket: Expr | int) -> Expr | int:
        """Bytes of a column before those of a bracket."""
        return (self.parts - 1 - bracket) * self.part

    def before(self, bracket: Expr | int) -> Expr | int:
        """How many pairs of parts the brackets before this one multiply."""
        return bracket * (bracket + 1) // 2 if isinstance(bracket, int) else div(bracket * (bracket + 1), 2)

    def weights(self, column: Expr) -> Expr:
        """Where the weights of a column begin, in groups of 4 bytes."""
        first = self.e.let(div(column, self.strip) * self.strip)
        return self.e.let(first * self.groups + (column - first))

    def offset(self, column: int) -> int:
        """How far from those of the first column of a strip the weights of `column` after it begin."""
        return column // self.strip * self.groups * self.strip + column % self.strip

    @property
    def stride(self) -> int:
        """Bytes from a row to the next."""
        return line_stride(self.pieces * self.k)

    def row_start(self, row: Expr) -> Expr:
        """The first byte of a row."""
        return row * self.stride

    def row_starts(self, row: Expr) -> list[Expr]:
        """The first byte of each piece of a row."""
        return [self.row_start(row) + piece * self.k for piece in range(self.pieces)]

    def row_base(self, row: Expr) -> Any:
        """Index of the first 4 bytes of a row in `row_words`."""
        return self.e.let(row * (self.stride // 4))

    def row_bases(self, row: Expr) -> list[Any]:
        """Likewise of each piece of a row."""
        base = self.row_base(row)
        return [base, *(self.e.let(base + piece * self.k // 4) for piece in range(1, self.pieces))]


class Ahead:
    """What is asked for of `w` step by step: from byte `first` on, `step` bytes further each time.

    The place is counted up: as a multiple of the step's number it was multiplied out at each step.

    Args:
        near: into L1, else into L2.
    """

    def __init__(self, p: Product, first: Expr, step: Expr, near: bool = False) -> None:
        self.p, self.step, self.locality = p, step, 3 if near else 2
        self.place = p.e.registers(1, "int64")
        p.e.set(self.place, 0, first)

    def ask(self, columns: int) -> None:
        """The lines of 4 bytes of so many columns."""
        e = self.p.e
        first = e.let(e.get(self.place))
        for column in range(0, columns, LANES):
            e.prefetch(self.p.w, first + 4 * column, self.locality)
        e.set(self.place, 0, first + self.step)


def zero_sums(e: Emitter, count: int, lanes: int) -> Buffer:
    """`accumulators` of nothing yet."""
    acc = accumulators(e, count, lanes)
    for i in range(count):
        e.set(acc, i, splat(tirx.const(0, "int32"), lanes))
    return acc


def accumulators(e: Emitter, count: int, lanes: int) -> Buffer:
    """`count` registers of int32 sums."""
    return e.registers(count, vector("int32", lanes))
