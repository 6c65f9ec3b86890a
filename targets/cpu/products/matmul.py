"""Products of two computed operands: register tiles straight from row-major memory, leading axes broadcast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import sympy

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import Node
from llmc.errors import LlmcError
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, fma, i64, splat
from llmc.targets.tir.later import tirx
from llmc.targets.tir.matrices import matrix_groups, matrix_offset
from llmc.targets.tir.tiling import tiles, zeros

ROWS_PER_ITEM = 48


def lower_matmul(node: Node) -> Call:
    """Items are (matrix of the batch, block of rows)."""
    a, b = node.inputs
    if {a.dtype, b.dtype} != {"f32"}:
        raise LlmcError(f"matmul: no kernel for {a.dtype} x {b.dtype}")
    (m, k), n = a.shape[-2:], b.shape[-1]
    groups = matrix_groups(node.shape[:-2], a.shape[:-2], b.shape[:-2])
    moves = tuple((in_a, in_b) for _, in_a, in_b in groups)
    sizes = tuple(size for size, _, _ in groups)
    kernel = Kernel("matmul", moves, ("f32",) * 3, 3 + len(moves), partial(emit_matmul, moves=moves))
    batch = product(node.shape[:-2])
    return Call(
        kernel,
        (a, b, node),
        (m, k, n, *sizes),
        batch * ceil_div(m, ROWS_PER_ITEM),
        k * ceil_div(n, LANES) * sympy.Min(m, ROWS_PER_ITEM),
        2 * product(node.shape) * k,
        4 * (product(a.shape) + product(b.shape) + product(node.shape)),
        node.source,
    )


def emit_matmul(symbol: str, cpu: Cpu, *, moves: tuple[tuple[bool, bool], ...]) -> Any:
    """out[..., m, n] = a[..., m, k] . b[..., k, n], k in order"""
    e = Emitter(symbol)
    a, b, out = (e.pointer(name, "f32") for name in ("a", "b", "out"))
    m, k, n = (e.scalar(name) for name in "mkn")
    sizes = [e.scalar(f"size{i}") for i in range(len(moves))]
    wide = cpu.wide
    blocks = e.let(div(m + (ROWS_PER_ITEM - 1), ROWS_PER_ITEM))
    with e.loop(e.begin, e.end, "item") as item:
        matrix = e.let(div(item, blocks))
        first = e.let((item - matrix * blocks) * ROWS_PER_ITEM)
        from_a, from_b = (matrix_offset(e, matrix, sizes, [move[side] for move in moves]) for side in (0, 1))
        a0, b0, c0 = e.let(from_a * m * k), e.let(from_b * k * n), e.let(matrix * m * n)
        rows = e.let(tirx.min(i64(ROWS_PER_ITEM), m - first))

        matrices = Matrices(e, (a, b, out), (a0, b0, c0), k, n)
        if wide:
            with e.loop(0, div(n, 3 * LANES), "strip") as s:
                matrices.strip(e.let(s * (3 * LANES)), 3, False, 8, first, rows)
            done = e.let(div(n, 3 * LANES) * (3 * LANES))
        else:
            done = i64(0)
        with e.loop(0, div(n - done + (LANES - 1), LANES), "strip") as s:
            matrices.strip(e.let(done + s * LANES), 1, True, 12 if wide else 4, first, rows)
    return e.function()


@dataclass(frozen=True)
class Matrices:
    """Row-major a `[m, k]`, b `[k, n]` and their product.

    Args:
        at: of each the pointer, and the element at which it starts.
    """

    e: Emitter
    buffers: tuple[Buffer, Buffer, Buffer]
    at: tuple[Expr, Expr, Expr]
    k: Expr
    n: Expr

    def strip(self, column: Expr, vectors: int, masked: bool, height: int, first: Expr, rows: Expr) -> None:
        """Columns from `column` on, `vectors` * 16 of them, of `rows` rows, in tiles of up to `height` rows."""
        e, (a, b, out), (a0, b0, c0), n = self.e, self.buffers, self.at, self.n
        mask = e.first(n - column) if masked else None

        def tile(row: Expr, h: int) -> None:
            acc = zeros(e, h * vectors)
            bases = [e.let(a0 + (row + i) * self.k) for i in range(h)]
            with e.loop(0, self.k, "k") as step:
                line = e.let(b0 + step * n + column)
                values = [e.load(b, line + j * LANES, LANES, mask) for j in range(vectors)]
                for i in range(h):
                    left = e.let(splat(e.load(a, bases[i] + step)))
                    for j in range(vectors):
                        e.set(acc, i * vectors + j, fma(left, values[j], e.get(acc, i * vectors + j)))
            for i in range(h):
                line = e.let(c0 + (row + i) * n + column)
                for j in range(vectors):
                    e.store(out, line + j * LANES, e.get(acc, i * vectors + j), mask)

        tiles(e, first, rows, height, tile)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"matmul": lower_matmul}
