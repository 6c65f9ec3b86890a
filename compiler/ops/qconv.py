"""Convolution of levels `[batch, height, width, channels]`: exact integer sums, then the float steps of `qlinear`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from llmc.compiler.graph import Node, TensorType
from llmc.compiler.ops.conv import NO_PADDING, TO_LAST, conv2d_type, conv_sums, windows_fit
from llmc.compiler.ops.declare import op
from llmc.compiler.ops.linear import product_rows
from llmc.compiler.ops.quantise import LEVEL_DTYPES, after_zero, scaled, signed, want_sums
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rules import Array, same_dim, shape_text, want_dtype, want_flags, want_shape
from llmc.errors import LlmcError


def _qconv2d_reference(
    q: Array,
    x_scale: Array,
    w: Array,
    w_scale: Array,
    *others: Array,
    epilogue: tuple[str, ...],
    has_zero: bool,
    **window: Any,
) -> Array:
    zero, extras = (signed(others[0]), others[1:]) if has_zero else (0.0, others)
    # float64 holds the integer sums exactly; float32 rounds them once, as the conversion of an int32 does
    sums = conv_sums((signed(q) - zero).transpose(0, 3, 1, 2), w, **window).transpose(TO_LAST)
    return scaled(sums.astype(np.float32), x_scale * w_scale, extras, epilogue)


def _constraints(q: TensorType, x_scale: TensorType, w: TensorType, *others: TensorType, **a: Any) -> Any:
    return windows_fit(q, w.shape[2:], a["padding"], a["dilation"], True)


def _images(node: Node) -> Collection[int]:
    return {*product_rows(node)} | ({1} if node.inputs[1].type.rank else set())


@op(
    "qconv2d",
    _qconv2d_reference,
    traits={"accuracy": "close", "constraints": _constraints, "first_axis": _images},
    stride=(1, 1),
    padding=NO_PADDING,
    dilation=(1, 1),
    groups=1,
    epilogue=(),
    has_zero=False,
)
def _qconv2d(
    q: TensorType,
    x_scale: TensorType,
    w: TensorType,
    w_scale: TensorType,
    *others: TensorType,
    epilogue: Any,
    has_zero: Any,
    **window: Any,
) -> TensorType:
    """As `conv2d` with channels last, of levels with one scale, or one for each image `[batch, 1, 1, 1]`. With
    `has_zero` a zero point, of the levels' dtype, comes before the extras: it is what lies around the image."""
    want_flags(has_zero=has_zero)
    want_dtype(q, LEVEL_DTYPES if has_zero else {"i8"}, "the image")
    want_dtype(w, {"i8"}, "the weight")
    extras = after_zero(others, has_zero)
    if has_zero and others[0].dtype != q.dtype:
        raise LlmcError(f"the zero point is {others[0].dtype}, the image {q.dtype}")
    floats = (TensorType("f32", part.shape) for part in (q, w))
    result = conv2d_type(*floats, *extras, **window, epilogue=epilogue, channels_last=True)
    _, *taps = w.shape
    want_sums(int(np.prod([int(d) for d in taps])), has_zero)
    _want_scales(q, x_scale, w_scale, w.shape[0])
    return result


def _want_scales(q: TensorType, x_scale: TensorType, w_scale: TensorType, outputs: Any) -> None:
    want_dtype(x_scale, F32, "the image's scale")
    if x_scale.rank and not (
        x_scale.rank == 4
        and same_dim(x_scale.shape[0], q.shape[0])
        and all(same_dim(d, 1) for d in x_scale.shape[1:])
    ):
        raise LlmcError(
            f"the image's scale has shape {shape_text(x_scale.shape)}, not that of one number an image"
        )
    want_dtype(w_scale, F32, "the weight's scale")
    want_shape(w_scale, (outputs,), "the weight's scale")
