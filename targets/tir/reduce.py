"""What reductions and scans compute, for every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llmc.compiler.calls import Call
from llmc.compiler.dims import Dim, dim
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops.rules import same_dim
from llmc.targets.tir.emit import STORAGE, Emitter, Expr, i64
from llmc.targets.tir.later import tirx
from llmc.targets.tir.scalar_ops import cast, constant, maximum, minimum
from llmc.targets.tir.sums import float_sum

Combine = Callable[[Emitter, str, Expr, Expr], Expr]


def _plus(k: Emitter, dtype: str, a: Expr, b: Expr) -> Expr:
    return float_sum(k, a, b) if dtype == "f32" else a + b


def _highest(dtype: str) -> float:
    return float("inf") if dtype == "f32" else 1 if dtype == "bool" else int(np.iinfo(DTYPES[dtype]).max)


def _lowest(dtype: str) -> float:
    return float("-inf") if dtype == "f32" else 0 if dtype == "bool" else int(np.iinfo(DTYPES[dtype]).min)


def _times(k: Emitter, dtype: str, a: Expr, b: Expr) -> Expr:
    return a * b


COMBINE: dict[str, Combine] = {
    "sum": _plus,
    "prod": _times,
    "mean": _plus,
    "max": maximum,
    "min": minimum,
    "any": maximum,
    "all": minimum,
}
NEUTRAL: dict[str, Callable[[str], float]] = {
    "sum": lambda dtype: 0,
    "prod": lambda dtype: 1,
    "mean": lambda dtype: 0,
    "max": _lowest,
    "min": _highest,
    "any": _lowest,
    "all": _highest,
}


def compute_dtype(dtype: str) -> str:
    """What a reduction accumulates in."""
    return "f32" if dtype == "f16" else dtype


def merge_kept(shape: tuple[Dim, ...], axes: tuple[int, ...]) -> list[tuple[Dim, bool]]:
    """(extent, kept?) for each run of axes with the same fate; at least one."""
    merged: list[tuple[Dim, bool]] = []
    for axis, extent in enumerate(shape):
        kept = axis not in axes
        if same_dim(extent, 1):
            continue
        if merged and merged[-1][1] == kept:
            merged[-1] = (dim(merged[-1][0] * extent), kept)
        else:
            merged.append((extent, kept))
    return merged or [(1, True)]


# --- along one axis, element by element


Line = Callable[[Any, Any, Any, Expr, Expr, Expr, Expr], None]  # (emitter, x, y, first, step, length, item)


def cumsum(node: Node, along: Callable[[Node, Line], Call]) -> Call:
    """Running sums in index order; f16 accumulates in f32. `along` writes the loop over the lines."""
    dtype = node.dtype
    wide = compute_dtype(dtype)

    def body(k: Any, x: Any, y: Any, first: Expr, step: Expr, length: Expr, item: Expr) -> None:
        total = k.registers(1, STORAGE[wide])
        k.set(total, 0, constant(wide, 0, 1))
        with k.loop(0, length) as i:
            at = k.let(first + i * step)
            k.set(total, 0, k.let(k.get(total)) + cast(k, dtype, wide, k.load(x, at)))
            k.store(y, at, cast(k, wide, dtype, k.let(k.get(total))))

    return along(node, body)


def argmax(node: Node, along: Callable[[Node, Line], Call]) -> Call:
    """Index of the first largest element; NaN counts as largest. `along` as of `cumsum`."""
    dtype = node.inputs[0].dtype
    wide = compute_dtype(dtype)

    def body(k: Any, x: Any, y: Any, first: Expr, step: Expr, length: Expr, item: Expr) -> None:
        best, place = k.registers(1, STORAGE[wide]), k.registers(1, "int64")
        k.set(best, 0, cast(k, dtype, wide, k.load(x, first)))
        k.set(place, 0, i64(0))
        with k.loop(1, length) as i:
            value = k.let(cast(k, dtype, wide, k.load(x, k.let(first + i * step))))
            old = k.let(k.get(best))
            better = tirx.And(tirx.Not(value <= old), tirx.EQ(old, old)) if wide == "f32" else value > old
            with k.when(better):
                k.set(best, 0, value)
                k.set(place, 0, i)
        k.store(y, item, k.let(k.get(place)))

    return along(node, body)
