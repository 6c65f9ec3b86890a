"""Windows over any number of axes by shifted slices, for what `conv2d` and the pools of the IR do not do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from llmc.compiler.dims import Dim, product
from llmc.compiler.frontends.composed import number
from llmc.compiler.frontends.composed_pool import Axis
from llmc.compiler.frontends.parts import Maker, sliced
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops import constant
from llmc.compiler.ops.conv import out_size

_MOST_TAPS = 256


def along_axes(m: Maker, x: Node, axes: Sequence[Axis], op: str) -> Node:
    """`op`, "add" or "maximum", of each window of x `[b, c, sizes...]`: one axis after the other."""
    for position, axis in enumerate(axes, 2):
        x = _along(m, x, position, axis, op)
    return x


def _along(m: Maker, x: Node, position: int, axis: Axis, op: str) -> Node:
    m.require(axis.kernel <= _MOST_TAPS, f"a window of {axis.kernel} elements")
    wide, count = _padded(m, x, position, axis, _neutral(x, op))
    parts = [sliced(m, wide, position, k * axis.dilation, count, axis.stride) for k in range(axis.kernel)]
    total = parts[0]
    for part in parts[1:]:
        total = m.op(op, total, part)
    return total


def _neutral(x: Node, op: str) -> float | int:
    if op == "add":
        return 0
    return float("-inf") if x.dtype == "f32" else int(np.iinfo(DTYPES[x.dtype]).min)


def _padded(m: Maker, x: Node, position: int, axis: Axis, fill: float | int) -> tuple[Node, Dim]:
    """x with all padding along an axis, and how many windows there are."""
    before = tuple(axis.pads[0] if a == position else 0 for a in range(x.type.rank))
    beyond = axis.beyond(m, x.shape[position])
    after = tuple(axis.pads[1] + beyond if a == position else 0 for a in range(x.type.rank))
    wide = m.op("pad", x, before=before, after=after, value=fill) if any((*before, *after)) else x
    return wide, out_size(wide.shape[position], axis.kernel, axis.stride, 0, axis.dilation)


def counted(m: Maker, x: Node, axes: Sequence[Axis], padding: bool) -> Node:
    """How many elements each window has, of x alone or with its padding."""
    total: Node | None = None
    for position, axis in enumerate(axes, 2):
        size = x.shape[position]
        ones = m.op("full", shape=(1, 1, size), value=1.0, dtype="f32")
        whole = Axis(axis.kernel, axis.stride, axis.pads, axis.dilation, axis.ceil)
        if padding:
            ones = m.op("pad", ones, before=(0, 0, axis.pads[0]), after=(0, 0, axis.pads[1]), value=1)
            count = along_axes(m, ones, [_bare(m, whole, size)], "add")
        else:
            count = along_axes(m, ones, [whole], "add")
        shape = tuple(count.shape[2] if a == position else 1 for a in range(x.type.rank))
        count = m.reshape(count, shape)
        total = count if total is None else m.op("mul", total, count)
    assert total is not None
    return total


def _bare(m: Maker, axis: Axis, size: Dim) -> Axis:
    """The same windows where the padding is elements; beyond it there is nothing still."""
    return Axis(axis.kernel, axis.stride, (0, axis.beyond(m, size)), axis.dilation)


def highest_places(m: Maker, x: Node, axes: Sequence[Axis], by_column: bool) -> tuple[Node, Node]:
    """The largest element of each window, and its place in all of x; of equals the first."""
    sizes = x.shape[2:]
    m.require(all(isinstance(d, int) for d in sizes), "places in an image of dynamic size")
    m.require(product([a.kernel for a in axes]) <= _MOST_TAPS, "places in a window of so many elements")
    order = np.arange(product(sizes), dtype=np.int64)
    within = order.reshape(sizes[::-1]).T if by_column else order.reshape(sizes)
    places: Node = constant(np.ascontiguousarray(within)[None, None], source=m.source)
    values, counts = x, []
    for position, axis in enumerate(axes, 2):
        values, count = _padded(m, values, position, axis, _neutral(x, "maximum"))
        places, _ = _padded(m, places, position, axis, 0)
        counts.append(count)
    best, where = None, None
    for taps in itertools.product(*(range(a.kernel) for a in axes)):
        value, place = (_tap(m, v, axes, taps, counts) for v in (values, places))
        if best is None or where is None:
            best, where = value, m.op("expand", place, shape=value.shape)
            continue
        higher = m.op("gt", value, best)
        best, where = m.op("where", higher, value, best), m.op("where", higher, place, where)
    assert best is not None
    assert where is not None
    return best, m.op("add", where, _offsets(m, x))


def _tap(m: Maker, x: Node, axes: Sequence[Axis], taps: Sequence[int], counts: Sequence[Dim]) -> Node:
    for position, (axis, tap, count) in enumerate(zip(axes, taps, counts, strict=True), 2):
        x = sliced(m, x, position, tap * axis.dilation, count, axis.stride)
    return x


def _offsets(m: Maker, x: Node) -> Node:
    """Where the image of each channel begins, `[b, c, 1...]`."""
    batch, channels, *sizes = x.shape
    count = m.op("iota", length=product((batch, channels)), dtype="i64")
    starts = m.op("mul", count, number(m, product(sizes), count))
    return m.reshape(starts, (batch, channels, *(1,) * len(sizes)))
