"""Reductions over any axes: sums, extremes, softmax, and scans along one axis.

Neighbouring axes that are both kept or both reduced are merged. If the last axis is reduced, the 16 lanes of
one register hold 16 partial results, element i going to lane i mod 16, combined by `Emitter.fold` at the end.
If the last axis is kept, vectors run along it and each element is accumulated in index order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import same_dim
from llmc.targets.tir import math, math64
from llmc.targets.tir.emit import LANES, STORAGE, Emitter, Expr, i64, lanes_of, splat, vector
from llmc.targets.tir.grid import ceil_div, chunk_count, nbytes, offset, strides, vectors, walk
from llmc.targets.tir.reduce import COMBINE, NEUTRAL, Line, argmax, compute_dtype, cumsum, merge_kept
from llmc.targets.tir.scalar_ops import cast, constant, maximum

# --- reductions


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


# --- softmax and log_softmax


def softmax(node: Node) -> Call:
    """Over any axis. One item is one row, or 16 columns where the axis is not the last."""
    x, axis = node.inputs[0], node.attributes["axis"]
    outer, length, inner = product(x.shape[:axis]), x.shape[axis], product(x.shape[axis + 1 :])
    last, log = same_dim(inner, 1), node.op == "log_softmax"

    def emit(symbol: str, cpu: Any) -> Any:
        k = Emitter(symbol)
        source, target = k.pointer("x", "f32"), k.pointer("y", "f32")
        _Softmax(k, source, target, k.scalar("length"), k.scalar("inner"), log).emit(last)
        return k.function()

    kernel = Kernel("softmax", (node.op, last), ("f32", "f32"), 2, emit)
    items = outer if last else dim(outer * ceil_div(inner, LANES))
    cost = 40 + 24 * (ceil_div(length, LANES) if last else length)
    flops = dim(product(x.shape) * 24)
    return Call(kernel, (x, node), (length, inner), items, dim(cost), flops, nbytes(x, node), node.source)


@dataclass(frozen=True)
class _Softmax:
    """y = exp(x - max) / sum, or x - max - log(sum), in three passes."""

    k: Emitter
    source: Any
    target: Any
    length: Expr
    inner: Expr
    log: bool

    def emit(self, last: bool) -> None:
        k = self.k
        highest, total = k.registers(1), k.registers(1)
        if last:
            with k.loop(k.begin, k.end) as row:
                base = k.let(row * self.length)

                def walk_row(body: Callable[[Expr, Expr | None], None]) -> None:
                    vectors(k, self.length, lambda position, mask: body(k.let(base + position), mask))

                self.passes(walk_row, highest, total, fold=True)
            return
        with walk(k, [k.end, chunk_count(k, self.inner, LANES)]) as (row, chunk):
            start = k.let(chunk * i64(LANES))
            base = k.let(row * self.length * self.inner + start)

            def column(position: Expr, mask: Expr | None) -> None:
                def walk_column(body: Callable[[Expr, Expr | None], None]) -> None:
                    with k.loop(0, self.length) as i:
                        body(k.let(base + i * self.inner), mask)

                self.passes(walk_column, highest, total, fold=False)

            vectors(k, k.let(tirx.min(self.inner - start, i64(LANES))), column)

    def passes(self, over: Callable[..., None], highest: Any, total: Any, fold: bool) -> None:
        k = self.k
        k.set(highest, 0, splat(float("-inf")))
        k.set(total, 0, splat(0.0))

        def find(at: Expr, mask: Expr | None) -> None:
            value = k.load(self.source, at, LANES, mask)
            value = value if mask is None else k.let(tirx.Select(mask, value, splat(float("-inf"))))
            k.set(highest, 0, maximum(k, "f32", k.let(k.get(highest)), value))

        over(find)
        top = k.let(k.get(highest))
        top = k.let(splat(k.fold(top, lambda a, b: maximum(k, "f32", a, b)))) if fold else top

        def add(at: Expr, mask: Expr | None) -> None:
            e = math.exp(k, k.let(k.load(self.source, at, LANES, mask) - top))
            if not self.log:
                k.store(self.target, at, e, mask)
            e = e if mask is None else k.let(tirx.Select(mask, e, splat(0.0)))
            k.set(total, 0, k.let(k.get(total)) + e)

        over(add)
        whole = k.let(k.get(total))
        whole = k.let(splat(k.fold(whole, lambda a, b: a + b))) if fold else whole
        whole = math64.log(k, whole) if self.log else whole

        def finish(at: Expr, mask: Expr | None) -> None:
            if self.log:
                value = k.let(k.load(self.source, at, LANES, mask) - top) - whole
            else:
                value = k.load(self.target, at, LANES, mask) / whole
            k.store(self.target, at, value, mask)

        over(finish)


# --- along one axis, element by element


def _along(node: Node, body: Line) -> Call:
    """`body(k, x, y, first, step, length, item)` for each line of the axis; one item is one line."""
    x, axis = node.inputs[0], node.attributes["axis"]
    length, inner = x.shape[axis], product(x.shape[axis + 1 :])

    def emit(symbol: str, cpu: Any) -> Any:
        k = Emitter(symbol)
        source, target = k.pointer("x", x.dtype), k.pointer("y", node.dtype)
        count, step = k.scalar("length"), k.scalar("inner")
        with walk(k, [k.end, step]) as (row, column):
            first = k.let(row * count * step + column)
            body(k, source, target, first, step, count, k.let(row * step + column))
        return k.function()

    kernel = Kernel("scan", (node.op, x.dtype), (x.dtype, node.dtype), 2, emit)
    items = dim(product(x.shape[:axis]) * inner)
    size = product(x.shape)
    return Call(
        kernel, (x, node), (length, inner), items, dim(4 + 4 * length), size, nbytes(x, node), node.source
    )


LOWERINGS: dict[str, Callable[[Node], Call]] = {
    **dict.fromkeys(COMBINE, reduce_),
    "softmax": softmax,
    "log_softmax": softmax,
    "cumsum": partial(cumsum, along=_along),
    "argmax": partial(argmax, along=_along),
}
