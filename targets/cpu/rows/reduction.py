"""Reductions over any axes: sums and extremes.

Neighbouring axes that are both kept or both reduced are merged. If the last axis is reduced, the 16 lanes of
one register hold 16 partial results, element i going to lane i mod 16, combined by `Emitter.fold` at the end.
If the last axis is kept, vectors run along it and each element is accumulated in index order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.targets.tir.emit import LANES, STORAGE, Emitter, Expr, i64, lanes_of, splat, vector
from llmc.targets.tir.grid import ceil_div, chunk_count, nbytes, offset, strides, vectors, walk
from llmc.targets.tir.later import tirx
from llmc.targets.tir.reduce import COMBINE, NEUTRAL, compute_dtype, merge_kept
from llmc.targets.tir.scalar_ops import cast, constant


@dataclass(frozen=True)
class Reduction:
    """All a reduction kernel depends on; `kept` says it of each merged axis."""

    op: str
    dtype: str
    kept: tuple[bool, ...]

    @property
    def inner_kept(self) -> bool:
        return self.kept[-1]


def reduce_(node: Node) -> Call:
    """sum, mean, max, min, any, all. One item is one output element, or 16 if the last axis is kept."""
    x = node.inputs[0]
    merged = merge_kept(x.shape, node.attributes["axes"])
    spec = Reduction(node.op, node.dtype, tuple(kept for _, kept in merged))
    extents = [extent for extent, _ in merged]
    outputs = [e for e, kept in merged if kept]
    length = product(e for e, kept in merged if not kept)
    if spec.inner_kept:
        items, cost = product(outputs[:-1]) * ceil_div(outputs[-1], LANES), 4 + 2 * length
    else:
        items, cost = product(outputs), 16 + 2 * ceil_div(length, LANES)
    kernel = Kernel("reduce", spec, (x.dtype, node.dtype), len(extents), _reduce_emitter(spec))
    flops = product(x.shape)
    return Call(kernel, (x, node), tuple(extents), dim(items), dim(cost), flops, nbytes(x, node), node.source)


def _reduce_emitter(spec: Reduction) -> Callable[[str, Any], Any]:
    def emit(symbol: str, cpu: Any) -> Any:
        k = Emitter(symbol)
        source, target = k.pointer("x", spec.dtype), k.pointer("y", spec.dtype)
        extents = [k.scalar(f"extent{i}") for i in range(len(spec.kept))]
        steps = strides(k, extents, [True] * len(extents))
        count: Expr = i64(1)
        for extent, kept in zip(extents, spec.kept, strict=True):
            count = count if kept else count * extent
        across = _Reducer(k, spec, source, target, extents, [s for s in steps if s is not None], k.let(count))
        across.columns() if spec.inner_kept else across.rows()
        return k.function()

    return emit


@dataclass(frozen=True)
class _Reducer:
    k: Emitter
    spec: Reduction
    source: Any
    target: Any
    extents: list[Expr]
    steps: list[Expr]
    count: Expr

    @property
    def dtype(self) -> str:
        return compute_dtype(self.spec.dtype)

    def neutral(self, lanes: int = LANES) -> Expr:
        return constant(self.dtype, NEUTRAL[self.spec.op](self.dtype), lanes)

    def combine(self, a: Expr, b: Expr) -> Expr:
        return COMBINE[self.spec.op](self.k, self.dtype, a, b)

    def kept_axes(self) -> list[int]:
        return [i for i, kept in enumerate(self.spec.kept) if kept]

    def load(self, at: Expr, mask: Expr | None) -> Expr:
        value = self.k.load(self.source, at, LANES, mask)
        value = self.k.let(cast(self.k, self.spec.dtype, self.dtype, value))
        return value if mask is None else self.k.let(tirx.Select(mask, value, self.neutral()))

    def finish(self, value: Expr) -> Expr:
        """A mean divides; f16 is rounded."""
        k = self.k
        if self.spec.op == "mean":
            value = k.let(value / splat(k.let(tirx.Cast("float32", self.count)), lanes_of(value)))
        return cast(k, self.dtype, self.spec.dtype, value)

    def over(self, axes: list[int], base: Expr, body: Callable[[Expr], None]) -> None:
        """`body(offset)` for each index of the reduced `axes`, in order."""
        if not axes:
            body(base)
            return
        with self.k.loop(0, self.extents[axes[0]]) as i:
            self.over(axes[1:], self.k.let(base + i * self.steps[axes[0]]), body)

    def rows(self) -> None:
        """The last axis is reduced: 16 partial results for each output element."""
        k, kept = self.k, self.kept_axes()
        outer = [i for i, is_kept in enumerate(self.spec.kept[:-1]) if not is_kept]
        partial = k.registers(1, vector(STORAGE[self.dtype], LANES))

        def add(base: Expr) -> None:
            def one(position: Expr, mask: Expr | None) -> None:
                k.set(partial, 0, self.combine(k.let(k.get(partial)), self.load(base + position, mask)))

            vectors(k, self.extents[-1], one)

        extents = [self.extents[i] for i in kept]
        out = strides(k, extents, [True] * len(kept))
        with walk(k, extents) as index:
            k.set(partial, 0, self.neutral())
            self.over(outer, offset(k, index, [self.steps[i] for i in kept]), add)
            k.store(
                self.target, offset(k, index, out), self.finish(k.fold(k.let(k.get(partial)), self.combine))
            )

    def columns(self) -> None:
        """The last axis is kept: 16 neighbouring output elements at a time."""
        k, kept = self.k, self.kept_axes()
        reduced = [i for i, is_kept in enumerate(self.spec.kept) if not is_kept]
        extents = [self.extents[i] for i in kept]
        out = strides(k, extents, [True] * len(kept))
        total = k.registers(1, vector(STORAGE[self.dtype], LANES))
        with walk(k, [*extents[:-1], chunk_count(k, extents[-1], LANES)]) as index:
            start = k.let(index[-1] * i64(LANES))
            index = [*index[:-1], start]
            base = offset(k, index, [self.steps[i] for i in kept])

            def some(position: Expr, mask: Expr | None) -> None:
                def one(at: Expr) -> None:
                    k.set(total, 0, self.combine(k.let(k.get(total)), self.load(at, mask)))

                k.set(total, 0, self.neutral())
                self.over(reduced, base, one)
                k.store(self.target, offset(k, index, out), self.finish(k.let(k.get(total))), mask)

            vectors(k, k.let(tirx.min(extents[-1] - start, i64(LANES))), some)


LOWERINGS: dict[str, Callable[[Node], Call]] = dict.fromkeys(COMBINE, reduce_)
