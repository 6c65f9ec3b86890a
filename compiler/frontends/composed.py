"""What converters of every frontend write in elementary ops: who makes the nodes, and the smallest pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.parts import Maker, transposed
from llmc.compiler.graph import DTYPES, Node, Weight
from llmc.compiler.ops import constant

_MOST_PARTS = 16  # of one concat: a GPU kernel takes only so many arguments

Array = np.ndarray[Any, Any]


def number(m: Maker, value: Any, like: Node) -> Node:
    """A rank-0 constant of the dtype of `like`."""
    return constant(np.asarray(value).astype(DTYPES[like.dtype]), source=m.source)


def size(m: Maker, value: Dim) -> Node:
    """A size as a rank-0 i64 node."""
    return constant(np.int64(value), source=m.source) if isinstance(value, int) else m.op("dim", value=value)


def joined(m: Maker, parts: Sequence[Node], axis: int) -> Node:
    """A concat of any number of parts."""
    while len(parts) > 1:
        groups = [parts[i : i + _MOST_PARTS] for i in range(0, len(parts), _MOST_PARTS)]
        parts = [g[0] if len(g) == 1 else m.op("concat", *g, axis=axis) for g in groups]
    return parts[0]


def taken(m: Maker, x: Node, index: Node, axis: int) -> Node:
    """x[..., index, ...], for an index of rank 1 whose values are within the axis."""
    rank = x.type.rank
    front = transposed(m, x, (axis, *(a for a in range(rank) if a != axis)))
    rows = m.op("embedding", front, index)
    return transposed(m, rows, (*range(1, axis + 1), 0, *range(axis + 1, rank)))


def along(m: Maker, x: Node, axis: int, matrix: Array) -> Node:
    """y[..., i, ...] = sum over j of matrix[i, j] * x[..., j, ...]"""
    perm = list(range(x.type.rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    weight = constant(np.ascontiguousarray(matrix, np.float32), source=m.source)
    return transposed(m, m.op("linear", transposed(m, x, perm), weight), perm)


def by_channel(m: Maker, x: Node, op: str, values: Node | None) -> Node:
    """op(x, values[c]) for x `[batch, c, ...]`; no values: x itself."""
    if values is None:
        return x
    shape = (*values.shape, *(1,) * (x.type.rank - 2))
    return m.op(op, x, changed(m, values, lambda v: v.reshape(shape), lambda v: m.reshape(v, shape)))


def changed(
    m: Maker, weight: Node, array: Callable[[Array], Array], node: Callable[[Node], Node], name: str = ""
) -> Node:
    """A weight in another order of its values: at once if it is constant, else by ops."""
    if weight.op != "constant":
        return node(weight)
    value: Weight = weight.attributes["value"]
    made = np.ascontiguousarray(array(value.array))
    return constant(Weight(made, f"{value.name}{name}"), source=weight.source)


def fixed(m: Maker, x: Node, axes: Sequence[int], what: str) -> list[int]:
    """The sizes of some axes, which must be known."""
    sizes = [x.shape[a] for a in axes]
    known = [d for d in sizes if isinstance(d, int)]
    m.require(len(known) == len(sizes), f"{what} of dynamic height or width", "fix the size of images")
    return known


def batched(m: Maker, x: Node, rank: int, function: Callable[[Node], Node]) -> Node:
    """`function` of x with a batch axis, which is dropped again if x has none."""
    m.require(
        x.type.rank in (rank - 1, rank),
        f"{x.type.rank} axes, not {rank}",
        "use [batch, channels, sizes...]",
    )
    if x.type.rank == rank:
        return function(x)
    y = function(m.reshape(x, (1, *x.shape)))
    return m.reshape(y, y.shape[1:])
