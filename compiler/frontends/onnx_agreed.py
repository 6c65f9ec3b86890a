"""Operands whose sizes are the same number by two ways of reckoning: `h` halved twice, and halved thrice and doubled.

A file runs wherever the numbers agree, as those of detectors do for images whose sides are multiples of 32. A graph is
for all sizes: so what may differ passes `ensure_shape`, and each call is asked for sizes at which they agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import sympy

from llmc.compiler.dims import Dim, dim, dim_text, symbol
from llmc.compiler.graph import Node, Source
from llmc.compiler.ops import OPS, make
from llmc.compiler.ops.rules import same_dim

_LARGEST = 4096  # of the numbers that sizes may have to be multiples of
_MOST = 64  # of them are tried

Pair = tuple[Dim, Dim]


def agreeing(
    op: str, inputs: Sequence[Node], attributes: Mapping[str, Any], source: Source
) -> tuple[list[Node], set[Pair]] | None:
    """The operands of an op with sizes that agree, and which are compared; None if they cannot be brought to."""
    if not inputs or not (OPS[op].elementwise or op == "concat"):
        return None
    rank = max(node.type.rank for node in inputs)
    free = {attributes["axis"]} if op == "concat" else set()
    wanted = [None if axis in free else _size(inputs, axis, rank) for axis in range(rank)]
    found: list[Node] = []
    compared: set[Pair] = set()
    for node in inputs:
        own = wanted[rank - node.type.rank :]
        shape = tuple(d if w is None or same_dim(d, 1) else w for d, w in zip(node.shape, own, strict=True))
        pairs = {(d, w) for d, w in zip(node.shape, shape, strict=True) if not same_dim(d, w)}
        if not all(_may_agree(*pair) or summed(*pair) for pair in pairs):
            return None
        compared |= pairs
        found.append(make("ensure_shape", (node,), source, shape=shape) if pairs else node)
    return (found, compared) if compared else None


def _size(inputs: Sequence[Node], axis: int, rank: int) -> Dim:
    """Of the sizes of an axis, counted from the last, a sum that another is, or the one that is simplest to write."""
    sizes = [n.shape[axis - rank] for n in inputs if n.type.rank >= rank - axis]
    apart = [size for size in sizes if not same_dim(size, 1)]
    sums = [pair[1] for pair in itertools.starmap(summed, itertools.pairwise(apart)) if pair]
    return min(sums or apart or sizes, key=lambda size: (len(dim_text(size)), dim_text(size)))


def _may_agree(a: Dim, b: Dim) -> bool:
    """Of the same dims, both: two that have nothing to do with each other agree by chance alone."""
    if isinstance(a, int) or isinstance(b, int):
        return False
    return bool(a.free_symbols == b.free_symbols) and not isinstance(dim(a - b), int)


def summed(a: Dim, b: Dim) -> Pair | None:
    """An axis of an input and the sum of others that it is as long as: a mask of all keys, of a past and new ones."""
    for size, of in ((a, b), (b, a)):
        single = isinstance(size, sympy.Symbol) and str(size) != "batch"
        if single and isinstance(of, sympy.Add) and len(of.free_symbols) > 1 and size not in of.free_symbols:
            return size, of
    return None


def multiples(pairs: Sequence[Pair]) -> dict[str, int]:
    """Dim name -> a number of which it has to be a multiple, so that all pairs agree; {} if there is none such.

    No dim's number can be smaller while the others are what they are.
    """
    names = sorted({s.name for pair in pairs for d in pair for s in d.free_symbols})
    candidates = _candidates(pairs)
    for factor in candidates:
        if all(_agree_at(pair, dict.fromkeys(names, factor)) for pair in pairs):
            break
    else:
        return {}
    found = dict.fromkeys(names, factor)
    for name in names:
        smaller = (m for m in (1, *candidates) if all(_agree_at(p, {**found, name: m}) for p in pairs))
        found[name] = next(smaller)
    return {name: factor for name, factor in found.items() if factor > 1}


def _candidates(pairs: Sequence[Pair]) -> list[int]:
    """Products of the primes that sizes are divided by."""
    primes = set[int]()
    for quotient in {q for pair in pairs for d in pair for q in _quotients(d)}:
        primes |= {int(p) for p in sympy.primefactors(quotient)}
    found = {1}
    for prime in primes:
        found |= {m for n in [*found] for power in range(1, 13) if (m := n * prime**power) <= _LARGEST}
    return sorted(found - {1})[:_MOST]


def _quotients(value: Dim) -> set[int]:
    """What is divided by in a size."""
    parts = sympy.preorder_traversal(value) if isinstance(value, sympy.Expr) else ()
    return {int(part.q) for part in parts if part.is_Rational and part.q > 1}


def _agree_at(pair: Pair, factors: Mapping[str, int]) -> bool:
    """Whether they are the same for all multiples of those."""
    scaled = {
        symbol(name): times * sympy.Symbol(f"{name}_", integer=True, positive=True)
        for name, times in factors.items()
    }
    a, b = (sympy.expand(d.xreplace(scaled)) for d in pair)
    return bool(a == b)


def told(places: Mapping[str, set[Pair]]) -> str:
    """What a call is asked for, in words."""
    pairs = sorted({pair for found in places.values() for pair in found}, key=str)
    if factors := multiples(pairs):
        return " and ".join(f"multiples of {factor} as {name}" for name, factor in factors.items())
    return " and ".join(f"{dim_text(a)} = {dim_text(b)}" for a, b in pairs[:3])
