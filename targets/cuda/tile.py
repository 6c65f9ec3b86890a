"""The tile of a product: 64 x 64 results of a block in registers, operands staged through shared memory.

Each of 256 threads holds 4 x 4 results. Sixteen steps of k at a time go through one of two shared buffers: while one
is multiplied, the next is on its way from global memory, so there is one barrier for each sixteen steps. Every
result is accumulated over k in order by fused multiply-adds, the same bits as the CPU kernels'.

An int8 product is the same tile of words: four values of k in each, multiplied by `dp4a` into exact int32 sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.tir.emit import Buffer, Expr, div, fma, i64, mod
from llmc.targets.tir.later import tirx

ROWS, COLUMNS, DEPTH = 64, 64, 16
THREADS = 256
OWN = 4  # rows, and columns, of one thread
PAD = 4  # floats between rows of the left tile, so that its transposed stores spread over the banks
_PER_THREAD = ROWS * DEPTH // THREADS

Load = Callable[[Expr, Expr], list[Expr] | Expr]


@dataclass
class Tile:
    """One block's tile at `row`, `column`.

    Args:
        left: (row, q) -> elements 4 q to 4 q + 3 of a row of the left operand; zeros beyond its end. Four values,
            or one vector of four.
        right: (k, q) -> elements of columns 4 q to 4 q + 3 in step k; zeros beyond the end of k.
        turned: `right` is as `left`: (column, q) -> steps 4 q to 4 q + 3 of k.
    """

    k: GridEmitter
    row: Expr
    column: Expr
    left: Load
    right: Load
    words: bool = False  # of four int8 values instead of floats; "k" counts words then
    turned: bool = False

    @property
    def dtype(self) -> str:
        return "int32" if self.words else "float32"

    @property
    def wide(self) -> int:
        """Elements from a row of the right tile to the next."""
        return COLUMNS + PAD if self.turned else COLUMNS

    def add_product(self, a: Expr, b: Expr, total: Expr) -> Expr:
        """total + a b"""
        if self.words:
            return tirx.call_pure_extern("int32", "__dp4a", a, b, total)
        return fma(a, b, total)

    def multiply(
        self, depth: Expr, join: Callable[[Buffer, Expr], None] | None = None, every: int = DEPTH
    ) -> Buffer:
        """The sum over `depth` steps of k: 16 registers, [own row][own column].

        Args:
            join: called with the sums behind each `every` steps, a part of sixteen, and how often it was before.
        """
        k = self.k
        acc = k.registers(OWN * OWN, self.dtype)
        self.next = k.registers(2 * _PER_THREAD, self.dtype)
        self.a = k.shared(2 * DEPTH * (ROWS + PAD), self.dtype)
        self.b = k.shared(2 * DEPTH * self.wide, self.dtype)
        with k.loop(0, OWN * OWN, unroll=True) as i:
            k.set(acc, i, tirx.const(0, self.dtype))
        steps = k.let(div(depth + i64(DEPTH - 1), DEPTH))
        self._fetch(i64(0))
        self._put(i64(0))
        k.sync()
        with k.loop(0, steps, "step") as step:
            more = k.let(step + 1 < steps)
            half = k.let(mod(step, 2))
            with k.when(more):
                self._fetch(k.let((step + 1) * DEPTH))
            for part in range(DEPTH // every if join else 1):
                self._accumulate(acc, half, part * every, every if join else DEPTH)
                if join is not None:
                    join(acc, k.let(step * (DEPTH // every) + part))
            with k.when(more):
                self._put(k.let(i64(1) - half))
            k.sync()
        return acc

    def _fetch(self, at: Expr) -> None:
        """This thread's part of the next steps, from global memory into registers."""
        k = self.k
        row, quad = k.let(self.row + div(k.thread, 4)), k.let(div(at, 4) + mod(k.thread, 4))
        self._hold(0, self.left(row, quad))
        if self.turned:
            self._hold(_PER_THREAD, self.right(k.let(self.column + div(k.thread, 4)), quad))
            return
        step, quad = k.let(at + div(k.thread, 16)), k.let(div(self.column, 4) + mod(k.thread, 16))
        self._hold(_PER_THREAD, self.right(step, quad))

    def _hold(self, at: int, values: list[Expr] | Expr) -> None:
        for i, value in enumerate(values if isinstance(values, list) else [values]):
            self.k.store(self.next, at + i, value)

    def _put(self, half: Expr) -> None:
        """The registers into shared memory: the left operand transposed, so that k comes first in both."""
        k = self.k
        for i in range(_PER_THREAD):
            line = k.let(half * DEPTH + mod(k.thread, 4) * 4 + i)
            k.store(self.a, line * (ROWS + PAD) + div(k.thread, 4), k.get(self.next, i))
            if self.turned:
                k.store(self.b, line * self.wide + div(k.thread, 4), k.get(self.next, _PER_THREAD + i))
        if self.turned:
            return
        line = k.let(half * DEPTH + div(k.thread, 16))
        at = line * COLUMNS + mod(k.thread, 16) * 4
        k.store(self.b, at, k.load(self.next, _PER_THREAD, _PER_THREAD))

    def _accumulate(self, acc: Buffer, half: Expr, first: int, count: int) -> None:
        k = self.k
        with k.loop(0, count, "at", unroll=True) as inner:
            line = k.let(half * DEPTH + (inner + first))
            pair = k.registers(2 * OWN, self.dtype)
            k.store(pair, 0, k.load(self.a, line * (ROWS + PAD) + div(k.thread, 16) * OWN, OWN))
            k.store(pair, OWN, k.load(self.b, line * self.wide + mod(k.thread, 16) * OWN, OWN))
            for i in range(OWN):
                for j in range(OWN):
                    at = i * OWN + j
                    k.set(acc, at, self.add_product(k.get(pair, i), k.get(pair, OWN + j), k.get(acc, at)))

    def finish(
        self, acc: Buffer, rows: Expr, columns: Expr, body: Callable[[Expr, Expr, Expr], None]
    ) -> None:
        """`body(row, column, value)` for this thread's results within `rows` x `columns`."""
        k = self.k
        first_row = k.let(self.row + div(k.thread, 16) * OWN)
        first_column = k.let(self.column + mod(k.thread, 16) * OWN)
        with k.loop(0, OWN, unroll=True) as i, k.loop(0, OWN, unroll=True) as j:
            row, column = k.let(first_row + i), k.let(first_column + j)
            value = k.let(k.get(acc, i * OWN + j))
            with k.when(tirx.And(row < rows, column < columns)):
                body(row, column, value)
