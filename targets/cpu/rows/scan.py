"""What goes along one axis element by element, in index order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.targets.tir.emit import Emitter
from llmc.targets.tir.grid import nbytes, walk
from llmc.targets.tir.reduce import Line, argmax, cumsum


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
    "cumsum": partial(cumsum, along=_along),
    "argmax": partial(argmax, along=_along),
}
