"""Orders and scattered values on the GPU: a thread for each element, which looks at all of its line.

So no thread waits for another, and what meets at one place does so in index order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmc.compiler.calls import Call
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import flat
from llmc.targets.tir.emit import i64
from llmc.targets.tir.later import tirx
from llmc.targets.tir.order import Order
from llmc.targets.tir.places import combined
from llmc.targets.tir.strides import clamped


def argsort(node: Node) -> Call:
    """How many elements come before an element is its place."""
    x, descending = node.inputs[0], node.attributes["descending"]

    def emit(k: GridEmitter) -> None:
        source, target = k.pointer("x", x.dtype), k.pointer("y", "i64")
        length, wanted, size = (k.scalar(name) for name in ("length", "count", "size"))
        order, rank = Order(k, source, x.dtype, descending), k.registers(1, "int64")
        with k.each(size) as item:
            row, own = k.decode(item, [i64(1), length])
            first = k.let(row * length)
            value = order.value(first, own)
            k.set(rank, 0, i64(0))
            with k.loop(0, length) as i, k.when(order.before(order.value(first, i), i, value, own)):
                k.set(rank, 0, k.let(k.get(rank) + i64(1)))
            place = k.let(k.get(rank))
            with k.when(place < wanted):
                k.store(target, row * wanted + place, own)

    size = product(x.shape)
    scalars = (x.shape[-1], node.shape[-1], size)
    return flat(node, "order", (descending,), emit, scalars, size, dim(size * x.shape[-1]))


def scatter(node: Node) -> Call:
    """An element of the result takes what is written to its place."""
    x, index, updates = node.inputs
    axis, reduce = node.attributes["axis"], node.attributes["reduce"]
    shared = index.type.rank < x.type.rank

    def emit(k: GridEmitter) -> None:
        source, places = k.pointer("x", x.dtype), k.pointer("index", index.dtype)
        given, target = k.pointer("updates", x.dtype), k.pointer("y", x.dtype)
        n, m, width, size = (k.scalar(name) for name in ("n", "m", "inner", "size"))
        held = k.registers(1, str(source.ty.dtype))
        with k.each(size) as item:
            outer, own, inner = k.decode(item, [i64(1), n, width])
            k.set(held, 0, k.load(source, item))
            with k.loop(0, m) as j:
                read = k.let((outer * m + j) * width + inner)
                at = clamped(k, k.load(places, j if shared else read), n)
                with k.when(tirx.EQ(at, own)):
                    old, new = k.let(k.get(held)), k.load(given, read)
                    k.set(held, 0, combined(k, reduce, x.dtype, old, new))
            k.store(target, item, k.let(k.get(held)))

    size = product(x.shape)
    sizes = (x.shape[axis], updates.shape[axis], product(x.shape[axis + 1 :]), size)
    return flat(node, "move", ("scatter", reduce, shared), emit, sizes, size, dim(size * updates.shape[axis]))


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"argsort": argsort, "scatter": scatter}
