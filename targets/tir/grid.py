"""Index arithmetic shared by the generic kernels: strides, chunks, and walking a range of work items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import sympy

from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.graph import DTYPES, Node
from llmc.targets.tir.emit import LANES, Emitter, Expr, div, i64
from llmc.targets.tir.later import tirx

CHUNK = 1024  # elements of a long row that make one work item


def nbytes(*nodes: Node) -> Dim:
    """Bytes of the nodes' values together."""
    return dim(sum(product(n.shape) * DTYPES[n.dtype].itemsize for n in nodes))


def ceil_div(value: Dim, by: int) -> Dim:
    """ceil(value / by) of a dim."""
    up = dim(value + by - 1)
    return up // by if isinstance(up, int) else dim(sympy.floor(up / by))


def chunk_count(k: Emitter, length: Expr, size: int = CHUNK) -> Expr:
    """ceil(length / size) inside a kernel; `size` is a power of two."""
    return k.let(tirx.shift_right(length + i64(size - 1), i64(size.bit_length() - 1)), "chunks")


def strides(k: Emitter, extents: Sequence[Expr], present: Sequence[bool]) -> list[Expr | None]:
    """Element strides of a dense array that has only the `present` axes; None where it has not."""
    result: list[Expr | None] = []
    step: Expr = i64(1)
    for extent, has in zip(reversed(extents), reversed(present), strict=True):
        result.append(step if has else None)
        step = k.let(step * extent) if has else step
    return result[::-1]


def offset(k: Emitter, index: Sequence[Expr], steps: Sequence[Expr | None]) -> Expr:
    """sum of index * step."""
    total: Expr = i64(0)
    for i, step in zip(index, steps, strict=True):
        total = total if step is None else total + i * step
    return k.let(total, "at")


@contextmanager
def walk(k: Emitter, extents: Sequence[Expr]) -> Iterator[list[Expr]]:
    """Run the body for items begin..end of a row-major grid; yields the index along each extent.

    The first item is decoded by division, the following by carrying, so an item costs no division.
    """
    if len(extents) < 2:
        with k.loop(k.begin, k.end) as item:
            yield [item][: len(extents)]
        return
    with k.when(k.begin < k.end):
        at = k.registers(len(extents), "int64")
        rest = k.begin
        for axis in reversed(range(len(extents))):
            k.set(at, axis, tirx.truncmod(rest, extents[axis]))
            rest = k.let(tirx.truncdiv(rest, extents[axis]))
        with k.loop(k.begin, k.end):
            yield [k.let(k.get(at, axis)) for axis in range(len(extents))]
            _advance(k, at, extents, len(extents) - 1)


def _advance(k: Emitter, at: Expr, extents: Sequence[Expr], axis: int) -> None:
    following = k.let(k.get(at, axis) + i64(1))
    k.set(at, axis, following)
    if axis > 0:
        with k.when(following >= extents[axis]):
            k.set(at, axis, i64(0))
            _advance(k, at, extents, axis - 1)


def by_rows(k: Emitter, count: int, body: Callable[[list[Expr]], None]) -> None:
    """body(rows) for `count` of the items begin..end at a time, then for each of the rest alone."""
    groups = k.let(div(k.end - k.begin, count))
    with k.loop(0, groups, "group") as group:
        body([k.let(k.begin + group * count + i) for i in range(count)])
    with k.loop(k.let(k.begin + groups * count), k.end, "row") as row:
        body([row])


def columns(k: Emitter, n: int, body: Callable[[Expr, Expr | None], None]) -> None:
    """body(column, mask) for every 16 of the n columns of a row; the mask is None but for a tail."""
    with k.loop(0, n // LANES, "c") as c:
        body(k.let(c * LANES), None)
    if n % LANES:
        body(i64(n - n % LANES), k.first(i64(n % LANES)))


def vectors(k: Emitter, count: Expr, body: Callable[[Expr, Expr | None], None]) -> None:
    """`body(position, mask)` for each 16 of `count` elements; mask is None but for the rest at the end."""
    full = k.let(tirx.shift_right(count, i64(4)))
    with k.loop(0, full) as v:
        body(k.let(v * i64(LANES)), None)
    rest = k.let(tirx.bitwise_and(count, i64(LANES - 1)))
    with k.when(rest > i64(0)):
        body(k.let(full * i64(LANES)), k.first(rest))
