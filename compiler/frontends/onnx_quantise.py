"""ONNX's quantised ops. Levels of 8 bits are the graph's own (`onnx_levels.py`), and so are products of constant ones.

Else it is plain arithmetic: integers are held exactly, products of them are summed exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmc.compiler.dims import Dim, product
from llmc.compiler.frontends.composed_conv import Windows, convolution
from llmc.compiler.frontends.composed_rounding import nearest_even
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_image import windows_of
from llmc.compiler.frontends.onnx_kinds import DTYPES, bits
from llmc.compiler.frontends.onnx_levels import dequantised, fits, is_levels, is_weight, remember
from llmc.compiler.frontends.onnx_small_floats import is_small, rounded
from llmc.compiler.graph import DTYPES as ARRAYS
from llmc.compiler.graph import Node

_UINT8, _INT8 = 2, 3
Part = tuple[Node, Node, Node | None]
_EXACT = 256  # products of two numbers of 9 bits whose sum f32 still holds exactly


def limits(kind: int) -> tuple[int, int]:
    """The smallest and the largest integer of an element type."""
    narrow = bits(kind)
    if narrow is None:
        info = np.iinfo(ARRAYS[DTYPES[kind]])
        return int(info.min), int(info.max)
    width, signed = narrow
    return (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)


def spread(call: Call, values: Node, x: Node, axis: int, block: int) -> Node:
    """Scales or zero points in a shape that broadcasts with x: one for all, one for each place of an axis or block."""
    rank = x.type.rank
    if values.type.rank == 0 or (values.type.rank == 1 and values.shape[0] == 1 and not block):
        return call.reshape(values, ())
    axis = axis % rank
    if values.type.rank == 1 and not block:
        return call.reshape(values, (*values.shape, *(1,) * (rank - 1 - axis)))
    size, count = x.shape[axis], values.shape[axis]
    call.require(isinstance(size, int) and block > 0, "blocks along an axis of dynamic size")
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    wide = call.expand(call.reshape(values, (*before, count, 1, *after)), (*before, count, block, *after))
    flat = call.reshape(wide, (*before, count * block, *after))
    return call.sliced(flat, axis, 0, size)


def _scales(call: Call, x: Node, first: int) -> tuple[Node, Node | None]:
    axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
    axis = axis if -x.type.rank <= axis < x.type.rank else 0
    zero = call.node(first + 1) if call.has(first + 1) else None
    scale = spread(call, call.node(first), x, axis, block)
    return scale, None if zero is None else spread(call, zero, x, axis, block)


def quantised(call: Call, x: Node, scale: Node, zero: Node | None, kind: int) -> Node:
    """round(x / scale) + zero within the type, halves to even."""
    if kind in (_UINT8, _INT8):
        zero = call.number(0, DTYPES[kind]) if zero is None else zero
        if zero.dtype == DTYPES[kind] and fits(x, scale, zero):
            return call.op("quantize", x, scale, zero)
    ratio = call.op("div", x, scale)
    if is_small(kind):
        return rounded(call, ratio if zero is None else call.op("add", ratio, zero), kind)
    near = nearest_even(call, ratio)
    near = near if zero is None else call.op("add", near, call.cast(zero, "f32"))
    low, high = limits(kind)
    held = call.op("minimum", call.op("maximum", near, call.number(low, "f32")), call.number(high, "f32"))
    return call.cast(held, DTYPES[kind])


def exact(call: Call, x: Node, zero: Node | None) -> Node:
    """x - zero as f32, of integers of at most 16 bits without loss."""
    if x.dtype == "f32":
        return x if zero is None else call.op("sub", x, call.cast(zero, "f32"))
    if zero is None:
        return call.cast(x, "f32")
    return call.cast(call.op("sub", call.cast(x, "i32"), call.cast(zero, "i32")), "f32")


@onnx_op("QuantizeLinear", "com.microsoft.QuantizeLinear")
def _quantize(call: Call) -> Node:
    x = call.cast(call.node(0), "f32")
    scale, zero = _scales(call, x, 1)
    call.attribute("precision", 0)
    stated = call.attribute("output_dtype", 0)
    kind = call.kinds[2] if call.has(2) else stated or _UINT8
    call.require(stated in (0, kind), "an output_dtype that is not the zero point's")
    if not is_small(kind):
        call.without_meaning("saturate")  # of small floats
    return quantised(call, x, scale, zero, kind)


@onnx_op("DequantizeLinear", "com.microsoft.DequantizeLinear")
def _dequantize(call: Call) -> Node:
    x = call.node(0)
    scale, zero = _scales(call, x, 1)
    wanted = call.attribute("output_dtype", 0)
    call.require(not wanted or DTYPES[wanted] == "f32", "a result that is no float")
    return value_of(call, x, scale, zero)


def value_of(call: Call, x: Node, scale: Node, zero: Node | None) -> Node:
    """(x - zero) * scale"""
    if is_levels(x, scale, zero):
        return dequantised(call, x, scale, zero)
    return call.op("mul", exact(call, x, zero), scale)


# --- products of integers


def _exact_sum(call: Call, size: int, part: Callable[[int, int], Node]) -> Node:
    """The i32 sum of products along an axis, in parts that f32 holds exactly."""
    total: Node | None = None
    for start in range(0, size, _EXACT):
        made = call.cast(part(start, min(start + _EXACT, size)), "i32")
        total = made if total is None else call.op("add", total, made)
    assert total is not None
    return total


def _zero(call: Call, position: int) -> Node | None:
    return call.node(position) if call.has(position) else None


def _by_row(call: Call, zero: Node | None, x: Node, columns: bool) -> Node | None:
    """A zero point for each row of the left or each column of the right."""
    if zero is None or zero.type.rank != 1 or columns or zero.shape[0] == 1:
        return zero
    return call.reshape(zero, (*zero.shape, 1))


def product_of(call: Call, a: Node, za: Node | None, b: Node, zb: Node | None) -> Node:
    """(a - za) @ (b - zb) as i32."""
    a = exact(call, a, _by_row(call, za, a, False))
    b = exact(call, b, _by_row(call, zb, b, True))
    call.require(a.type.rank >= 2 and b.type.rank >= 2, "a product of integers with a vector")
    size = a.shape[-1]
    call.require(isinstance(size, int), "a product of integers over a dynamic size")

    def part(start: int, stop: int) -> Node:
        left = call.sliced(a, a.type.rank - 1, start, stop)
        return call.op("matmul", left, call.sliced(b, b.type.rank - 2, start, stop))

    return _exact_sum(call, int(size), part)


def product_of_levels(
    call: Call, a: Node, sa: Node, za: Node | None, b: Node, sb: Node, zb: Node | None
) -> Node | None:
    """The product of what levels mean, of a constant right factor."""
    sa, za = (_single(call, sa), None if za is None else _single(call, za))
    fixed = is_weight(b, sb, zb) and b.type.rank == 2
    if not (fixed or not isinstance(a.shape[-1], int)) or not is_levels(b, sb, zb):
        return None  # sums of a dynamic number of products are no sums of a few of them
    if not is_levels(a, sa, za) or a.type.rank < 2 or sa.type.rank or (za is not None and za.type.rank):
        return None
    return call.op("matmul", dequantised(call, a, sa, za), dequantised(call, b, sb, zb))


def _single(call: Call, value: Node) -> Node:
    return call.reshape(value, ()) if value.shape == (1,) else value


@onnx_op("MatMulInteger")
def _matmul_integer(call: Call) -> Node:
    a, b, za, zb = call.node(0), call.node(1), _zero(call, 2), _zero(call, 3)
    sums, one = product_of(call, a, za, b, zb), call.number(1, "f32")
    floats = product_of_levels(call, a, one, za, b, one, zb)
    return sums if floats is None else remember(sums, floats)


@onnx_op("QLinearMatMul")
def _q_matmul(call: Call) -> Node:
    a, sa, za, b, sb, zb, sy, zy = call.nodes()
    floats = product_of_levels(call, a, sa, za, b, sb, zb)
    if floats is not None:
        return quantised(call, floats, _single(call, sy), _single(call, zy), call.kinds[7])
    total = call.cast(product_of(call, a, za, b, zb), "f32")
    scale_a = call.reshape(sa, (*sa.shape, 1)) if sa.type.rank == 1 and sa.shape[0] != 1 else sa
    made = call.op("mul", call.op("mul", total, scale_a), sb)
    sy, zy = (call.reshape(v, ()) if v.type.rank == 1 and v.shape[0] == 1 else v for v in (sy, zy))
    return quantised(call, made, sy, zy, call.kinds[7])


def _levels_convolved(call: Call, x: Part, w: Part, bias: Node | None, windows: Windows) -> Node | None:
    """The convolution of what levels mean, by a constant weight; parts are levels, scale and zero point."""
    values = []
    for levels, scale, zero in (x, w):
        size = levels.shape[0] if levels is w[0] else 1
        one, around = (_by_output(call, part, levels, size) for part in (scale, zero))
        assert one is not None
        if not is_levels(levels, one, around):
            return None
        values.append((levels, one, around))
    if not is_weight(*values[1]):
        return None
    image, kernel = (dequantised(call, *value) for value in values)
    return convolution(call, image, kernel, bias, windows)


def _by_output(call: Call, part: Node | None, levels: Node, size: Dim) -> Node | None:
    """A scale or zero point as one number, or as one for each output of a weight."""
    if part is None or part.type.rank != 1:
        return part
    if part.shape[0] == 1:
        return call.reshape(part, ())
    return call.reshape(part, (size, *(1,) * (levels.type.rank - 1))) if part.shape[0] == size else part


def _convolved(call: Call, x: Node, zx: Node | None, w: Node, zw: Node | None, windows: Windows) -> Node:
    """The convolution of x - zx with w - zw as i32."""
    x = exact(call, x, zx)
    if zw is not None and zw.type.rank == 1 and zw.shape[0] != 1:
        zw = call.reshape(zw, (*zw.shape, *(1,) * (w.type.rank - 1)))
    w = exact(call, w, zw)
    each = max(_EXACT // product(w.shape[2:]), 1)
    channels = int(w.shape[1])
    if channels <= each:
        return call.cast(convolution(call, x, w, None, windows), "i32")
    call.require(windows.groups == 1, "a convolution of integers with so many channels in a group")
    total: Node | None = None
    for start in range(0, channels, each):
        stop = min(start + each, channels)
        part = convolution(
            call, call.sliced(x, 1, start, stop), call.sliced(w, 1, start, stop), None, windows
        )
        total = call.cast(part, "i32") if total is None else call.op("add", total, call.cast(part, "i32"))
    assert total is not None
    return total


@onnx_op("ConvInteger")
def _conv_integer(call: Call) -> Node:
    x, w, zx, zw = call.node(0), call.node(1), _zero(call, 2), _zero(call, 3)
    windows, one = windows_of(call, w.shape[2:], x.shape[2:]), call.number(1, "f32")
    sums = _convolved(call, x, zx, w, zw, windows)
    floats = _levels_convolved(call, (x, one, zx), (w, one, zw), None, windows)
    return sums if floats is None else remember(sums, floats)


@onnx_op("QLinearConv")
def _q_conv(call: Call) -> Node:
    """The bias is in units of x_scale * w_scale."""
    x, sx, zx, w, sw, zw, sy, zy = (call.node(i) for i in range(8))
    windows, bias = windows_of(call, w.shape[2:], x.shape[2:]), call.node(8) if call.has(8) else None
    scale = call.op("mul", _single(call, sx), _single(call, sw))
    floats = None if bias is None else call.op("mul", call.cast(bias, "f32"), scale)
    made = _levels_convolved(call, (x, sx, zx), (w, sw, zw), floats, windows)
    if made is None:
        total, rest = _convolved(call, x, zx, w, zw, windows), (1,) * (w.type.rank - 2)
        if bias is not None:
            total = call.op("add", total, call.reshape(bias, (*bias.shape, *rest)))
        scale = call.reshape(scale, (*scale.shape, *rest)) if scale.type.rank else scale
        made = call.op("mul", call.cast(total, "f32"), scale)
    return quantised(call, made, call.reshape(sy, ()), call.reshape(zy, ()), call.kinds[7])
