"""Rotary position embedding: what its kernels on every backend share."""

from __future__ import annotations

from typing import NamedTuple

from llmc.compiler.dims import Dim
from llmc.compiler.graph import Node
from llmc.targets.tir.chain import merge_axes
from llmc.targets.tir.emit import Emitter, Expr
from llmc.targets.tir.sums import float_sum


class Rotary(NamedTuple):
    """All that a kernel depends on.

    Args:
        size: numbers of a row.
        width: of them that are turned.
        interleaved: pairs of neighbours are, not halves.
        axes: for each merged axis of rows, whether cos and sin have it.
    """

    size: int
    width: int
    interleaved: bool
    axes: tuple[tuple[bool, ...], ...]


def rotary_of(node: Node) -> tuple[Rotary, tuple[Dim, ...]]:
    """What the kernel of a `rotary` depends on, and the extents of the axes of its rows."""
    x, cos, sin = node.inputs
    axes = merge_axes(x.shape[:-1], [t.shape[:-1] for t in (cos, sin)])
    size, width, interleaved = int(x.shape[-1]), int(cos.shape[-1]), node.attributes["interleaved"]
    return Rotary(size, width, interleaved, tuple(has for _, has in axes)), tuple(e for e, _ in axes)


def turn(k: Emitter, value: Expr, other: Expr, cos: Expr, sin: Expr) -> Expr:
    """value cos + other sin: one fused multiply-add on the second product."""
    return k.let(float_sum(k, k.let(value * cos), k.let(other * sin)))
