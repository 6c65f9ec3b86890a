"""A convolution by channel whose result is rounded to levels as it is made: what `quantize_rows` makes of `conv2d`."""

from __future__ import annotations

from typing import Any

from llmc.compiler.graph import Node, TensorType, make
from llmc.compiler.ops.conv import NO_PADDING, conv2d_type, windows_fit
from llmc.compiler.ops.declare import OPS, op
from llmc.compiler.ops.linear import product_rows
from llmc.compiler.ops.quantise import packed_stride
from llmc.compiler.ops.rules import Array
from llmc.errors import LlmcError


def _reference(x: Array, w: Array, *extras: Array, **a: Any) -> Array:
    y = OPS["conv2d"].reference(x, w, *extras, **a, groups=len(w), channels_last=True)
    rows: Array = OPS["quantize_rows"].reference(y, has_scale=False, has_zero=False, table=False)
    return rows


def _constraints(x: TensorType, w: TensorType, *extras: TensorType, **a: Any) -> Any:
    return windows_fit(x, w.shape[2:], a["padding"], a["dilation"], True)


@op(
    "channel_rows",
    _reference,
    traits={"accuracy": "close", "constraints": _constraints, "first_axis": product_rows},
    stride=(1, 1),
    padding=NO_PADDING,
    dilation=(1, 1),
    epilogue=(),
)
def _channel_rows(x: TensorType, w: TensorType, *extras: TensorType, **a: Any) -> TensorType:
    """f32 `[b, h, w, c]`, weights `[c, 1, kh, kw]` -> packed rows of pixels, u8 `[b, oh, ow, line_stride(c)]`."""
    if w.rank != 4 or w.shape[1] != 1:
        raise LlmcError("the weight is not of a convolution by channel", found=str(w))
    y = conv2d_type(x, w, *extras, **a, groups=w.shape[0], channels_last=True)
    return TensorType("u8", (*y.shape[:-1], packed_stride(int(y.shape[-1]), False)))


def in_two_steps(node: Node) -> Node:
    """channel_rows(x, w, ...) -> quantize_rows(conv2d(x, w, ...))"""
    whole = {**node.attributes, "groups": node.inputs[1].shape[0], "channels_last": True}
    return make("quantize_rows", (make("conv2d", node.inputs, node.source, **whole),), node.source)
