"""Quantised values: one scale that is known, or one for each place of an axis, is QuantizeLinear and DequantizeLinear.

Where each row has a scale of its own, found when it is there, the arithmetic is written out. Products are of floats:
those of ONNX Runtime on u8 and i8 saturate on processors without VNNI, and others of integers are slower than floats.
Whole numbers of 8 bits in f32 have exact sums up to 2^24.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.int16 import signed_levels
from llmc.compiler.ops.linear import EXTRAS
from llmc.compiler.ops.quantise import LEVELS, TINY
from llmc.compiler.ops.rows import ZERO
from llmc.compiler.ops.split import PARTS, UNIT
from llmc.compiler.to_onnx.emitter import Emitter
from llmc.compiler.to_onnx.float_steps import fma, gelu_poly, inverted
from llmc.compiler.to_onnx.packed_rows import packed, split_values
from llmc.compiler.to_onnx.products import epilogue
from llmc.compiler.to_onnx.table import exports
from llmc.compiler.to_onnx.tensors import kind_of


@exports("row_scale")
def _row_scale(e: Emitter, node: Node) -> str:
    return row_scale(e, e.value(node.inputs[0]))


def row_scale(e: Emitter, x: str) -> str:
    """The largest magnitude of each row / 127, 1 for a row of zeros."""
    largest = e.op("ReduceMax", e.op("Abs", x), e.ints([-1]), keepdims=1)
    scale = e.op("Div", largest, e.number(LEVELS, "f32"))
    return e.op("Where", e.op("Less", scale, e.number(TINY, "f32")), e.number(1, "f32"), scale)


def levels(e: Emitter, x: str, scale: str) -> str:
    """x / scale as whole numbers of -127..127 in f32."""
    scaled = e.op("Mul", x, inverted(e, scale))
    return e.op("Round", e.op("Clip", scaled, e.number(-LEVELS, "f32"), e.number(LEVELS, "f32")))


@exports("quantize")
def _quantize(e: Emitter, node: Node) -> str:
    """By one scale that is known it is QuantizeLinear, which has -128 too: x is limited before."""
    if len(node.inputs) == 3:
        return _around(e, node)
    x, scale = e.inputs(node)
    if not is_known_scale(node.inputs[1]):
        return e.cast(levels(e, x, scale), "f32", "i8")
    least = -LEVELS * node.inputs[1].attributes["value"].array.reshape(())
    held = e.op("Max", x, e.number(least, "f32"))
    return e.op("QuantizeLinear", held, e.reshape(scale, node.inputs[1].shape, ()), e.number(0, "i8"))


def _around(e: Emitter, node: Node) -> str:
    """Levels around a zero point: QuantizeLinear and DequantizeLinear by one number, else written out."""
    x, scale, zero = e.inputs(node)
    if all(all(d == 1 for d in part.shape) for part in node.inputs[1:]):
        op = "QuantizeLinear" if node.op == "quantize" else "DequantizeLinear"
        one, middle = (e.reshape(v, p.shape, ()) for v, p in zip((scale, zero), node.inputs[1:], strict=True))
        return e.op(op, x, one, middle)
    middle = e.op("Cast", zero, to=kind_of("f32"))
    if node.op == "dequantize":
        return e.op("Mul", e.op("Sub", e.op("Cast", x, to=kind_of("f32")), middle), scale)
    low = 0 if node.dtype == "u8" else -128
    near = e.op("Add", e.op("Round", e.op("Div", x, scale)), middle)
    return e.cast(e.op("Clip", near, e.number(low, "f32"), e.number(low + 255, "f32")), "f32", node.dtype)


def is_known_scale(scale: Node) -> bool:
    """Whether a scale is one number that is known."""
    return scale.op == "constant" and scale.attributes["value"].array.size == 1


@exports("dequantize")
def _dequantize(e: Emitter, node: Node) -> str:
    if len(node.inputs) == 3:
        return _around(e, node)
    q, scale = e.inputs(node)
    if is_known_scale(node.inputs[1]):
        return e.op("DequantizeLinear", q, e.reshape(scale, node.inputs[1].shape, ()))
    axis = _own_axis(node)
    if axis is not None:
        flat = e.reshape(scale, node.inputs[1].shape, (node.shape[axis],))
        return e.op("DequantizeLinear", q, flat, axis=axis)
    return e.op("Mul", e.op("Cast", q, to=kind_of("f32")), scale)


def _own_axis(node: Node) -> int | None:
    """The axis along which a constant has a scale for each place; None if it has one for other parts."""
    q, scale = node.inputs
    if q.op != "constant" or scale.op != "constant":
        return None
    axes = [axis for axis, size in enumerate(scale.shape, q.type.rank - scale.type.rank) if size != 1]
    return axes[0] if len(axes) == 1 else None


# --- packed rows


@exports("dequantize_rows")
def _dequantize_rows(e: Emitter, node: Node) -> Node:
    q, scale = packed(e, node.inputs[0], node.attributes["size"])
    return make("dequantize", (q, scale), node.source)


@exports("qlinear")
def _qlinear(e: Emitter, node: Node) -> str | Node:
    """By a known scale linear(dequantize(rows), dequantize(w)); else sums of whole numbers, which the scales follow."""
    rows, w, w_scale, *extras = node.inputs
    if node.attributes["has_zero"]:
        return _qlinear_around(e, node)
    q, scale = packed(e, rows, int(w.shape[1]))
    if not scale.type.rank:
        x = make("dequantize", (q, scale), node.source)
        weight = make("dequantize", (w, _column(w_scale)), node.source)
        return make("linear", (x, weight, *extras), node.source, epilogue=node.attributes["epilogue"])
    sums = make("linear", (_whole(e, q), make("cast", (w,), w.source, dtype="f32")), node.source)
    return _scaled(e, sums, make("mul", (scale, w_scale)), node.attributes["epilogue"], extras)


def _scaled(e: Emitter, sums: Node, scale: Node, steps: tuple[str, ...], extras: Sequence[Node]) -> Node:
    """`scaled` of `ops/quantise.py`: a first bias or residual is added by one fused multiply-add."""
    if steps and steps[0] in EXTRAS:
        value, steps, extras = fma(e, sums, scale, extras[0]), steps[1:], extras[1:]
    else:
        value = make("mul", (sums, scale))
    if steps[-1:] != ("gelu_poly",):
        return e.standing(make("neg", (value,)), epilogue(e, e.value(value), steps, extras))
    before = epilogue(e, e.value(value), steps[:-1], extras)
    return gelu_poly(e, e.standing(make("neg", (value,)), before))


def _qlinear_around(e: Emitter, node: Node) -> Node:
    """linear(dequantize(rows), dequantize(w)); levels of rows that are constant are signed."""
    rows, w, w_scale, zero, *extras = node.inputs
    q, scale = packed(e, rows, int(w.shape[1]))
    if q.dtype != zero.dtype:
        zero = _signed(zero)
    x = make("dequantize", (q, scale, zero), node.source)
    weight = make("dequantize", (w, _column(w_scale)), node.source)
    return make("linear", (x, weight, *extras), node.source, epilogue=node.attributes["epilogue"])


def _signed(zero: Node) -> Node:
    wide = make("sub", (make("cast", (zero,), dtype="i32"), constant(np.int32(ZERO))))
    return make("cast", (wide,), dtype="i8")


@exports("qconv2d")
def _qconv2d(e: Emitter, node: Node) -> Node:
    """conv2d(dequantize(q), dequantize(w))"""
    q, scale, w, w_scale, *others = node.inputs
    count = int(node.attributes["has_zero"])
    x = make("dequantize", (q, scale, *others[:count]), node.source)
    by_output = make("reshape", (w_scale,), w.source, shape=(w.shape[0], 1, 1, 1))
    weight = make("dequantize", (w, by_output), node.source)
    window = {name: value for name, value in node.attributes.items() if name != "has_zero"}
    return make("conv2d", (x, weight, *others[count:]), node.source, **window, channels_last=True)


def _whole(e: Emitter, q: Node) -> Node:
    """Whole numbers as floats; those that are made here are never cut to bytes."""
    made = make("cast", (q,), q.source, dtype="f32")
    if q.op != "quantize" or is_known_scale(q.inputs[1]):
        return made
    return e.standing(made, levels(e, *e.inputs(q)))


def _column(scale: Node) -> Node:
    if scale.op != "constant":
        return make("reshape", (scale,), shape=(scale.shape[0], 1))
    array = scale.attributes["value"].array
    return constant(array.reshape(-1, 1), scale.attributes["value"].name)


@exports("int16_linear")
def _int16_linear(e: Emitter, node: Node) -> Node:
    """linear(x, dequantize(w)), by the floats that the levels of 16 bits are of."""
    rows, w, w_scale, *extras = node.inputs
    if w.op != "constant":
        raise UnsupportedError("a weight that is computed")
    levels_ = constant(signed_levels(w.attributes["value"].array), w.attributes["value"].name)
    weight = make("dequantize", (levels_, _column(w_scale)), node.source)
    return make("linear", (split_values(rows), weight, *extras), node.source, **node.attributes)


@exports("int16_blockwise")
@exports("int8_blockwise")
def _blockwise_product(e: Emitter, node: Node) -> Node:
    """linear(x, blockwise(levels, scales)) likewise."""
    count = 3 + node.attributes["has_zeros"]
    (rows, *stored), extras = node.inputs[:count], node.inputs[count:]
    storage = {name: node.attributes[name] for name in ("columns", "bits", "block")}
    weight = make("blockwise", stored, node.source, **storage)
    return make(
        "linear", (split_values(rows), weight, *extras), node.source, epilogue=node.attributes["epilogue"]
    )


@exports("bf16_linear")
def _bf16_linear(e: Emitter, node: Node) -> Node:
    """linear(x, bfloat16(halves)), x cast to bfloat16 and back; what the rows have as 0, below 2^-50, is not."""
    rows, halves, *extras = node.inputs
    x = split_values(rows)
    there = e.op("Cast", e.value(x), to=int(TensorProto.BFLOAT16))
    values = e.standing(make("abs", (x,)), e.op("Cast", there, to=kind_of("f32")))
    weight = make("bfloat16", (halves,), node.source, columns=node.attributes["columns"])
    return make("linear", (values, weight, *extras), node.source, epilogue=node.attributes["epilogue"])


@exports("split_linear")
def _split_linear(e: Emitter, node: Node) -> Node:
    """The product of the floats that the parts are of."""
    rows, w, w_scale, *extras = node.inputs
    x = split_values(rows)
    weight = _joined(w, w_scale, int(x.shape[-1]))
    return make("linear", (x, weight, *extras), node.source, **node.attributes)


def _joined(w: Node, w_scale: Node, columns: int) -> Node:
    """f32 [n, k] of split weights, which are l, m, h side by side."""
    if w.op != "constant" or w_scale.op != "constant":
        raise UnsupportedError("a split weight that is computed")
    parts, scale = (n.attributes["value"] for n in (w, w_scale))
    low, middle, high = np.split(parts.array.astype(np.float64), PARTS, axis=1)
    whole = high + middle / 256 + low / UNIT
    return constant((whole * scale.array[:, None])[:, :columns].astype(np.float32), parts.name)
