"""Convolution and pooling over images `[batch, channels, height, width]`, or `[batch, height, width, channels]`.

The second, with `channels_last`, is how CPUs like them: what a pixel holds lies side by side. Weights are
`[out, in, height, width]` in both. References compute in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim, dim, floor_div
from llmc.compiler.graph import TensorType
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.linear import ACTIVATIONS, EXTRAS, product_rows
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rules import Array, want_dtype, want_flags, want_int, want_rank, want_shape
from llmc.compiler.ops.traits import AtMost, first_input
from llmc.errors import LlmcError

NO_PADDING = (0, 0, 0, 0)
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # perms of images


def out_size(size: Dim, kernel: int, stride: int, pads: int, dilation: int) -> Dim:
    """How many windows of `kernel` taps, `dilation` apart, fit every `stride` elements."""
    return dim(floor_div(dim(size + pads - dilation * (kernel - 1) - 1), stride) + 1)


def image_axes(channels_last: bool) -> tuple[int, int]:
    """Height and width."""
    return (1, 2) if channels_last else (2, 3)


def _channels_first(x: TensorType, channels_last: bool) -> TensorType:
    return TensorType(x.dtype, tuple(x.shape[i] for i in TO_FIRST)) if channels_last and x.rank == 4 else x


def _placed(x: TensorType, channels_last: bool) -> TensorType:
    """The type of a result computed with channels first."""
    return TensorType(x.dtype, tuple(x.shape[i] for i in TO_LAST)) if channels_last else x


def _either(reference: Callable[..., Array]) -> Callable[..., Array]:
    """A reference for channels first, for both orders; images come first, a residual is one too."""

    def run(x: Array, *others: Array, channels_last: bool = False, **attributes: Any) -> Array:
        if not channels_last:
            return reference(x, *others, **attributes)
        turned = [
            o.transpose(TO_FIRST) if at and o.ndim == 4 else o for at, o in enumerate(others)
        ]  # the first is the weight
        return np.ascontiguousarray(
            reference(x.transpose(TO_FIRST), *turned, **attributes).transpose(TO_LAST)
        )

    return run


def _windows(
    x: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: Any, dilation: Any, fill: float
) -> Iterator[tuple[int, int, Array]]:
    """For each tap (row, column) the elements `[b, c, oh, ow]` under it, in float64."""
    top, left, bottom, right = padding
    wide = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    sizes = [
        out_size(d, k, s, 0, step)
        for d, k, s, step in zip(wide.shape[2:], kernel, stride, dilation, strict=True)
    ]
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            y, z = i * dilation[0], j * dilation[1]
            rows = slice(y, y + (sizes[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(z, z + (sizes[1] - 1) * stride[1] + 1, stride[1])
            yield i, j, wide[:, :, rows, columns]


def conv_sums(x: Array, w: Array, *, stride: Any, padding: Any, dilation: Any, groups: int) -> Array:
    """The sums of a convolution with channels first, in float64."""
    o, per_group, kh, kw = w.shape
    weights = w.astype(np.float64).reshape(groups, o // groups, per_group, kh, kw)
    total: Any = 0.0
    for i, j, taps in _windows(x, (kh, kw), stride, padding, dilation, 0.0):
        b, _, oh, ow = taps.shape
        rows = taps.reshape(b, groups, per_group, oh * ow)
        part = weights[..., i, j]
        term = part[None] * rows if per_group == 1 else part[None] @ rows
        total = total + term
    return np.asarray(total.reshape(b, o, oh, ow))


def _conv2d_reference(
    x: Array, w: Array, *extras: Array, epilogue: tuple[str, ...], winograd: bool = False, **window: Any
) -> Array:
    total: Any = conv_sums(x, w, **window)
    pending = iter(extras)
    for step in epilogue:
        if step in EXTRAS:
            extra = next(pending)
            total = total + (extra[:, None, None] if step == "bias" else extra)
        else:
            total = ACTIVATIONS[step](total)
    return np.asarray(total).astype(np.float32)


def windows_fit(x: TensorType, kernel: Any, padding: Any, dilation: Any, last: bool) -> Iterator[AtMost]:
    """A window lies within the padded image."""
    for at, axis in enumerate(image_axes(last)):
        extent = dilation[at] * (kernel[at] - 1) + 1
        room = dim(x.shape[axis] + padding[at] + padding[at + 2])
        yield AtMost(extent, room, "its window", f"the padded size of axis {axis}")


def _conv2d_constraints(
    x: TensorType,
    w: TensorType,
    *extras: TensorType,
    padding: Any,
    dilation: Any,
    channels_last: bool,
    **others: Any,
) -> Iterator[AtMost]:
    return windows_fit(x, w.shape[2:], padding, dilation, channels_last)


@op(
    "conv2d",
    _either(_conv2d_reference),
    traits={"accuracy": "close", "constraints": _conv2d_constraints, "first_axis": product_rows},
    stride=(1, 1),
    padding=NO_PADDING,
    dilation=(1, 1),
    groups=1,
    epilogue=(),
    channels_last=False,
    winograd=False,
)
def conv2d_type(
    x: TensorType,
    w: TensorType,
    *extras: TensorType,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    epilogue: Any,
    channels_last: Any,
    winograd: Any = False,
) -> TensorType:
    """`[b, o, oh, ow]`, or with channels last. `winograd`: how it is computed, not what (docs/numerics.md)."""
    want_flags(channels_last=channels_last, winograd=winograd)
    x = _channels_first(x, channels_last)
    for what, value in (("x", x), ("the weight", w)):
        want_dtype(value, F32, what)
        want_rank(value, 4, what=what)
    want_int(groups, "groups", 1)
    o, per_group, kh, kw = w.shape
    if not all(isinstance(d, int) and d > 0 for d in w.shape):
        raise LlmcError("the weight's sizes must be fixed and positive")
    want_shape(x, (x.shape[0], per_group * groups, *x.shape[2:]), "x")
    if o % groups:
        raise LlmcError(f"{o} output channels are not a multiple of {groups} groups")
    result = _placed(_result(x, o, (kh, kw), stride, padding, dilation), channels_last)
    if winograd and not (channels_last and (kh, kw, groups) == (3, 3, 1) and stride == dilation == (1, 1)):
        raise LlmcError(
            "winograd is for 3x3 taps side by side, at every pixel, over all channels, which lie last"
        )
    _check_epilogue(result, o, extras, epilogue)
    return result


def _check_epilogue(result: TensorType, o: Dim, extras: tuple[TensorType, ...], epilogue: Any) -> None:
    if not isinstance(epilogue, tuple):
        raise LlmcError(f"epilogue is {epilogue!r}, not a tuple")
    for step in epilogue:
        if step not in EXTRAS and step not in ACTIVATIONS:
            raise LlmcError(
                f"no epilogue step {step!r}", hint=f"use {', '.join([*sorted(EXTRAS), *ACTIVATIONS])}"
            )
    reading = [step for step in epilogue if step in EXTRAS]
    if len(reading) != len(extras):
        raise LlmcError(f"the epilogue {epilogue} reads {len(reading)} extra inputs, given are {len(extras)}")
    for step, extra in zip(reading, extras, strict=True):
        want_dtype(extra, F32, step)
        want_shape(extra, (o,) if step == "bias" else result.shape, step)


def _result(
    x: TensorType, channels: Dim, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> TensorType:
    """`[b, channels, oh, ow]` after checking the window."""
    for what, value, count, low in (
        ("kernel", kernel, 2, 1),
        ("stride", stride, 2, 1),
        ("padding", padding, 4, 0),
        ("dilation", dilation, 2, 1),
    ):
        if not isinstance(value, tuple) or len(value) != count:
            raise LlmcError(f"{what} is {value!r}, not {count} integers")
        for number in value:
            want_int(number, what, low)
    pads = (padding[0] + padding[2], padding[1] + padding[3])
    sizes = tuple(
        out_size(*arguments) for arguments in zip(x.shape[2:], kernel, stride, pads, dilation, strict=True)
    )
    if any(isinstance(s, int) and s < 1 for s in sizes):
        raise LlmcError(f"a window of {kernel[0]}x{kernel[1]} does not fit into the padded image")
    return TensorType(x.dtype, (x.shape[0], channels, *sizes))


# --- pooling


def _pool_constraints(
    x: TensorType, kernel: Any, stride: Any, padding: Any, channels_last: bool, dilation: Any = (1, 1)
) -> Iterator[AtMost]:
    return windows_fit(x, kernel, padding, dilation, channels_last)


def _max_pool_reference(x: Array, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Array:
    taps = [part for _, _, part in _windows(x, kernel, stride, padding, dilation, -np.inf)]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.maximum.reduce(taps)).astype(x.dtype)


@op(
    "max_pool2d",
    _either(_max_pool_reference),
    traits={"constraints": _pool_constraints, "first_axis": first_input},
    kernel=REQUIRED,
    stride=REQUIRED,
    padding=NO_PADDING,
    dilation=(1, 1),
    channels_last=False,
)
def _max_pool2d(
    x: TensorType, kernel: Any, stride: Any, padding: Any, dilation: Any, channels_last: Any
) -> TensorType:
    return _pooled(x, kernel, stride, padding, dilation, channels_last)


def _pooled(
    x: TensorType, kernel: Any, stride: Any, padding: Any, dilation: Any, channels_last: Any
) -> TensorType:
    want_dtype(x, F32)
    want_rank(x, 4)
    want_flags(channels_last=channels_last)
    x = _channels_first(x, channels_last)
    return _placed(_result(x, x.shape[1], kernel, stride, padding, dilation), channels_last)


def _avg_pool_reference(x: Array, kernel: Any, stride: Any, padding: Any) -> Array:
    taps = [part for _, _, part in _windows(x, kernel, stride, padding, (1, 1), 0.0)]
    return np.asarray(sum(taps[1:], start=taps[0]) / len(taps)).astype(x.dtype)


@op(
    "avg_pool2d",
    _either(_avg_pool_reference),
    traits={"accuracy": "close", "constraints": _pool_constraints, "first_axis": first_input},
    kernel=REQUIRED,
    stride=REQUIRED,
    padding=NO_PADDING,
    channels_last=False,
)
def _avg_pool2d(x: TensorType, kernel: Any, stride: Any, padding: Any, channels_last: Any) -> TensorType:
    return _pooled(x, kernel, stride, padding, (1, 1), channels_last)
