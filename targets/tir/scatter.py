"""What becomes of a place that a value is written to, for every backend."""

from __future__ import annotations

from llmc.targets.tir.emit import Emitter, Expr
from llmc.targets.tir.reduce import COMBINE

_AS = {"add": "sum", "mul": "prod", "max": "max", "min": "min"}


def combined(k: Emitter, reduce: str, dtype: str, old: Expr, new: Expr) -> Expr:
    """`old` and `new` as `scatter` of this `reduce` combines them."""
    return new if reduce == "none" else k.let(COMBINE[_AS[reduce]](k, dtype, old, new))
