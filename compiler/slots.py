"""Places of values, and the arena's slots as they are taken and given back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sympy

from llmc.compiler.dims import Dim, dim, dim_names, evaluate, from_one, product
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops import OPS

_TYPICAL = 128  # the size at which two expressions are compared when slots are chosen


@dataclass(frozen=True)
class Place:
    """Where a value is: `kind` is "input", "output", "slot", "own", "weight", "pointer", "state" or "next".

    `index` says which one. An own slot is one of those that each session of a run has for itself. A pointer is a
    variable of the program that moves from one iteration of a loop to the next. "next" is memory for what a state
    becomes; "state" is where it is now, and `offset` bytes on what it grows by. `alone` is where the value is in a run
    of one session: there it is computed where it belongs.
    """

    kind: str
    index: int
    offset: Dim = 0
    alone: Place | None = None


def root(node: Node) -> Node:
    """The node whose memory `node` shares: views hold nothing themselves."""
    while OPS[node.op].view:
        node = node.inputs[0]
    return node


def nbytes(node: Node) -> Dim:
    """Size of a node's value."""
    return dim(product(node.shape) * DTYPES[node.dtype].itemsize)


class Slots:
    """The arena's slots while the program is walked.

    Args:
        zero: the dims that may be 0.
    """

    def __init__(self, zero: frozenset[str] = frozenset()) -> None:
        self._zero = zero
        self.sizes: list[Dim] = []
        self._free: list[int] = []

    def take(self, size: Dim) -> int:
        """A free slot, the one that fits most closely; a new one if none is free."""
        if not self._free:
            self.sizes.append(size)
            return len(self.sizes) - 1
        wanted = _typical(size)
        # Growing a small slot costs what it lacks, using a large one costs nothing but keeps it from larger values.
        best = min(
            self._free, key=lambda i: (max(0, wanted - _typical(self.sizes[i])), _typical(self.sizes[i]), i)
        )
        self._free.remove(best)
        self.sizes[best] = _larger(self.sizes[best], size, self._zero)
        return best

    def give(self, index: int) -> None:
        self._free.append(index)


@lru_cache(maxsize=1024)
def _typical(size: Dim) -> int:
    return evaluate(size, dict.fromkeys(dim_names(size), _TYPICAL))


@lru_cache(maxsize=1024)  # layers ask the same, and sympy is slow
def _larger(a: Dim, b: Dim, zero: frozenset[str]) -> Dim:
    """max(a, b), without a Max where one is a multiple of the other."""
    if a == b or b == 0:
        return a
    if a == 0:  # what a loop that never runs stacks
        return b
    if any(sympy.sympify(size).has(sympy.floor) for size in (a, b)):
        return _larger_of_quotients(a, b)
    ratio = sympy.cancel(sympy.sympify(a) / b)  # `simplify` first loads a second of modules
    if ratio.is_number:
        return a if ratio > 1 else b
    return from_one(sympy.Max(a, b), zero)


def _larger_of_quotients(a: Dim, b: Dim) -> Dim:
    """max(a, b) as it is: sympy would ask of each two of the many whether one is the larger, and seldom learns it."""
    most: dict[Dim, Dim] = {}  # term without its factor -> the largest factor
    for size in (a, b):
        for term in size.args if isinstance(size, sympy.Max) else (size,):
            factor, rest = sympy.sympify(term).as_coeff_Mul()
            most[rest] = max(factor, most.get(rest, factor))
    terms = [factor * rest for rest, factor in most.items()]
    return terms[0] if len(terms) == 1 else sympy.Max(*terms, evaluate=False)
