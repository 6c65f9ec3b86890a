"""Convolutions of one, two and three axes, forward and transposed, in products and `conv2d`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.frontends.composed import Array, by_channel, changed, joined, taken
from llmc.compiler.frontends.composed_pad import padded
from llmc.compiler.frontends.parts import Maker, sliced, transposed
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant
from llmc.compiler.ops.conv import out_size

MOST_TAPS = 16  # of a convolution along one axis that becomes a product of shifted rows

Sizes = Sequence[int]
_FIXED = ("constant", "iota", "full")  # what is folded, and all that reads only such


@dataclass(frozen=True)
class Windows:
    """Where a kernel is put: one number for each axis.

    Args:
        before, after: zeros around the input; of a transposed convolution, what is cut off its full result.
    """

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    groups: int = 1

    def from_axis(self, first: int) -> Windows:
        """Those along the axes from `first` on."""
        s, d, b, a = (v[first:] for v in (self.stride, self.dilation, self.before, self.after))
        return Windows(s, d, b, a, self.groups)

    def flat(self) -> Windows:
        """Those along one axis, in an image of one row."""
        return Windows(
            (1, *self.stride), (1, *self.dilation), (0, *self.before), (0, *self.after), self.groups
        )

    def apart(self, kernel: Sequence[int]) -> bool:
        """Whether windows lie side by side and cover the input."""
        bare = not any((*self.before, *self.after)) and all(d == 1 for d in self.dilation)
        return bare and self.groups == 1 and self.stride == tuple(kernel)


def convolution(m: Maker, x: Node, weight: Node, bias: Node | None, windows: Windows) -> Node:
    """x `[b, c, sizes...]` with a weight `[o, c/groups, kernel...]` and a bias `[o]`."""
    rank = len(windows.stride)
    m.require(1 <= rank <= 3, f"a convolution over {rank} axes")
    if is_computed(weight):
        return _computed(m, x, weight, bias, windows)
    if rank == 2:
        return _planar(m, x, weight, bias, windows)
    if rank == 3:
        return _spatial(m, x, weight, bias, windows)
    if windows.groups == 1 and weight.shape[2] <= MOST_TAPS:
        return _rows(m, x, weight, bias, windows)
    image = m.reshape(x, (*x.shape[:2], 1, x.shape[2]))
    o, c, k = weight.shape
    kernel = changed(m, weight, lambda w: w.reshape(o, c, 1, k), lambda w: m.reshape(w, (o, c, 1, k)))
    y = _planar(m, image, kernel, bias, windows.flat())
    return m.reshape(y, (*y.shape[:2], y.shape[3]))


def is_computed(weight: Node) -> bool:
    """Whether a weight depends on an input: kernels of convolutions are made for constant ones."""
    seen, pending = {weight}, [weight]
    while pending:
        node = pending.pop()
        if not node.inputs and node.op not in _FIXED:
            return True
        new = [i for i in node.inputs if i not in seen]
        seen.update(new)
        pending += new
    return False


def _computed(m: Maker, x: Node, weight: Node, bias: Node | None, windows: Windows) -> Node:
    """One product for each group: weight `[g, o/g, c/g * taps]` times windows `[b, g, c/g * taps, places]`."""
    o, width, *kernel = weight.shape
    x = padded(m, x, (0, 0, *windows.before), (0, 0, *windows.after))
    counts = [
        out_size(d, k, s, 0, f)
        for d, k, s, f in zip(x.shape[2:], kernel, windows.stride, windows.dilation, strict=True)
    ]
    taps = [_tap(m, x, place, counts, windows) for place in np.ndindex(*map(int, kernel))]
    batch, groups, depth = x.shape[0], windows.groups, dim(width * len(taps))
    rows = m.reshape(joined(m, taps, 2), (batch, groups, depth, product(counts)))
    y = m.op("matmul", m.reshape(weight, (groups, dim(o // groups), depth)), rows)
    return by_channel(m, m.reshape(y, (batch, o, *counts)), "add", bias)


def _tap(m: Maker, x: Node, place: Sizes, counts: Sequence[Dim], windows: Windows) -> Node:
    """What one place of the kernel sees, `[b, c, 1, counts...]`."""
    for axis, (at, count) in enumerate(zip(place, counts, strict=True)):
        x = sliced(m, x, axis + 2, at * windows.dilation[axis], count, windows.stride[axis])
    return m.reshape(x, (*x.shape[:2], 1, *x.shape[2:]))


def _planar(m: Maker, x: Node, weight: Node, bias: Node | None, windows: Windows) -> Node:
    return m.op(
        "conv2d",
        *(n for n in (x, weight, bias) if n is not None),
        stride=windows.stride,
        dilation=windows.dilation,
        padding=(*windows.before, *windows.after),
        groups=windows.groups,
        epilogue=() if bias is None else ("bias",),
    )


def _rows(m: Maker, x: Node, weight: Node, bias: Node | None, windows: Windows) -> Node:
    """x [b, c, t] -> windows [b, t', k*c] times weight [o, k*c]: k shifted slices and one linear."""
    (stride,), (dilation,), (o, c, width) = windows.stride, windows.dilation, weight.shape
    rows = transposed(m, x, (0, 2, 1))
    rows = padded(m, rows, (0, *windows.before, 0), (0, *windows.after, 0))
    length = out_size(rows.shape[1], width, stride, 0, dilation)
    taps = joined(m, [sliced(m, rows, 1, k * dilation, length, stride) for k in range(width)], 2)
    shape = (o, width * c)
    matrix = changed(
        m,
        weight,
        lambda w: w.transpose(0, 2, 1).reshape(shape),
        lambda w: m.reshape(transposed(m, w, (0, 2, 1)), shape),
    )
    return transposed(m, _linear(m, taps, matrix, bias), (0, 2, 1))


def _linear(m: Maker, x: Node, weight: Node, bias: Node | None) -> Node:
    extra, epilogue = ((), ()) if bias is None else ((bias,), ("bias",))
    return m.op("linear", x, weight, *extra, epilogue=epilogue)


# --- three axes


def _spatial(m: Maker, x: Node, weight: Node, bias: Node | None, windows: Windows) -> Node:
    """The sum of one conv2d for each step of the kernel in depth, over all slices as a batch."""
    if windows.apart(weight.shape[2:]):
        return _patches(m, x, weight, bias, windows.stride)
    x = padded(m, x, (0, 0, windows.before[0], 0, 0), (0, 0, windows.after[0], 0, 0))
    stride, dilation = windows.stride[0], windows.dilation[0]
    depth = out_size(x.shape[2], weight.shape[2], stride, 0, dilation)
    slices = transposed(m, x, (0, 2, 1, 3, 4))
    total: Node | None = None
    for i in range(weight.shape[2]):
        part = sliced(m, slices, 1, i * dilation, depth, stride)
        flat = m.reshape(part, (dim(x.shape[0] * depth), *part.shape[2:]))
        y = _planar(m, flat, _at_depth(m, weight, i), None if i else bias, windows.from_axis(1))
        total = y if total is None else m.op("add", total, y)
    assert total is not None
    return transposed(m, m.reshape(total, (x.shape[0], depth, *total.shape[1:])), (0, 2, 1, 3, 4))


def _at_depth(m: Maker, weight: Node, i: int) -> Node:
    o, c, _, *kernel = weight.shape
    return changed(
        m,
        weight,
        lambda w: w[:, :, i],
        lambda w: m.reshape(sliced(m, w, 2, i, 1), (o, c, *kernel)),
        f".{i}",
    )


def _patches(m: Maker, x: Node, weight: Node, bias: Node | None, stride: Sizes) -> Node:
    """Windows side by side: the pixels of each are a row, and the convolution is a product."""
    batch, channels = x.shape[:2]
    counts = [out_size(d, s, s, 0, 1) for d, s in zip(x.shape[2:], stride, strict=True)]
    for axis, (count, step) in enumerate(zip(counts, stride, strict=True), 2):
        x = sliced(m, x, axis, 0, dim(count * step))
    split = m.reshape(x, (batch, channels, *(d for pair in zip(counts, stride, strict=True) for d in pair)))
    rows = m.op("transpose", split, perm=(0, 2, 4, 6, 1, 3, 5, 7))
    taps = product((channels, *stride))
    shape = (weight.shape[0], taps)
    matrix = changed(m, weight, lambda w: w.reshape(shape), lambda w: m.reshape(w, shape))
    return transposed(m, _linear(m, m.reshape(rows, (batch, *counts, taps)), matrix, bias), (0, 4, 1, 2, 3))


# --- transposed


def transposed_convolution(m: Maker, x: Node, weight: Node, bias: Node | None, windows: Windows) -> Node:
    """The transpose of a convolution with a weight `[c, o/groups, kernel...]`: one of a spread input."""
    kernel = [int(k) for k in weight.shape[2:]]
    if windows.apart(kernel) and weight.op == "constant":
        return _apart(m, x, weight, bias, windows.stride)
    spans = [(k - 1) * d for k, d in zip(kernel, windows.dilation, strict=True)]
    before = [span - cut for span, cut in zip(spans, windows.before, strict=True)]
    # spreading leaves stride - 1 zeros behind the last element
    after = [s - c - (step - 1) for s, c, step in zip(spans, windows.after, windows.stride, strict=True)]
    wide = padded(m, _spread(m, x, windows.stride), (0, 0, *before), (0, 0, *after))
    flipped = changed(
        m, weight, lambda w: _flipped(w, windows.groups), lambda w: _turned(m, w, windows.groups)
    )
    ones, none = (1,) * len(kernel), (0,) * len(kernel)
    return convolution(m, wide, flipped, bias, Windows(ones, windows.dilation, none, none, windows.groups))


def _flipped(w: Array, groups: int) -> Array:
    """[c, o/groups, kernel...] -> [o, c/groups, kernel backwards...]"""
    c, outputs, *kernel = w.shape
    grouped = w.reshape(groups, c // groups, outputs, *kernel).swapaxes(1, 2)
    return np.flip(grouped.reshape(groups * outputs, c // groups, *kernel), tuple(range(2, w.ndim)))


def window_counts(sizes: Sizes, kernel: Sizes, windows: Windows) -> list[Dim]:
    """How many windows there are along each axis."""
    steps = zip(sizes, kernel, windows.stride, windows.before, windows.after, windows.dilation, strict=True)
    return [out_size(d, k, s, b + a, f) for d, k, s, b, a, f in steps]


def folded_windows(m: Maker, x: Node, sizes: Sizes, kernel: Sizes, windows: Windows) -> Node:
    """x `[b, c * taps, windows]` -> `[b, c, sizes...]`, the sum of all windows, each in its place."""
    taps = product(kernel)
    counts = window_counts(sizes, kernel, windows)
    steps = zip(counts, kernel, windows.stride, windows.dilation, strict=True)
    full = [(n - 1) * s + f * (k - 1) + 1 for n, k, s, f in steps]
    after = tuple(f - b - d for f, d, b in zip(full, sizes, windows.before, strict=True))
    channels = int(x.shape[1]) // taps
    place = np.eye(taps, dtype=np.float32).reshape(taps, 1, *kernel)
    weight = constant(np.tile(place, (channels, *(1,) * (len(kernel) + 1))), source=m.source)
    image = m.reshape(x, (*x.shape[:2], *counts))
    spread = Windows(windows.stride, windows.dilation, windows.before, after, channels)
    return transposed_convolution(m, image, weight, None, spread)


def _turned(m: Maker, w: Node, groups: int) -> Node:
    """`_flipped` of a weight that is computed."""
    c, outputs, *kernel = w.shape
    split = m.reshape(w, (groups, c // groups, outputs, *kernel))
    split = m.op("transpose", split, perm=(0, 2, 1, *range(3, len(kernel) + 3)))
    w = m.reshape(split, (groups * outputs, c // groups, *kernel))
    for axis, size in enumerate(kernel, 2):
        w = taken(m, w, constant(np.arange(size)[::-1].copy(), source=m.source), axis)
    return w


def _spread(m: Maker, x: Node, stride: Sizes) -> Node:
    """`stride - 1` zeros behind each element."""
    if all(s == 1 for s in stride):
        return x
    split = m.reshape(x, (*x.shape[:2], *(d for n in x.shape[2:] for d in (n, 1))))
    after = (0, 0, *(z for s in stride for z in (0, s - 1)))
    wide = padded(m, split, (0,) * len(after), after)
    return m.reshape(wide, (*x.shape[:2], *(dim(n * s) for n, s in zip(x.shape[2:], stride, strict=True))))


def _apart(m: Maker, x: Node, weight: Node, bias: Node | None, stride: Sizes) -> Node:
    """Each pixel becomes a window of its own: a product over channels, whose results are put side by side."""
    n, sizes = len(stride), x.shape[2:]
    o = weight.shape[1]
    matrix = changed(m, weight, lambda w: w.reshape(w.shape[0], -1).T, lambda w: w)
    rows = m.op("linear", transposed(m, x, (0, *range(2, n + 2), 1)), matrix)
    split = m.reshape(rows, (x.shape[0], *sizes, o, *stride))
    order = (0, n + 1, *(a for i in range(n) for a in (1 + i, n + 2 + i)))
    y = m.reshape(
        m.op("transpose", split, perm=order),
        (x.shape[0], o, *(dim(d * s) for d, s in zip(sizes, stride, strict=True))),
    )
    return by_channel(m, y, "add", bias)
