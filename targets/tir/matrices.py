"""Which matrices of a batched product go together, for every backend."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.compiler.dims import Dim
from llmc.targets.tir.emit import Emitter, Expr, div, i64, mod


def matrix_groups(out: Sequence[Dim], a: Sequence[Dim], b: Sequence[Dim]) -> list[tuple[Dim, bool, bool]]:
    """Leading axes as (size, moves in a, moves in b), neighbours that move alike joined; outermost first."""
    groups: list[tuple[Dim, bool, bool]] = []
    for i, size in enumerate(out):
        here = [side[i - len(out) + len(side)] if i - len(out) + len(side) >= 0 else 1 for side in (a, b)]
        in_a, in_b = (d != 1 for d in here)
        if size == 1:
            continue
        if groups and groups[-1][1:] == (in_a, in_b):
            size *= groups.pop()[0]
        groups.append((size, in_a, in_b))
    return groups


def matrix_offset(e: Emitter, matrix: Expr, sizes: list[Expr], moving: list[bool]) -> Expr:
    """Which matrix of an operand goes with matrix number `matrix` of the result."""
    offset, stride, rest = i64(0), i64(1), matrix
    for size, moves in zip(reversed(sizes), reversed(moving), strict=True):
        if moves:
            offset = e.let(offset + mod(rest, size) * stride)
            stride = e.let(stride * size)
        rest = e.let(div(rest, size))
    return offset
