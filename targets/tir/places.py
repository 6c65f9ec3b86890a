"""Where the rows of a matrix lie, as it is or by panels, and what becomes of a place that is written to."""

from __future__ import annotations

from llmc.compiler.calls import Panels
from llmc.targets.tir.emit import Emitter, Expr, div, i64, mod
from llmc.targets.tir.reduce import COMBINE

_AS = {"add": "sum", "mul": "prod", "max": "max", "min": "min"}  # as `reduce` calls them


def row_place(k: Emitter, row: Expr, length: Expr, panels: Panels | None) -> tuple[Expr, Expr]:
    """The first element of a row of `length`, and how far the next one is."""
    if panels is None:
        return k.let(row * length), i64(1)
    width = panels.width
    return k.let(div(row, width) * (width * panels.depth) + mod(row, width)), i64(width)


def combined(k: Emitter, reduce: str, dtype: str, old: Expr, new: Expr) -> Expr:
    """`old` and `new` as `scatter` of this `reduce` combines them."""
    return new if reduce == "none" else k.let(COMBINE[_AS[reduce]](k, dtype, old, new))
