"""The order of elements along a line, for every backend: of equal ones the lowest index comes first."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.targets.tir.emit import Buffer, Emitter, Expr
from llmc.targets.tir.later import tirx
from llmc.targets.tir.reduce import compute_dtype
from llmc.targets.tir.scalar_ops import cast


@dataclass(frozen=True)
class Order:
    """The order of `argsort` on the line of `x` that starts at `first`; NaN is above all numbers."""

    k: Emitter
    x: Buffer
    dtype: str
    descending: bool

    def value(self, first: Expr, index: Expr) -> Expr:
        """Element `index`, as it is compared."""
        k = self.k
        return k.let(cast(k, self.dtype, compute_dtype(self.dtype), k.load(self.x, k.let(first + index))))

    def before(self, a: Expr, i: Expr, b: Expr, j: Expr) -> Expr:
        """Whether element i, which is a, comes before element j, which is b."""
        k = self.k
        ahead, behind = k.let(self._ahead(a, b)), k.let(self._ahead(b, a))
        return k.let(tirx.Or(ahead, tirx.And(tirx.Not(behind), i < j)))

    def _ahead(self, a: Expr, b: Expr) -> Expr:
        """a < b, or b < a where the order is descending; NaN is the largest."""
        a, b = (b, a) if self.descending else (a, b)
        if compute_dtype(self.dtype) != "f32":
            return a < b
        return tirx.Or(a < b, tirx.And(tirx.EQ(a, a), tirx.Not(tirx.EQ(b, b))))
