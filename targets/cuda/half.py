"""`linear` with half-precision weights on tensor cores: products of halves, sums in fp32.

A block makes 64 x 64 results with four warps, each 32 x 32 of them in four 16 x 16 accumulators. Activations are
rounded to half on their way to shared memory; 32 steps of k are staged at a time, in one of two buffers. The
accumulators leave by way of shared memory, so that the epilogue runs on whole rows.
"""

from __future__ import annotations

from typing import Any

from llmc.compiler.calls import Call
from llmc.compiler.graph import Node
from llmc.errors import LlmcError
from llmc.targets.cuda.emit import WARP, GridEmitter
from llmc.targets.cuda.operands import (
    apply_epilogue,
    epilogue_inputs,
    packed_steps,
    product_call,
    row_quad,
    tile_place,
    weight_of,
)
from llmc.targets.cuda.tile import COLUMNS, ROWS
from llmc.targets.tir.emit import Buffer, Expr, div, i64, mod
from llmc.targets.tir.later import tirx

DEPTH = 32
WARPS = 4
THREADS = WARPS * WARP
SIDE = 16  # of a fragment
OWN = 2  # fragments of a warp along rows, and along columns
LEFT, RIGHT, OUT = DEPTH + 8, COLUMNS + 8, COLUMNS + 4  # row lengths in shared memory, off the banks' period


class HalfTile:
    """The code of one block: `left(row, quad)` gives four floats of a row, `right` is the packed weight."""

    def __init__(self, k: GridEmitter, row: Expr, column: Expr, left: Any, right: Buffer, width: int) -> None:
        self.k, self.row, self.column, self.left, self.width = k, row, column, left, width
        self.right = k.alias(right, "int32")
        self.a, self.b = k.shared(2 * ROWS * LEFT, "float16"), k.shared(2 * DEPTH * RIGHT, "float16")
        self.b_words = k.alias(self.b, "int32")
        self.out = k.shared(ROWS * OUT)
        warp = k.let(div(k.thread, WARP))
        self.warp_row, self.warp_column = (
            k.let(div(warp, 2) * (ROWS // 2)),
            k.let(mod(warp, 2) * (COLUMNS // 2)),
        )

    def multiply(self, depth: int) -> Buffer:
        """The 64 x 64 sums over k in shared memory, rows of `OUT` floats."""
        k = self.k
        self.sums = k.fragments("accumulator", OWN * OWN, "float32")
        self.lefts, self.rights = (k.fragments(f"matrix_{x}", OWN, "float16") for x in "ab")
        for i in range(OWN * OWN):
            k.fragment_fill(self.sums, i)
        steps = -(-depth // DEPTH)
        self._stage(i64(0), i64(0))
        k.sync()
        with k.loop(0, steps, "step") as step:
            half = k.let(mod(step, 2))
            with k.when(step + 1 < i64(steps)):
                self._stage(k.let(step + 1), k.let(i64(1) - half))
            for at in range(0, DEPTH, SIDE):
                self._accumulate(half, at)
            k.sync()
        for i in range(OWN * OWN):
            row, column = self.warp_row + i // OWN * SIDE, self.warp_column + i % OWN * SIDE
            k.fragment_store(self.sums, i, self.out, k.let(row * OUT + column), OUT)
        k.sync()
        return self.out

    def _stage(self, step: Expr, half: Expr) -> None:
        """Rows of the left operand as halves, rows of the weight as they are, into one of the two buffers."""
        k = self.k
        quads = DEPTH // 4
        with k.loop(0, ROWS * quads // THREADS, "quad", unroll=True) as i:
            item = k.let(i * THREADS + k.thread)
            row, quad = k.let(div(item, quads)), k.let(mod(item, quads))
            target = k.let((half * ROWS + row) * LEFT + quad * 4)
            held = k.registers(4)
            values = self.left(k.let(self.row + row), k.let(step * quads + quad))
            for j, value in enumerate(values if isinstance(values, list) else [values]):
                k.store(held, j, value)
            for j in range(4):
                k.store(self.a, target + j, tirx.Cast("float16", k.get(held, j)))
        eighths = COLUMNS // 8  # of a row: eight halves are four words
        with k.loop(0, DEPTH * eighths // THREADS, "eighth", unroll=True) as i:
            item = k.let(i * THREADS + k.thread)
            row, eighth = k.let(div(item, eighths)), k.let(mod(item, eighths))
            source = (step * DEPTH + row) * (self.width // 8) + div(self.column, 8) + eighth
            target = (half * DEPTH + row) * (RIGHT // 8) + eighth
            k.store(self.b_words, k.let(target) * 4, k.load(self.right, k.let(source) * 4, 4))

    def _accumulate(self, half: Expr, at: int) -> None:
        k = self.k
        for i in range(OWN):
            row = k.let((half * ROWS + self.warp_row + i * SIDE) * LEFT + at)
            k.fragment_load(self.lefts, i, self.a, row, LEFT)
            line = k.let((half * DEPTH + at) * RIGHT + self.warp_column + i * SIDE)
            k.fragment_load(self.rights, i, self.b, line, RIGHT)
        for i in range(OWN):
            for j in range(OWN):
                k.fragment_multiply(self.sums, i * OWN + j, self.lefts, i, self.rights, j)


def linear(node: Node) -> Call:
    """out[m, n] = epilogue(half(x[m, k]) . w[n, k]^T)"""
    x, w, *extras = node.inputs
    weight = weight_of(node)
    n, depth = (int(d) for d in w.shape)
    epilogue: tuple[str, ...] = node.attributes["epilogue"]

    def emit(k: GridEmitter) -> None:
        left, right = k.pointer("x", "f32"), k.pointer("w", "f16")
        added = [k.pointer(step, "f32") for step in epilogue_inputs(epilogue)]
        out, m = k.pointer("out", "f32"), k.scalar("m")
        row, column = tile_place(k, -(-n // COLUMNS), ROWS, COLUMNS)

        def load(at: Expr, quad: Expr) -> list[Expr] | Expr:
            return row_quad(k, left, k.let(tirx.min(at, m - i64(1))), quad, depth, DEPTH)

        sums = HalfTile(k, row, column, load, right, n + -n % COLUMNS).multiply(depth)
        with k.loop(0, ROWS * COLUMNS // THREADS, "item") as i:
            item = k.let(i * THREADS + k.thread)
            near_row, near_column = k.let(div(item, COLUMNS)), k.let(mod(item, COLUMNS))
            at_row, at_column = k.let(row + near_row), k.let(column + near_column)
            with k.when(tirx.And(at_row < m, at_column < i64(n))):
                at, value = k.let(at_row * n + at_column), k.load(sums, near_row * OUT + near_column)
                k.store(out, at, apply_epilogue(k, epilogue, added, value, at_column, at))

    if any(i.dtype != "f32" for i in (x, *extras)):
        raise LlmcError(f"linear: no kernel for {x.dtype} x {w.dtype}")
    packed = packed_steps(weight, DEPTH)
    return product_call(node, "linear_half", packed, ("f32", "f16"), emit, THREADS)
