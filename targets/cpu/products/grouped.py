"""Rows that lie in groups, each group times its own matrix: the experts of a mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import ceil_div, dim, product
from llmc.compiler.graph import Node
from llmc.targets.cpu.products.matmul import Matrices
from llmc.targets.tir.emit import LANES, Emitter, Expr, div, f32, i64, splat
from llmc.targets.tir.grid import nbytes, vectors
from llmc.targets.tir.groups import group_rows
from llmc.targets.tir.later import tirx

_WIDE, _NARROW = 3, 1  # registers of a strip
_STRIP = 16 * LANES * _WIDE  # columns of one item


def grouped_matmul(node: Node) -> Call:
    """Items are (group, 768 columns); the last group is the rows behind all groups, which are zeros."""
    x, w, ends = node.inputs
    groups, k, n = w.shape
    rows = x.shape[0]
    kernel = Kernel("grouped", (ends.dtype,), ("f32", "f32", ends.dtype, "f32"), 4, _emitter(ends.dtype))
    share = dim(sympy.floor(dim(rows) / groups) + 1) if isinstance(groups, int) and groups else rows
    strips = ceil_div(dim(n), _STRIP)
    return Call(
        kernel,
        (x, w, ends, node),
        (rows, groups, k, n),
        dim((groups + 1) * strips),
        dim(1 + share * k * sympy.Min(ceil_div(dim(n), LANES), _STRIP // LANES)),
        dim(2 * product(node.shape) * k),
        nbytes(x, w, ends, node),
        node.source,
    )


def _emitter(ends_dtype: str) -> Callable[[str, Any], Any]:
    def emit(symbol: str, cpu: Any) -> Any:
        e = Emitter(symbol)
        x, w = e.pointer("x", "f32"), e.pointer("w", "f32")
        ends, out = e.pointer("ends", ends_dtype), e.pointer("out", "f32")
        rows, groups, k, n = (e.scalar(name) for name in ("rows", "groups", "k", "n"))
        strips = e.let(div(n + (_STRIP - 1), _STRIP))
        with e.loop(e.begin, e.end, "item") as item:
            group = e.let(div(item, strips))
            start = e.let((item - group * strips) * _STRIP)
            stop = e.let(tirx.min(start + _STRIP, n))
            first, last = group_rows(e, ends, group, groups, rows)
            with e.when(group < groups):
                product_of = Matrices(e, (x, w, out), (i64(0), e.let(group * k * n), i64(0)), k, n)
                _multiply(product_of, start, stop, first, e.let(last - first), cpu.wide)
            with e.when(tirx.EQ(group, groups)), e.loop(first, last) as row:
                base = e.let(row * n + start)
                zero = splat(f32(0.0))
                vectors(e, e.let(stop - start), lambda at, mask: e.store(out, base + at, zero, mask))
        return e.function()

    return emit


def _multiply(matrices: Matrices, start: Expr, stop: Expr, first: Expr, rows: Expr, wide: bool) -> None:
    """Columns start..stop; `wide` as of `matmul`. A strip ends with a mask, which no other strip begins behind."""
    e = matrices.e
    done = start
    if wide:
        width = _WIDE * LANES
        whole = e.let(div(stop - start, width))
        with e.loop(0, whole, "strip") as s:
            matrices.strip(e.let(start + s * width), _WIDE, False, 8, first, rows)
        done = e.let(start + whole * width)
    with e.loop(0, e.let(div(stop - done + (LANES - 1), LANES)), "strip") as s:
        matrices.strip(e.let(done + s * LANES), _NARROW, True, 12 if wide else 4, first, rows)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"grouped_matmul": grouped_matmul}
