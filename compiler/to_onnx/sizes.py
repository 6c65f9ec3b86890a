"""Sizes as values of a file: numbers where they are known, else arithmetic on the shapes of inputs.

A size is i64 [1]. What depends on dims is written into the graph itself, never into a body, so it is written once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy

from llmc.compiler.bounded import never_negative
from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.ops.rules import same_dim

if TYPE_CHECKING:
    from llmc.compiler.to_onnx.emitter import Emitter


class Sizes:
    """The dims of one graph; `places` says where a named one is found: an input and its axis."""

    def __init__(self, emitter: Emitter, places: Mapping[str, tuple[str, int]]) -> None:
        self._e, self._places = emitter, places
        self._known: dict[Dim, str] = {}

    def vector(self, shape: Sequence[Dim]) -> str:
        """i64 [rank]."""
        with self._e.within(self._e.root):
            groups = [list(part) for _, part in groupby(map(dim, shape), lambda d: isinstance(d, int))]
            parts = [name for group in groups for name in self._parts(group)]
            if not parts:
                return self._e.ints([])
            return parts[0] if len(parts) == 1 else self._e.op("Concat", *parts, axis=0)

    def scalar(self, value: Dim) -> str:
        """i64 []."""
        value = dim(value)
        if isinstance(value, int):
            return self._e.number(value, "i64")
        with self._e.within(self._e.root):
            return self._e.op("Squeeze", self._size(value), self._e.ints([0]))

    def reshaping(self, before: Sequence[Dim], after: Sequence[Dim]) -> tuple[str, bool]:
        """What Reshape is told, and whether a 0 in it is a size: constants where 0 and -1 say enough."""
        kept = [0 if self._stays(d, i, before) else d for i, d in enumerate(after)]
        open_axes = [i for i, d in enumerate(kept) if not isinstance(d, int)]
        if any(isinstance(d, int) and d == 0 for d in after):
            return self.vector(after), True
        if not open_axes:
            return self._e.ints(kept), False
        others = product(d for i, d in enumerate(after) if i != open_axes[0])
        if len(open_axes) == 1 and never_negative(dim(others - 1), self._e.graph.dims):
            return self._e.ints([-1 if i == open_axes[0] else d for i, d in enumerate(kept)]), False
        return self.vector(after), True

    def _stays(self, d: Dim, axis: int, before: Sequence[Dim]) -> bool:
        return not isinstance(d, int) and axis < len(before) and same_dim(d, before[axis])

    # --- expressions

    def _parts(self, group: Sequence[Dim]) -> list[str]:
        """Numbers side by side are one constant."""
        return [self._e.ints(group)] if isinstance(group[0], int) else [self._size(d) for d in group]

    def _size(self, value: Any) -> str:
        """i64 [1]."""
        if value not in self._known:
            self._known[value] = self._written(value)
        return self._known[value]

    def _written(self, value: Any) -> str:
        e = self._e
        if isinstance(value, (int, sympy.Integer)):
            return e.ints([int(value)])
        if isinstance(value, sympy.Symbol):
            name, axis = self._places[value.name]
            return e.op("Shape", name, start=axis, end=axis + 1)
        if isinstance(value, sympy.floor) or _divides(value):
            return self._quotient(value.args[0] if isinstance(value, sympy.floor) else value)
        if isinstance(value, sympy.Add):
            return self._sum(value)
        if isinstance(value, sympy.Pow):
            return self._folded("Mul", [value.base] * int(value.exp))
        kinds = {sympy.Mul: "Mul", sympy.Max: "Max", sympy.Min: "Min"}
        return self._folded(kinds[value.func], value.args)

    def _folded(self, kind: str, parts: Sequence[Any]) -> str:
        return reduce(lambda a, b: self._e.op(kind, a, b), map(self._size, parts))

    def _sum(self, value: Any) -> str:
        """Terms with a minus sign are subtracted."""
        terms = sorted(value.args, key=lambda t: (bool(t.as_coeff_Mul()[0] < 0), str(t)))
        total = self._size(terms[0])
        for term in terms[1:]:
            minus = bool(term.as_coeff_Mul()[0] < 0)
            total = self._e.op("Sub" if minus else "Add", total, self._size(-term if minus else term))
        return total

    def _quotient(self, value: Any) -> str:
        """The floor: Div goes toward zero, so what is left over is taken away before where it may be negative."""
        over, under = sympy.fraction(sympy.together(value))
        over = dim(over)
        above, below = self._size(over), self._size(dim(under))
        if not never_negative(over, self._e.graph.dims):
            above = self._e.op("Sub", above, self._e.op("Mod", above, below))
        return self._e.op("Div", above, below)


def _divides(value: Any) -> bool:
    """Whether a term has a factor such as 1/2, or is divided by a size."""
    return bool(np.any([sympy.fraction(t)[1] != 1 for t in sympy.Add.make_args(value)]))
