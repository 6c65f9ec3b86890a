"""softmax and log_softmax over any axis: 16 partial results along the last one, else 16 columns at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import same_dim
from llmc.targets.tir import math, math64
from llmc.targets.tir.emit import LANES, Emitter, Expr, i64, splat
from llmc.targets.tir.grid import ceil_div, chunk_count, nbytes, vectors, walk
from llmc.targets.tir.later import tirx
from llmc.targets.tir.scalar_ops import maximum


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


LOWERINGS: dict[str, Callable[[Node], Call]] = dict.fromkeys(("softmax", "log_softmax"), softmax)
