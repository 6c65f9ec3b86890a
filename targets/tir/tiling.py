"""Register tiles: how rows are covered by them, and what their sums start from."""

from __future__ import annotations

from collections.abc import Callable

from llmc.targets.tir.emit import Buffer, Emitter, Expr, div, f32, i64, splat
from llmc.targets.tir.later import tirx


def tiles(
    e: Emitter, first: Expr, count: Expr, height: int, body: Callable[[Expr, int], None], least: int = 1
) -> None:
    """Cover rows first..first+count by tiles of at most `height` rows, as equal as can be: no padded rows.

    `body(row, h)` writes the code of a tile of h rows; it is called once for each h in least..height. With
    another `least` than 1, the caller knows that no tile has fewer.
    """
    number = e.let(div(count + (height - 1), height))
    small = e.let(div(count, tirx.max(number, i64(1))))
    larger = e.let(count - number * small)  # tiles that have a row more than `small`
    start = first
    for h in range(height, least - 1, -1):
        times = tirx.Select(small >= h, number - larger, larger)
        times = e.let(tirx.Select(tirx.any(small > h, small < h - 1), i64(0), times))
        with e.loop(0, times, "tile") as t:
            body(e.let(start + t * h), h)
        start = e.let(start + times * h)


def zeros(e: Emitter, count: int) -> Buffer:
    """`count` registers of 16 zeros."""
    sums = e.registers(count)
    for i in range(count):
        e.set(sums, i, splat(f32(0.0)))
    return sums
