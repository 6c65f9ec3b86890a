"""What the bounds of dims prove about an expression of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import sympy

from llmc.compiler.dims import Bounds, Dim, dim_names

_CORNERS = 8  # names of an expression whose corners are all looked at

Box = Mapping[Any, tuple[Any, Any]]  # symbol -> least and largest value


def never_negative(value: Dim, bounds: Mapping[str, Bounds]) -> bool:
    """Whether `value` is at least 0 at all sizes within `bounds`. False: it may be, or this does not find out."""
    if isinstance(value, int):
        return value >= 0
    if isinstance(value, sympy.Symbol):
        return True  # a size
    names = dim_names(value)
    return names <= bounds.keys() and _proven(value, tuple((n, *bounds[n]) for n in sorted(names)))


@cache  # layers ask the same, and sympy is slow
def _proven(value: Dim, bounds: tuple[tuple[str, int, int], ...]) -> bool:
    within = {name: (low, high) for name, low, high in bounds}
    return _holds(value, {s: within[s.name] for s in value.free_symbols})


def _holds(value: Any, box: Box) -> bool:
    """Max and Min by cases, floors by what they leave out, then a polynomial."""
    value = sympy.expand(value)
    for choice in sorted(value.atoms(sympy.Max, sympy.Min), key=str):
        stand_in = sympy.Dummy(real=True)
        cases = [value.xreplace({choice: case}) for case in choice.args]
        helps = _sign(value.xreplace({choice: stand_in}), stand_in) * (1 if choice.func is sympy.Max else -1)
        return (any if helps > 0 else all)(_holds(case, box) for case in cases)
    floors = [f for f in value.atoms(sympy.floor) if not f.args[0].atoms(sympy.floor)]
    if floors:  # floor(n/d) = n/d - rest
        rest, inner = sympy.Dummy(real=True), min(floors, key=str).args[0]
        most = 1 - 1 / sympy.fraction(sympy.together(inner))[1]
        return _holds(value.xreplace({sympy.floor(inner): inner - rest}), {**box, rest: (0, most)})
    return _polynomial_holds(value, {s: box[s] for s in value.free_symbols})


def _sign(value: Any, symbol: Any) -> int:
    """1 if `value` grows with `symbol`, -1 if it falls, 0 if neither is known."""
    slope = sympy.expand(value).coeff(symbol)
    linear = not sympy.expand(value - slope * symbol).has(symbol)
    return int(sympy.sign(slope)) if linear and slope.is_number else 0


def _polynomial_holds(value: Any, box: Box) -> bool:
    """Whether a polynomial is above -1: of what is whole, at least 0. One linear in each name is least at a corner."""
    names = sorted(box, key=str)
    if not value.is_polynomial(*names):
        return False
    if len(names) <= _CORNERS and all(sympy.degree(value, name) <= 1 for name in names):
        corners = product(*(box[name] for name in names))
        return all(value.subs(dict(zip(names, corner, strict=True))) > -1 for corner in corners)
    above = sympy.expand(value.subs({n: n + box[n][0] for n in names}, simultaneous=True))
    return all(c >= 0 or (term == 1 and c > -1) for term, c in above.as_coefficients_dict().items())
