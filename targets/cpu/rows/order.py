"""The first elements of a row in order: a heap of as many indices as are wanted, in the memory of the result.

The last of them in order is at the root; an element that comes before it takes its place. At the end the heap is taken
apart from the root (heapsort; Williams 1964). As all places differ in order, the result is that of any stable sort.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.targets.tir.emit import Buffer, Emitter, Expr, div, i64
from llmc.targets.tir.grid import nbytes
from llmc.targets.tir.later import tirx
from llmc.targets.tir.order import Order

_LEVELS = 16  # of a heap, about: what an element costs in comparisons


def argsort(node: Node) -> Call:
    """One item is one row."""
    x, descending = node.inputs[0], node.attributes["descending"]
    length, count = x.shape[-1], node.shape[-1]

    def emit(symbol: str, cpu: Any) -> Any:
        k = Emitter(symbol)
        source, target = k.pointer("x", x.dtype), k.pointer("y", "i64")
        n, wanted = k.scalar("length"), k.scalar("count")
        with k.loop(k.begin, k.end) as row:
            first, base = k.let(row * n), k.let(row * wanted)
            _Heap(k, Order(k, source, x.dtype, descending), target, first, base, wanted).select(n)
        return k.function()

    kernel = Kernel("order", (x.dtype, descending), (x.dtype, "i64"), 2, emit)
    cost = dim(4 + 2 * length + _LEVELS * count)
    flops = dim(product(x.shape) + _LEVELS * product(node.shape))
    return Call(
        kernel, (x, node), (length, count), product(x.shape[:-1]), cost, flops, nbytes(x, node), node.source
    )


@dataclass(frozen=True)
class _Heap:
    """`count` indices from `base` of `places` on; of a place and its children it is the place that comes last."""

    k: Emitter
    order: Order
    places: Buffer
    first: Expr
    base: Expr
    count: Expr

    def select(self, length: Expr) -> None:
        k, count = self.k, self.count
        with k.loop(0, count) as i:
            k.store(self.places, k.let(self.base + i), i)
        half = k.let(div(count, 2))
        with k.loop(0, half) as i:
            self._sink(k.let(half - 1 - i), count)
        with k.when(count > i64(0)), k.loop(count, length) as i:
            root = k.load(self.places, self.base)
            values = (self.order.value(self.first, i), self.order.value(self.first, root))
            with k.when(self.order.before(values[0], i, values[1], root)):
                k.store(self.places, self.base, i)
                self._sink(i64(0), count)
        with k.loop(1, count) as i:
            last = k.let(count - i)
            root, other = k.load(self.places, self.base), k.load(self.places, k.let(self.base + last))
            k.store(self.places, k.let(self.base + last), root)
            k.store(self.places, self.base, other)
            self._sink(i64(0), last)

    def _sink(self, start: Expr, count: Expr) -> None:
        """The index at `start` goes down until none of its children comes after it."""
        k = self.k
        at, child = k.registers(1, "int64"), k.registers(1, "int64")
        moving = k.load(self.places, k.let(self.base + start))
        value = self.order.value(self.first, moving)
        k.set(at, 0, start)
        k.set(child, 0, k.let(start * 2 + 1))
        with k.repeat(k.get(child) < count):
            left = k.let(k.get(child))
            right = k.let(tirx.min(left + 1, count - 1))
            other = self._later(left, right)
            index = k.load(self.places, k.let(self.base + other))
            sinks = self.order.before(value, moving, self.order.value(self.first, index), index)
            k.set(child, 0, count)  # ends, unless the place goes on
            with k.when(sinks):
                k.store(self.places, k.let(self.base + k.get(at)), index)
                k.set(at, 0, other)
                k.set(child, 0, k.let(other * 2 + 1))
        k.store(self.places, k.let(self.base + k.get(at)), moving)

    def _later(self, left: Expr, right: Expr) -> Expr:
        """Of two places in the heap the one whose element comes later in order."""
        k = self.k
        i, j = (k.load(self.places, k.let(self.base + place)) for place in (left, right))
        values = (self.order.value(self.first, i), self.order.value(self.first, j))
        return k.let(tirx.Select(self.order.before(values[0], i, values[1], j), right, left))


LOWERINGS: dict[str, Callable[[Node], Call]] = {"argsort": argsort}
