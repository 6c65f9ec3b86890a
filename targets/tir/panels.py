"""Where the rows of a matrix lie in memory, as it is or by panels, for every backend."""

from __future__ import annotations

from llmc.compiler.calls import Panels
from llmc.targets.tir.emit import Emitter, Expr, div, i64, mod


def row_place(k: Emitter, row: Expr, length: Expr, panels: Panels | None) -> tuple[Expr, Expr]:
    """The first element of a row of `length`, and how far the next one is."""
    if panels is None:
        return k.let(row * length), i64(1)
    width = panels.width
    return k.let(div(row, width) * (width * panels.depth) + mod(row, width)), i64(width)
