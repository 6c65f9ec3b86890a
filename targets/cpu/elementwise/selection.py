"""Elements and rows selected by index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from llmc.compiler.calls import Call, Layouts
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import same_dim
from llmc.targets.cpu.elementwise.movement import copy_run, long_cost, move_call, pick_run
from llmc.targets.tir.emit import Emitter, i64
from llmc.targets.tir.grid import walk
from llmc.targets.tir.places import row_place
from llmc.targets.tir.strides import clamped


def embedding(node: Node, layouts: Layouts = (None, None)) -> Call:
    """One item is one index: a row of the table, which may lie by panels."""
    table, index = node.inputs
    width, panels = product(table.shape[1:]), layouts[0]

    def emit(k: Emitter) -> None:
        rows, indices = k.pointer("table", table.dtype), k.pointer("index", index.dtype)
        target = k.pointer("y", node.dtype)
        count, length = k.scalar("count"), k.scalar("width")
        with k.loop(k.begin, k.end) as item:
            row = clamped(k, k.load(indices, item), count)
            (start, step), base = row_place(k, row, length, panels), k.let(item * length)
            if panels is None:
                copy_run(k, rows, start, target, base, length)
            else:
                pick_run(k, rows, start, step, target, base, length)

    key, cost = ("embedding", *([panels] if panels else [])), dim(width) if panels else long_cost(width)
    call = move_call(node, key, emit, (table.shape[0], width), product(index.shape), cost, picked=True)
    return replace(call, laid=partial(embedding, node))


def gather(node: Node) -> Call:
    """x[outer, n, inner] at index[outer, m, inner]; one item is one (outer, m)."""
    x, index = node.inputs
    axis = node.attributes["axis"]
    inner, outer = product(x.shape[axis + 1 :]), product(x.shape[:axis])
    last = same_dim(inner, 1)
    sizes = (x.shape[axis], index.shape[axis], inner)

    def emit(k: Emitter) -> None:
        source, indices = k.pointer("x", x.dtype), k.pointer("index", index.dtype)
        target = k.pointer("y", node.dtype)
        n, m, width = k.scalar("n"), k.scalar("m"), k.scalar("inner")
        length = m if last else width
        with walk(k, [k.end, i64(1)] if last else [k.end, m]) as (row, place):
            base = k.let((row * m + place) * length) if not last else k.let(row * m)
            with k.loop(0, length) as i:
                at = clamped(k, k.load(indices, k.let(base + i)), n)
                read = k.let(row * n + at) if last else k.let((row * n + at) * width + i)
                k.store(target, base + i, k.load(source, read))

    items = outer if last else dim(outer * index.shape[axis])
    length = index.shape[axis] if last else inner
    return move_call(node, ("gather", last), emit, sizes, items, dim(4 + 4 * length), picked=True)


LOWERINGS: dict[str, Callable[[Node], Call]] = {"embedding": embedding, "gather": gather}
