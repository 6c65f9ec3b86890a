"""`linear` and `matmul` on the GPU in fp32: tiles of 64 x 64, epilogue fused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llmc.compiler.calls import Call
from llmc.compiler.dims import ceil_div, dim, product
from llmc.compiler.graph import Node
from llmc.errors import LlmcError
from llmc.targets.cuda import half
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import launch
from llmc.targets.cuda.operands import (
    apply_epilogue,
    epilogue_inputs,
    packed_steps,
    product_call,
    row_quad,
    tile_place,
    weight_of,
)
from llmc.targets.cuda.tile import COLUMNS, DEPTH, ROWS, THREADS, Tile
from llmc.targets.tir.emit import Buffer, Expr, div, f32, i64, mod
from llmc.targets.tir.later import tirx
from llmc.targets.tir.matrices import matrix_groups, matrix_offset


def linear(node: Node) -> Call:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T); one block for each tile, the columns of a row of tiles first."""
    x, w = node.inputs[:2]
    if w.dtype == "f16":
        return half.linear(node)
    weight = weight_of(node)
    if {i.dtype for i in node.inputs} != {"f32"}:
        raise LlmcError(f"linear: no kernel for {x.dtype} x {w.dtype}")
    n, depth = (int(d) for d in w.shape)
    epilogue: tuple[str, ...] = node.attributes["epilogue"]

    def emit(k: GridEmitter) -> None:
        left, right = k.pointer("x", "f32"), k.pointer("w", "f32")
        added = [k.pointer(step, "f32") for step in epilogue_inputs(epilogue)]
        out, m = k.pointer("out", "f32"), k.scalar("m")
        row, column = tile_place(k, -(-n // COLUMNS))
        width = n + -n % COLUMNS

        def load_left(at: Expr, quad: Expr) -> list[Expr] | Expr:
            return row_quad(k, left, k.let(tirx.min(at, m - i64(1))), quad, depth)

        def load_right(step: Expr, quad: Expr) -> Expr:
            return k.load(right, (step * (width // 4) + quad) * 4, 4)

        tile = Tile(k, row, column, load_left, load_right)

        def write(at_row: Expr, at_column: Expr, value: Expr) -> None:
            at = k.let(at_row * n + at_column)
            k.store(out, at, apply_epilogue(k, epilogue, added, value, at_column, at))

        tile.finish(tile.multiply(i64(depth)), m, i64(n), write)

    packed = packed_steps(weight, DEPTH)
    return product_call(node, "linear", packed, ("f32", "f32"), emit, THREADS)


def matmul(node: Node) -> Call:
    """out[..., m, n] = a[..., m, k] . b[..., k, n]; leading axes broadcast."""
    a, b = node.inputs
    if {a.dtype, b.dtype} != {"f32"}:
        raise LlmcError(f"matmul: no kernel for {a.dtype} x {b.dtype}")
    (m, depth), n = a.shape[-2:], b.shape[-1]
    groups = matrix_groups(node.shape[:-2], a.shape[:-2], b.shape[:-2])
    moves = tuple((in_a, in_b) for _, in_a, in_b in groups)

    def emit(k: GridEmitter) -> None:
        _emit_matmul(k, moves)

    return launch(
        node,
        "matmul",
        moves,
        emit,
        (m, depth, n, *(size for size, _, _ in groups)),
        dim(product(node.shape[:-2]) * ceil_div(m, ROWS) * ceil_div(n, COLUMNS)),
        threads=THREADS,
        flops=2 * product(node.shape) * depth,
    )


def _emit_matmul(k: GridEmitter, moves: Sequence[tuple[bool, bool]]) -> None:
    a, b, out = (k.pointer(name, "f32") for name in ("a", "b", "out"))
    m, depth, n = (k.scalar(name) for name in ("m", "k", "n"))
    sizes = [k.scalar(f"size{i}") for i in range(len(moves))]
    across, down = (k.let(div(x + (size - 1), size)) for x, size in ((n, COLUMNS), (m, ROWS)))
    tiles = k.let(across * down)
    matrix, place = k.let(div(k.block, tiles)), k.let(mod(k.block, tiles))
    row, column = k.let(div(place, across) * ROWS), k.let(mod(place, across) * COLUMNS)
    from_a, from_b = (matrix_offset(k, matrix, sizes, [move[side] for move in moves]) for side in (0, 1))
    a0, b0, c0 = k.let(from_a * m * depth), k.let(from_b * depth * n), k.let(matrix * m * n)

    def guarded(buffer: Buffer, ats: list[tuple[Expr, Expr]]) -> list[Expr]:
        """Elements where the condition holds, zeros elsewhere."""
        held = k.registers(4)
        for i, (at, inside) in enumerate(ats):
            k.set(held, i, f32(0.0))
            with k.when(inside):
                k.set(held, i, k.load(buffer, at))
        return [k.get(held, i) for i in range(4)]

    def load_left(at: Expr, quad: Expr) -> list[Expr]:
        start = k.let(a0 + at * depth + quad * 4)
        return guarded(a, [(start + i, tirx.And(at < m, quad * 4 + i < depth)) for i in range(4)])

    def load_right(step: Expr, quad: Expr) -> list[Expr]:
        start = k.let(b0 + step * n + quad * 4)
        return guarded(b, [(start + i, tirx.And(step < depth, quad * 4 + i < n)) for i in range(4)])

    tile = Tile(k, row, column, load_left, load_right)
    tile.finish(tile.multiply(depth), m, n, lambda i, j, value: k.store(out, c0 + i * n + j, value))


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"linear": linear, "matmul": matmul}
