"""Copies along strides, and what all kernels that move elements share.

`transpose`, `expand` and `slice` are one kernel: a dense output, an input walked with any strides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import same_dim
from llmc.targets.tir.emit import LANES, Emitter, Expr, i64, splat
from llmc.targets.tir.grid import CHUNK, ceil_div, chunk_count, nbytes, offset, vectors, walk
from llmc.targets.tir.later import tirx
from llmc.targets.tir.strides import STRIDES, Axis, merge_strides

SHORT = 8  # elements of a row that are written out


def move_call(
    node: Node,
    key: tuple[Any, ...],
    emit: Callable[[Emitter], None],
    scalars: Sequence[Dim],
    items: Dim,
    cost: Dim,
    picked: bool = False,
) -> Call:
    """The call of a kernel without arithmetic, of the family `move`.

    Args:
        picked: of the first input only what the result holds is read.
    """

    def function(symbol: str, cpu: Any) -> Any:
        k = Emitter(symbol)
        emit(k)
        return k.function()

    pointers = (*(i.dtype for i in node.inputs), node.dtype)
    kernel = Kernel("move", (*key, pointers), pointers, len(scalars), function)
    return Call(
        kernel,
        (*node.inputs, node),
        tuple(scalars),
        dim(items),
        cost,
        0,
        nbytes(*(node.inputs[1:] if picked else node.inputs), *[node] * picked, node),
        node.source,
    )


def row_cost(length: Dim) -> Dim:
    """Vector operations to move one chunk of a row of `length` elements."""
    return 2 + 2 * ceil_div(min(length, CHUNK) if isinstance(length, int) else CHUNK, LANES)


def long_cost(length: Dim) -> Dim:
    """Vector operations to move a whole row of `length` elements."""
    return dim(2 + 2 * ceil_div(dim(length), LANES))


def copy_run(k: Emitter, source: Any, start: Expr, target: Any, base: Expr, count: Expr) -> None:
    """`count` consecutive elements."""

    def body(position: Expr, mask: Expr | None) -> None:
        k.store(target, base + position, k.load(source, start + position, LANES, mask), mask)

    vectors(k, count, body)


def pick_run(k: Emitter, source: Any, start: Expr, step: Expr, target: Any, base: Expr, count: Expr) -> None:
    """`count` elements that lie `step` apart."""
    with k.loop(0, count) as i:
        k.store(target, base + i, k.load(source, k.let(start + i * step)))


def fill_run(k: Emitter, value: Expr, target: Any, base: Expr, count: Expr) -> None:
    """`count` elements set to the vector `value`."""
    vectors(k, count, lambda position, mask: k.store(target, base + position, value, mask))


def strided_copy(node: Node, axes: Sequence[Axis], start: Dim = 0) -> Call:
    """Output element (i, j, ...) is input element start + i * stride_i + j * stride_j + ..."""
    axes = merge_strides(axes)
    inner, step = axes[-1]
    if len(axes) > 1 and isinstance(inner, int) and inner <= SHORT:
        return _short_rows(node, axes, start, inner)
    mode = "run" if same_dim(step, 1) else "fill" if same_dim(step, 0) else "pick"
    scalars = (*(e for e, _ in axes), *(s for _, s in axes), start)
    items = product(e for e, _ in axes[:-1]) * ceil_div(inner, CHUNK)
    cost = row_cost(inner) * (LANES if mode == "pick" else 1)
    return move_call(
        node,
        ("copy", len(axes), mode),
        lambda k: _strided(k, node, len(axes), mode),
        scalars,
        items,
        cost,
        node.op == "slice",
    )


def _short_rows(node: Node, axes: Sequence[Axis], start: Dim, inner: int) -> Call:
    """Rows of a few elements, such as the colours of a pixel: an item is a part of the axis before."""
    rows = axes[-2][0]
    scalars = (*(e for e, _ in axes[:-1]), *(s for _, s in axes), start)
    items = product(e for e, _ in axes[:-2]) * ceil_div(rows, CHUNK)
    each = min(rows, CHUNK) if isinstance(rows, int) else CHUNK
    return move_call(
        node,
        ("copy", len(axes), "short", inner),
        lambda k: _short(k, node, len(axes), inner),
        scalars,
        items,
        dim(2 + each * inner),
        node.op == "slice",
    )


def _short(k: Emitter, node: Node, rank: int, inner: int) -> None:
    source, target = k.pointer("x", node.dtype), k.pointer("y", node.dtype)
    extents = [k.scalar(f"extent{i}") for i in range(rank - 1)]
    steps = [k.scalar(f"stride{i}") for i in range(rank)]
    first = k.scalar("start")
    out: list[Expr] = [i64(inner)]
    for extent in reversed(extents[1:]):
        out.insert(0, k.let(out[0] * extent))
    with walk(k, [*extents[:-1], chunk_count(k, extents[-1])]) as index:
        begin = k.let(index[-1] * i64(CHUNK))
        index = [*index[:-1], begin]
        at, base = k.let(first + offset(k, index, steps[:-1])), offset(k, index, out)
        with k.loop(0, k.let(tirx.min(extents[-1] - begin, i64(CHUNK))), "row") as row:
            here = k.let(at + row * steps[-2])
            for j in range(inner):
                k.store(target, base + row * inner + j, k.load(source, here + j * steps[-1]))


def _strided(k: Emitter, node: Node, rank: int, mode: str) -> None:
    source, target = k.pointer("x", node.dtype), k.pointer("y", node.dtype)
    extents = [k.scalar(f"extent{i}") for i in range(rank)]
    steps = [k.scalar(f"stride{i}") for i in range(rank)]
    first = k.scalar("start")
    row = k.let(extents[-1], "row")
    out: list[Expr] = [i64(1)]
    for extent in reversed(extents[1:]):
        out.insert(0, k.let(out[0] * extent))
    with walk(k, [*extents[:-1], chunk_count(k, row)]) as index:
        begin = k.let(index[-1] * i64(CHUNK))
        index = [*index[:-1], begin]
        count = k.let(tirx.min(row - begin, i64(CHUNK)))
        at, base = k.let(first + offset(k, index, steps)), offset(k, index, out)
        if mode == "run":
            copy_run(k, source, at, target, base, count)
        elif mode == "fill":
            fill_run(k, splat(k.load(source, at)), target, base, count)
        else:
            pick_run(k, source, at, steps[-1], target, base, count)


def strided(node: Node) -> Call:
    """The call for an op of `STRIDES`."""
    return strided_copy(node, *STRIDES[node.op](node))


LOWERINGS: dict[str, Callable[[Node], Call]] = dict.fromkeys(STRIDES, strided)
