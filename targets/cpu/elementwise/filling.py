"""Values made from nothing: ramps, constants, sizes."""

from __future__ import annotations

from collections.abc import Callable

from llmc.compiler.calls import Call
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.targets.cpu.elementwise.movement import fill_run, move_call, row_cost
from llmc.targets.tir.emit import LANES, STORAGE, Emitter, Expr, i64, splat, vector
from llmc.targets.tir.grid import CHUNK, ceil_div, vectors
from llmc.targets.tir.later import tirx
from llmc.targets.tir.scalar_ops import constant


def iota(node: Node) -> Call:
    """start + i * step, computed in int64."""

    def emit(k: Emitter) -> None:
        target = k.pointer("y", node.dtype)
        length, first, step = k.scalar("length"), k.scalar("start"), k.scalar("step")
        lanes = tirx.Ramp(i64(0), i64(1), LANES)
        with k.loop(k.begin, k.end) as item:
            base = k.let(item * i64(CHUNK))

            def body(position: Expr, mask: Expr | None) -> None:
                count = k.let(splat(base + position) + lanes)
                value = k.let(splat(first) + count * splat(step))
                k.store(target, base + position, tirx.Cast(vector(STORAGE[node.dtype], LANES), value), mask)

            vectors(k, k.let(tirx.min(length - base, i64(CHUNK))), body)

    length = node.shape[0]
    scalars = (length, dim(node.attributes["start"]), node.attributes["step"])
    return move_call(node, ("iota",), emit, scalars, ceil_div(length, CHUNK), 4 * row_cost(length))


def full(node: Node) -> Call:
    """Every element the same."""
    value = node.attributes["value"]

    def emit(k: Emitter) -> None:
        target, length = k.pointer("y", node.dtype), k.scalar("length")
        with k.loop(k.begin, k.end) as item:
            base = k.let(item * i64(CHUNK))
            fill = constant(node.dtype, value, LANES)
            fill_run(k, fill, target, base, k.let(tirx.min(length - base, i64(CHUNK))))

    length = product(node.shape)
    return move_call(node, ("full", repr(value)), emit, (length,), ceil_div(length, CHUNK), row_cost(length))


def dim_(node: Node) -> Call:
    """The size of a named dim."""

    def emit(k: Emitter) -> None:
        target, value = k.pointer("y", node.dtype), k.scalar("value")
        with k.loop(k.begin, k.end) as item:
            k.store(target, item, value)

    return move_call(node, ("dim",), emit, (dim(node.attributes["value"]),), 1, 1)


LOWERINGS: dict[str, Callable[[Node], Call]] = {"iota": iota, "full": full, "dim": dim_}
