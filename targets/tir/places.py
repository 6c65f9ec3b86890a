"""Where the rows of a matrix lie, as it is or by panels, and what becomes of a place that is written to."""

from __future__ import annotations

from llmc.compiler.calls import Panels
from llmc.targets.tir.emit import Emitter, Expr, div, i64, mod
from llmc.targets.tir.reduce import COMBINE

_AS = {"add": "sum", "mul": "prod", "max": "max", "min": "min"}  # as `reduce` calls them


def row_place(k: Emitter, row: Expr, length: Expr, panels: Panels | None) -> tuple[Expr, Expr]:
    """The first element of a row of `length`, and how far the next one is, where columns do not stay together."""
    if panels is None:
        return k.let(row * length), i64(1)
    width, unit = panels.width, panels.unit
    beside = mod(row, width) if unit == 1 else mod(row, width) * unit
    return k.let(div(row, width) * (width * panels.depth) + beside), i64(width)


def element_place(k: Emitter, row: Expr, column: Expr, length: Expr, panels: Panels | None) -> Expr:
    """An element of a row of `length`."""
    start, step = row_place(k, row, length, panels)
    if panels is None or panels.unit == 1:
        return k.let(start + column * step)
    unit = panels.unit
    return k.let(start + div(column, unit) * (step * unit) + mod(column, unit))


def combined(k: Emitter, reduce: str, dtype: str, old: Expr, new: Expr) -> Expr:
    """`old` and `new` as `scatter` of this `reduce` combines them."""
    return new if reduce == "none" else k.let(COMBINE[_AS[reduce]](k, dtype, old, new))
