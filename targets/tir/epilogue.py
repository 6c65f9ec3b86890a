"""What follows a product while its sums are still in registers: bias, residual, activation, the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, fma, i64, mod
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import ACTIVATIONS, SHORT


def scaled(
    e: Emitter, steps: tuple[str, ...], value: Expr, scale: Expr, extra: Callable[[int, str], Expr]
) -> Expr:
    """The steps on value * scale; a first bias or residual is added by one fused multiply-add.

    Args:
        extra: (which of the operands, step) -> its elements.
    """
    number = 0
    if steps and steps[0] not in ACTIVATIONS:
        value, steps, number = e.let(fma(value, scale, extra(0, steps[0]))), steps[1:], 1
    else:
        value = e.let(value * scale)
    for step in steps:
        if step in ACTIVATIONS:
            value = ACTIVATIONS[step](e, value)
        else:
            value, number = e.let(value + extra(number, step)), number + 1
    return value


def unpadded(e: Emitter, n: int, width: int, column: Expr, lanes: int = LANES) -> Expr | None:
    """The mask of the `lanes` columns from `column` on that are no padding; None if there is none in any panel."""
    if n % width == 0:
        return None
    left = i64(n) - column
    return e.first(left if -n % width < lanes else e.let(tirx.max(left, i64(0))), lanes)


class Coming:
    """A line of the residual of a tile is asked for at each step of its sums: its rows lie apart, unforeseen.

    Args:
        residual: None if there is none.
        first: place of the tile's first element.
        length: from a row to the next.
        rows, columns: of the tile.
    """

    def __init__(
        self, e: Emitter, residual: Buffer | None, first: Expr, length: Expr | int, rows: int, columns: int
    ) -> None:
        self.e, self.residual, self.length = e, residual, length
        self.rows, self.lines = rows, max(1, columns // LANES)
        self.first = first if residual is None else e.let(first)

    def ask(self, step: Expr) -> None:
        """That of a step."""
        if self.residual is None:
            return
        at = self.e.let(div(step, self.rows))
        further = (step - at * self.rows) * self.length + mod(at, self.lines) * LANES
        self.e.prefetch(self.residual, self.first + further)


class Part(NamedTuple):
    """Columns of longer rows, as a group of channels is.

    Args:
        length: of a whole row.
        first: column of it that is the part's first.
        bias: place of the part's first bias.
    """

    length: int
    first: Expr
    bias: Expr


def finish(
    e: Emitter,
    acc: Buffer,
    row: Expr,
    column: Expr,
    rows: int,
    vectors: int,
    *,
    n: int,
    width: int,
    epilogue: tuple[str, ...],
    extras: list[Buffer],
    out: Buffer,
    part: Part | None = None,
) -> None:
    """Apply the epilogue to a tile and store it; columns from n on are padding and stay unwritten.

    Args:
        part: of the rows of `out` that the tile's rows are; None: all of them.
    """
    part = part or Part(n, i64(0), i64(0))
    masks = [unpadded(e, n, width, column + j * LANES) for j in range(vectors)]

    def store_row(i: Expr, values: list[Expr]) -> None:
        base = e.let((row + i) * part.length + (column + part.first))
        for j, value in enumerate(values):
            at = e.let(base + j * LANES)
            pending = iter(extras)
            for step in epilogue:
                if step == "bias":
                    value = e.let(value + e.load(next(pending), column + (part.bias + j * LANES), LANES))
                elif step == "residual":
                    value = e.let(value + e.load(next(pending), at, LANES, masks[j]))
                else:
                    value = ACTIVATIONS[step](e, value)
            e.store(out, at, value, masks[j])

    if not any(step in ACTIVATIONS and step not in SHORT for step in epilogue):
        for i in range(rows):
            store_row(i64(i), [e.get(acc, i * vectors + j) for j in range(vectors)])
        return
    # An activation is long: writing it out for every register of every tile would cost more code than speed.
    held = e.registers(rows * vectors)
    for i in range(rows * vectors):
        e.set(held, i, e.get(acc, i))
    with e.loop(0, rows, "row") as i:
        store_row(i, [e.let(e.get(held, i * vectors + j)) for j in range(vectors)])
