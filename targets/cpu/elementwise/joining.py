"""Inputs joined or padded: an item is a row of the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmc.compiler.calls import Call
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.targets.cpu.elementwise.movement import copy_run, fill_run, long_cost, move_call
from llmc.targets.tir.emit import LANES, Emitter, Expr, i64
from llmc.targets.tir.grid import walk
from llmc.targets.tir.later import tirx
from llmc.targets.tir.scalar_ops import constant
from llmc.targets.tir.strides import pad_axes


def concat(node: Node) -> Call:
    """One item is one row of the output: the inputs' rows one after the other."""
    axis = node.attributes["axis"]
    outer, inner = product(node.shape[:axis]), product(node.shape[axis + 1 :])
    lengths = [dim(i.shape[axis] * inner) for i in node.inputs]

    def emit(k: Emitter) -> None:
        sources = [k.pointer(f"x{i}", node.dtype) for i in range(len(lengths))]
        target = k.pointer("y", node.dtype)
        rows = [k.scalar(f"length{i}") for i in range(len(lengths))]
        total = i64(0)
        for row in rows:
            total = k.let(total + row)
        with k.loop(k.begin, k.end) as item:
            base = k.let(item * total)
            for source, row in zip(sources, rows, strict=True):
                copy_run(k, source, k.let(item * row), target, base, row)
                base = k.let(base + row)

    return move_call(node, ("concat", len(lengths)), emit, lengths, outer, long_cost(sum(lengths)))


def pad(node: Node) -> Call:
    """One item is one row of the output: filled, then the input's row, if there is one, is copied into it."""
    axes, value = pad_axes(node), node.attributes["value"]

    def emit(k: Emitter) -> None:
        source, target = k.pointer("x", node.dtype), k.pointer("y", node.dtype)
        has = [k.scalar(f"has{i}") for i in range(len(axes))]
        gets = [k.scalar(f"gets{i}") for i in range(len(axes))]
        left = [k.scalar(f"left{i}") for i in range(len(axes))]
        fill = constant(node.dtype, value, LANES)
        with walk(k, [*gets[:-1], i64(1)]) as index:
            _pad_row(k, source, target, has, gets, left, index[:-1], fill)

    scalars = [axis[part] for part in range(3) for axis in axes]
    items = product(a[1] for a in axes[:-1])
    return move_call(node, ("pad", len(axes), repr(value)), emit, scalars, items, 2 * long_cost(axes[-1][1]))


def _pad_row(
    k: Emitter,
    source: Any,
    target: Any,
    has: list[Expr],
    gets: list[Expr],
    left: list[Expr],
    index: list[Expr],
    fill: Expr,
) -> None:
    row, read, inside = i64(0), i64(0), tirx.const(True, "bool")
    for i, size, total, skip in zip(index, has, gets, left, strict=False):
        at = k.let(i - skip)
        inside = k.let(tirx.And(inside, tirx.And(at >= i64(0), at < size)))
        row, read = k.let(row * total + i), k.let(read * size + at)
    base = k.let(row * gets[-1])
    fill_run(k, fill, target, base, gets[-1])
    with k.when(inside):
        copy_run(k, source, k.let(read * has[-1]), target, k.let(base + left[-1]), has[-1])


LOWERINGS: dict[str, Callable[[Node], Call]] = {"concat": concat, "pad": pad}
