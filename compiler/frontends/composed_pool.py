"""Pooling with every way to count: ceiled sizes, padding that is left out, sizes that do not divide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.composed import Array, along, fixed, joined, number
from llmc.compiler.frontends.parts import Maker, sliced
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant
from llmc.compiler.ops.conv import out_size


@dataclass(frozen=True)
class Axis:
    """Windows along one axis.

    Args:
        pads: before and after.
        ceil: a last window may reach beyond the padding, if it begins before its end.
    """

    kernel: int
    stride: int
    pads: tuple[int, int] = (0, 0)
    dilation: int = 1
    ceil: bool = False

    def beyond(self, m: Maker, size: Dim) -> int:
        """How far the last window reaches beyond the padding."""
        if not self.ceil:
            return 0
        m.require(isinstance(size, int), "pooling with ceil_mode along an axis of dynamic size")
        assert isinstance(size, int)
        extent = self.dilation * (self.kernel - 1) + 1
        room = size + sum(self.pads)
        count = -(-(room - extent) // self.stride) + 1
        if (count - 1) * self.stride >= size + self.pads[0]:
            count -= 1
        return max(0, (count - 1) * self.stride + extent - room)

    def cut(self, size: Dim, beyond: int) -> Axis:
        """The same windows with all padding said; of a single window that covers the axis, what lies on it."""
        room = (size if isinstance(size, int) else 0) + sum(self.pads) + beyond
        single = isinstance(size, int) and room - self.kernel < self.stride and self.dilation == 1
        if single and self.kernel - self.pads[0] >= size:
            return Axis(int(size), 1)
        return Axis(self.kernel, self.stride, (self.pads[0], self.pads[1] + beyond), self.dilation)

    def counts(self, size: int, beyond: int, padding: bool) -> Array:
        """How many elements each window has, of the image alone or with its padding."""
        known = np.zeros(self.pads[0] + size + self.pads[1] + beyond)
        known[: self.pads[0] + size + self.pads[1]] = padding
        known[self.pads[0] : self.pads[0] + size] = 1
        number = out_size(len(known), self.kernel, self.stride, 0, 1)
        return np.array([known[i * self.stride :][: self.kernel].sum() for i in range(number)])


def _image(m: Maker, x: Node, axes: Sequence[Axis]) -> tuple[Node, list[Axis]]:
    """x as `[n, c, h, w]`, and windows along its last two axes."""
    lead = (1,) * (len(axes) + 2 - x.type.rank)
    if len(axes) == 1:
        return m.reshape(x, (*lead, *x.shape[:-1], 1, x.shape[-1])), [Axis(1, 1), *axes]
    return m.reshape(x, (*lead, *x.shape)), list(axes)


def max_pool(m: Maker, x: Node, axes: Sequence[Axis]) -> Node:
    """x `[b, c, sizes...]`, one or two sizes."""
    m.require(len(axes) <= 2, f"pooling over {len(axes)} axes")
    image, both = _image(m, x, axes)
    cut = [a.cut(d, a.beyond(m, d)) for a, d in zip(both, image.shape[2:], strict=True)]
    return _shaped(m, _pooled(m, "max", image, cut), x, len(axes))


def avg_pool(
    m: Maker, x: Node, axes: Sequence[Axis], count_padding: bool = True, divisor: float | None = None
) -> Node:
    """x `[b, c, sizes...]`, one or two sizes; a window is divided by how much of it is counted, or by `divisor`."""
    m.require(len(axes) <= 2, f"pooling over {len(axes)} axes")
    image, both = _image(m, x, axes)
    beyond = [a.beyond(m, d) for a, d in zip(both, image.shape[2:], strict=True)]
    cut = [a.cut(d, n) for a, d, n in zip(both, image.shape[2:], beyond, strict=True)]
    y = _pooled(m, "mean", image, cut)
    if divisor is not None:
        y = m.op("mul", y, number(m, cut[0].kernel * cut[1].kernel / divisor, y))
    else:
        places = zip(both, cut, image.shape[2:], beyond, strict=True)
        rows, columns = (_share(m, *place, count_padding) for place in places)
        factor = rows[:, None] * columns
        if (factor != 1).any():
            y = m.op("mul", y, constant(factor.astype(np.float32), source=m.source))
    return _shaped(m, y, x, len(axes))


def _share(m: Maker, axis: Axis, cut: Axis, size: Dim, beyond: int, padding: bool) -> Array:
    """kernel / count of each window along an axis; one number where all are whole."""
    if cut.kernel == axis.kernel and not beyond and (padding or not any(axis.pads)):
        return np.ones(1)
    m.require(isinstance(size, int), "pooling that leaves out padding along an axis of dynamic size")
    assert isinstance(size, int)
    return cut.kernel / axis.counts(size, beyond, padding)


def _pooled(m: Maker, op: str, image: Node, axes: Sequence[Axis]) -> Node:
    """The largest or the mean of each window, padding included."""
    sizes = image.shape[2:]
    if all(isinstance(d, int) and a == Axis(d, 1) for a, d in zip(axes, sizes, strict=True)):
        return m.op(op, image, axes=(2, 3), keepdims=True)
    window: dict[str, tuple[int, ...]] = {
        "kernel": tuple(a.kernel for a in axes),
        "stride": tuple(a.stride for a in axes),
        "padding": (*(a.pads[0] for a in axes), *(a.pads[1] for a in axes)),
    }
    if op == "mean":
        return m.op("avg_pool2d", image, **window)
    return m.op("max_pool2d", image, **window, dilation=tuple(a.dilation for a in axes))


def _shaped(m: Maker, y: Node, x: Node, count: int) -> Node:
    """The result `[n, c, h, w]` with the leading axes of x."""
    return m.reshape(y, (*x.shape[: x.type.rank - count], *y.shape[4 - count :]))


# --- to a given size


def bounds(size: int, out: int) -> list[tuple[int, int]]:
    """Of each of `out` windows that cover an axis."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def adaptive(m: Maker, x: Node, outs: Sequence[int | None], highest: bool = False) -> Node:
    """The last axes of x to the sizes `outs` by windows that cover them; None leaves an axis as it is."""
    first = x.type.rank - len(outs)
    wanted = [(first + i, out) for i, out in enumerate(outs) if out is not None and out != x.shape[first + i]]
    single = tuple(axis for axis, out in wanted if out == 1)
    if single:
        x = m.op("max" if highest else "mean", x, axes=single, keepdims=True)
    rest = [(axis, out) for axis, out in wanted if out != 1]
    sizes = fixed(m, x, [axis for axis, _ in rest], "adaptive pooling")
    even = all(size % out == 0 for size, (_, out) in zip(sizes, rest, strict=True))
    if rest and even and len(outs) <= 2:
        windows = dict.fromkeys(range(first, x.type.rank), 1)
        windows |= {axis: size // out for size, (axis, out) in zip(sizes, rest, strict=True)}
        return (max_pool if highest else avg_pool)(m, x, [Axis(n, n) for n in windows.values()])
    for size, (axis, out) in zip(sizes, rest, strict=True):
        x = _largest(m, x, axis, size, out) if highest else along(m, x, axis, _means(size, out))
    return x


def _largest(m: Maker, x: Node, axis: int, size: int, out: int) -> Node:
    parts = [sliced(m, x, axis, low, high - low) for low, high in bounds(size, out)]
    return joined(m, [m.op("max", part, axes=(axis,), keepdims=True) for part in parts], axis)


def _means(size: int, out: int) -> Array:
    matrix = np.zeros((out, size))
    for row, (low, high) in zip(matrix, bounds(size, out), strict=True):
        row[low:high] = 1 / (high - low)
    return matrix
