"""Values written at indices: a copy, then one place after the other, so that what meets does so in index order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmc.compiler.calls import Call
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import same_dim
from llmc.targets.cpu.elementwise.movement import copy_run, move_call
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, i64
from llmc.targets.tir.grid import ceil_div, chunk_count, vectors, walk
from llmc.targets.tir.later import tirx
from llmc.targets.tir.places import combined
from llmc.targets.tir.strides import clamped

WIDTH = 64  # neighbouring lines of one item


def scatter(node: Node) -> Call:
    """x[outer, n, inner] with updates[outer, m, inner]; one item is 64 lines side by side."""
    x, index, updates = node.inputs
    axis, reduce = node.attributes["axis"], node.attributes["reduce"]
    outer, inner = product(x.shape[:axis]), product(x.shape[axis + 1 :])
    single, shared = same_dim(inner, 1), index.type.rank < x.type.rank
    sizes = (x.shape[axis], updates.shape[axis], inner)

    def emit(k: Emitter) -> None:
        source, places = k.pointer("x", x.dtype), k.pointer("index", index.dtype)
        given, target = k.pointer("updates", x.dtype), k.pointer("y", x.dtype)
        n, m, width = (k.scalar(name) for name in ("n", "m", "inner"))
        lines = i64(1) if single else width
        with walk(k, [k.end, chunk_count(k, lines, WIDTH)]) as (row, chunk):
            start = k.let(chunk * i64(WIDTH))
            count = k.let(tirx.min(lines - start, i64(WIDTH)))
            base = k.let(row * n * lines + start)
            if single:
                copy_run(k, source, base, target, base, n)
            else:
                with k.loop(0, n) as i:
                    at = k.let(base + i * lines)
                    copy_run(k, source, at, target, at, count)
            with k.loop(0, m) as j:
                read = k.let((row * m + j) * lines + start)
                if shared:
                    at = k.let(base + clamped(k, k.load(places, j), n) * lines)
                    _put_run(k, reduce, x.dtype, target, at, given, read, count)
                else:
                    with k.loop(0, count) as i:
                        at = clamped(k, k.load(places, k.let(read + i)), n)
                        at = k.let(base + at * lines + i)
                        new = k.load(given, k.let(read + i))
                        k.store(target, at, combined(k, reduce, x.dtype, k.load(target, at), new))

    items = dim(outer * ceil_div(inner, WIDTH))
    each = 1 if single else WIDTH // LANES if shared else WIDTH
    cost = dim(4 + each * (x.shape[axis] + 4 * updates.shape[axis]))
    return move_call(node, ("scatter", reduce, single, shared), emit, sizes, items, cost)


def _put_run(
    k: Emitter, reduce: str, dtype: str, target: Buffer, at: Expr, given: Buffer, read: Expr, count: Expr
) -> None:
    """`count` neighbouring lines at once."""

    def body(position: Expr, mask: Any) -> None:
        old = k.load(target, k.let(at + position), LANES, mask)
        new = k.load(given, k.let(read + position), LANES, mask)
        k.store(target, k.let(at + position), combined(k, reduce, dtype, old, new), mask)

    vectors(k, count, body)


LOWERINGS: dict[str, Callable[[Node], Call]] = {"scatter": scatter}
