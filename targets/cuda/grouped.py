"""Rows that lie in groups, each group times its own matrix, on the GPU: tiles that end where a group ends.

No group has more tiles than its rows fill, and one that is not full: so there are at most rows / 64 + groups + 1 in a
column, and a block finds its own by counting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmc.compiler.calls import Call
from llmc.compiler.dims import ceil_div, dim, product
from llmc.compiler.graph import Node
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import launch
from llmc.targets.cuda.tile import COLUMNS, ROWS, THREADS, Tile
from llmc.targets.tir.emit import Buffer, Expr, div, f32, i64, mod
from llmc.targets.tir.later import tirx


def grouped_matmul(node: Node) -> Call:
    """out[row, n] = x[row, k] . w[group, k, n]; a block is a tile of 64 x 64 results."""
    x, w, ends = node.inputs
    groups, depth, n = w.shape
    rows = x.shape[0]
    tiles = dim(ceil_div(dim(rows), ROWS) + groups + 1)
    return launch(
        node,
        "grouped",
        (),
        lambda k: _emit(k, ends.dtype),
        (rows, groups, depth, n),
        dim(tiles * ceil_div(dim(n), COLUMNS)),
        threads=THREADS,
        flops=dim(2 * product(node.shape) * depth),
    )


def _emit(k: GridEmitter, ends_dtype: str) -> None:
    x, w = k.pointer("x", "f32"), k.pointer("w", "f32")
    ends, out = k.pointer("ends", ends_dtype), k.pointer("out", "f32")
    rows, groups, depth, n = (k.scalar(name) for name in ("rows", "groups", "k", "n"))
    across = k.let(div(n + (COLUMNS - 1), COLUMNS))
    column = k.let(mod(k.block, across) * COLUMNS)
    group, row, stop = _place(k, ends, groups, rows, k.let(div(k.block, across)))
    matrix = k.let(tirx.min(group, groups - 1) * depth * n)
    steps = k.registers(1, "int64")
    k.set(steps, 0, i64(0))  # behind all groups nothing is summed: zeros
    with k.when(tirx.And(group < groups, row < stop)):
        k.set(steps, 0, depth)

    def guarded(buffer: Buffer, start: Expr, inside: Callable[[int], Expr]) -> list[Expr]:
        held = k.registers(4)
        for i in range(4):
            k.set(held, i, f32(0.0))
            with k.when(inside(i)):
                k.set(held, i, k.load(buffer, start + i))
        return [k.get(held, i) for i in range(4)]

    def left(at: Expr, quad: Expr) -> list[Expr]:
        start = k.let(at * depth + quad * 4)
        return guarded(x, start, lambda i: tirx.And(at < stop, quad * 4 + i < depth))

    def right(step: Expr, quad: Expr) -> list[Expr]:
        start = k.let(matrix + step * n + quad * 4)
        return guarded(w, start, lambda i: tirx.And(step < depth, quad * 4 + i < n))

    tile = Tile(k, row, column, left, right)
    sums = tile.multiply(k.let(k.get(steps)))
    tile.finish(sums, stop, n, lambda i, j, value: k.store(out, i * n + j, value))


def _place(k: GridEmitter, ends: Buffer, groups: Expr, rows: Expr, number: Expr) -> tuple[Expr, Expr, Expr]:
    """Group, first row and last row plus one of the group, of the tile with this number; none: past all rows."""
    group, row, stop, left, start = (k.registers(1, "int64") for _ in range(5))
    for register, value in ((group, groups), (row, rows), (stop, rows), (left, number), (start, i64(0))):
        k.set(register, 0, value)
    with k.loop(0, groups + 1, "g") as g:
        end = k.registers(1, "int64")
        k.set(end, 0, rows)
        with k.when(g < groups):
            stated = k.let(tirx.Cast("int64", k.load(ends, g)))
            k.set(end, 0, k.let(tirx.min(k.let(tirx.max(stated, k.let(k.get(start)))), rows)))
        first, behind, before = k.let(k.get(start)), k.let(k.get(end)), k.let(k.get(left))
        tiles = k.let(div(behind - first + (ROWS - 1), ROWS))
        with k.when(tirx.And(before >= i64(0), before < tiles)):
            k.set(group, 0, g)
            k.set(row, 0, k.let(first + before * ROWS))
            k.set(stop, 0, behind)
        k.set(left, 0, k.let(before - tiles))
        k.set(start, 0, behind)
    return k.let(k.get(group)), k.let(k.get(row)), k.let(k.get(stop))


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"grouped_matmul": grouped_matmul}
