"""Batches without their padding: where the kept places of a mask lie, and their rows put back.

A mask is walked by one work item: it is small, and a place's number depends on all places before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmc.compiler.calls import Call
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.targets.cpu.elementwise.movement import copy_run, fill_run, move_call
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, i64
from llmc.targets.tir.grid import ceil_div
from llmc.targets.tir.later import tirx
from llmc.targets.tir.scalar_ops import constant

# (flat place, kept places before it, whether it is a token, whether it is kept)
Visit = Callable[[Expr, Expr, Expr, Expr], None]


def _is_token(k: Emitter, mask: Buffer, place: Expr) -> Expr:
    """1 where the mask is not 0."""
    return tirx.Cast("int64", tirx.Cast("int64", k.load(mask, place)) != i64(0))


def _walk(k: Emitter, mask: Buffer, count: Buffer, row: Expr, columns: Expr, visit: Visit) -> None:
    """`visit` every place of one row of the mask; `count` goes on counting what is kept."""
    tokens = k.registers(1, "int64")
    k.set(tokens, 0, i64(0))
    with k.loop(0, columns, "column") as column:
        k.set(tokens, 0, k.get(tokens) + _is_token(k, mask, row * columns + column))
    bare = k.let(tirx.EQ(k.let(k.get(tokens)), i64(0)))
    with k.loop(0, columns, "column") as column:
        flat = k.let(row * columns + column)
        token = k.let(_is_token(k, mask, flat) > i64(0))
        keep = k.let(tirx.Or(tirx.Or(token, column == i64(0)), bare))
        before = k.let(k.get(count))
        visit(flat, before, token, keep)
        k.set(count, 0, before + tirx.Cast("int64", keep))


def _mask_call(node: Node, emit: Callable[[Emitter, Buffer, Buffer, Buffer, Expr, Expr], None]) -> Call:
    """A kernel of one item that goes over a mask: emit(k, mask, result, count, rows, columns)."""
    (mask,) = node.inputs

    def function(k: Emitter) -> None:
        flags, target = k.pointer("mask", mask.dtype), k.pointer("y", node.dtype)
        rows, columns = k.scalar("rows"), k.scalar("columns")
        count = k.registers(1, "int64")
        with k.loop(k.begin, k.end):
            k.set(count, 0, i64(0))
            emit(k, flags, target, count, rows, columns)

    return move_call(node, (node.op,), function, mask.shape, 1, product(mask.shape))


def pack_index(node: Node) -> Call:
    """The flat places that are kept."""

    def emit(k: Emitter, mask: Buffer, target: Buffer, count: Buffer, rows: Expr, columns: Expr) -> None:
        def visit(flat: Expr, before: Expr, token: Expr, keep: Expr) -> None:
            with k.when(keep):  # one element beyond the last is not ours
                k.store(target, before, flat)

        with k.loop(0, rows, "row") as row:
            _walk(k, mask, count, row, columns, visit)

    return _mask_call(node, emit)


def pack_offsets(node: Node) -> Call:
    """How many places are kept before each row, and in all."""

    def emit(k: Emitter, mask: Buffer, target: Buffer, count: Buffer, rows: Expr, columns: Expr) -> None:
        with k.loop(0, rows, "row") as row:
            k.store(target, row, k.get(count))
            _walk(k, mask, count, row, columns, lambda *_: None)
        k.store(target, rows, k.get(count))

    return _mask_call(node, emit)


def pack_places(node: Node) -> Call:
    """The number of each place among those that are kept, -1 where there is no token."""

    def emit(k: Emitter, mask: Buffer, target: Buffer, count: Buffer, rows: Expr, columns: Expr) -> None:
        def visit(flat: Expr, before: Expr, token: Expr, keep: Expr) -> None:
            k.store(target, flat, tirx.Select(token, before, i64(-1)))

        with k.loop(0, rows, "row") as row:
            _walk(k, mask, count, row, columns, visit)

    return _mask_call(node, emit)


def unpack_rows(node: Node) -> Call:
    """One item is one place: its row, or zeros."""
    x, places = node.inputs
    width = product(x.shape[1:])

    def emit(k: Emitter) -> None:
        source, at = k.pointer("x", x.dtype), k.pointer("places", places.dtype)
        target, length = k.pointer("y", node.dtype), k.scalar("width")
        with k.loop(k.begin, k.end) as item:
            place, base = k.load(at, item), k.let(item * length)
            with k.when(place >= i64(0)):
                copy_run(k, source, k.let(place * length), target, base, length)
            with k.when(place < i64(0)):
                fill_run(k, constant(node.dtype, 0, LANES), target, base, length)

    cost = dim(2 + 2 * ceil_div(dim(width), LANES))
    return move_call(node, ("unpack_rows",), emit, (width,), product(places.shape), cost)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "pack_index": pack_index,
    "pack_offsets": pack_offsets,
    "pack_places": pack_places,
    "unpack_rows": unpack_rows,
}
