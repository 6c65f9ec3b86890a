"""Sizes near those wanted at which a graph has a value: multiples of what it divides, dims that go together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import sympy

from llmc.compiler.constraints import Constraint
from llmc.compiler.dims import Bounds

_NEAR = 48  # sizes to either side of the one that is wanted
_MULTIPLES = 4  # and so many multiples of each divisor
_LARGEST = 1 << 16  # of the divisors
_LOOKS = 256  # at constraints of several dims


def fitting(
    constraints: Sequence[Constraint],
    wanted: Mapping[str, int],
    free: Collection[str],
    bounds: Mapping[str, Bounds],
) -> dict[str, int] | None:
    """`wanted` with other sizes of the dims in `free`, within their bounds, at which all constraints hold.

    None where none is found: it is looked at those nearest to the wanted ones, and at multiples of what the
    constraints divide by.
    """
    asked = {c: symbols & {*free} for c in constraints if (symbols := _names(c)) is not None}
    sizes = dict(wanted)
    if any(c.refusal(sizes) for c, names in asked.items() if not names):
        return None
    names = [name for name in free if any(name in of for of in asked.values())]
    divisors = _divisors(constraints)
    choices: list[list[int]] = []
    for name in names:
        alone = [c for c, of in asked.items() if of == {name}]
        tried = _candidates(wanted[name], bounds[name], divisors)
        choices.append([n for n in tried if not any(c.refusal({**sizes, name: n}) for c in alone)])
    together = [c for c, of in asked.items() if len(of) > 1]
    for chosen in itertools.islice(_nearest_first(choices), _LOOKS):
        found = {**sizes, **dict(zip(names, chosen, strict=True))}
        if not any(c.refusal(found) for c in together):
            return found
    return None


def _names(constraint: Constraint) -> set[str]:
    values = (sympy.sympify(v) for v in (constraint.low, constraint.high, constraint.times))
    return {s.name for value in values for s in value.free_symbols}


def _candidates(wanted: int, bounds: Bounds, divisors: Collection[int]) -> list[int]:
    """Sizes within bounds, the nearest first."""
    low, high = bounds
    near = set(range(max(low, wanted - _NEAR), min(high, wanted + _NEAR) + 1))
    for divisor in divisors:
        first = max(-(-low // divisor), wanted // divisor - _MULTIPLES // 2)
        near |= {divisor * n for n in range(first, first + _MULTIPLES + 1) if low <= divisor * n <= high}
    return sorted(near, key=lambda size: (abs(size - wanted), size))


def _divisors(constraints: Sequence[Constraint]) -> list[int]:
    """What sizes are divided by, alone and one after the other."""
    found = {1}
    for constraint in constraints:
        for value in map(sympy.sympify, (constraint.low, constraint.high)):
            for quotient in value.atoms(sympy.floor):
                under = sympy.fraction(sympy.together(quotient.args[0]))[1]
                found |= {int(under)} if under.is_Integer else set()
    for divisor in sorted(found):
        found |= {m for n in [*found] if (m := math.lcm(n, divisor)) <= _LARGEST}
        found |= {m for n in [*found] if (m := n * divisor) <= _LARGEST and len(found) < _NEAR}
    return sorted(found)


def _nearest_first(choices: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Every choice of one of each, by the sum of their places."""
    if any(not of for of in choices):
        return
    for total in range(sum(len(of) - 1 for of in choices) + 1):
        for places in _places([len(of) for of in choices], total):
            yield tuple(of[i] for of, i in zip(choices, places, strict=True))


def _places(lengths: Sequence[int], total: int) -> Iterator[tuple[int, ...]]:
    """Places that sum up to `total`."""
    if not lengths:
        if total == 0:
            yield ()
        return
    for first in range(min(lengths[0] - 1, total) + 1):
        for rest in _places(lengths[1:], total - first):
            yield (first, *rest)
