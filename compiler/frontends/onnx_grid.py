"""ONNX's samples of images at computed places, and crops around their middle."""

from __future__ import annotations

import numpy as np

from llmc.compiler.dims import Dim, product
from llmc.compiler.frontends.composed import size
from llmc.compiler.frontends.composed_grid import Sampling, sampled
from llmc.compiler.frontends.composed_pad import padded
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_values import want_table
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant


@onnx_op("GridSample")
def _grid_sample(call: Call) -> Node:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(call.attribute("mode", "linear"))
    how = Sampling(
        mode or call.attribute("mode", "linear"),
        call.attribute("padding_mode", "zeros"),
        bool(call.attribute("align_corners", 0)),
    )
    call.require(how.mode in ("nearest", "linear", "cubic"), f"GridSample of mode {how.mode!r}")
    call.require(how.beyond in ("zeros", "border", "reflection"), f"GridSample padded by {how.beyond!r}")
    return sampled(call, call.node(0), call.node(1), how)


@onnx_op("AffineGrid")
def _affine_grid(call: Call) -> Node:
    """theta times the places of all pixels, from -1 to 1."""
    theta, known_sizes = call.node(0), call.known_dims(1)
    sizes: tuple[Dim, ...] = call.shape_of_result("a size")[1:-1] if known_sizes is None else known_sizes[2:]
    call.require(all(isinstance(d, int) for d in sizes), "an AffineGrid of a dynamic size")
    corners = bool(call.attribute("align_corners", 0))
    want_table(*sizes, len(sizes) + 1)
    lines = [_line(int(d), corners) for d in sizes]
    mesh = np.meshgrid(*lines, indexing="ij")[::-1]
    points = np.stack([*mesh, np.ones_like(mesh[0])], -1).reshape(-1, len(sizes) + 1).astype(np.float32)
    made = call.op("matmul", constant(points, source=call.source), call.transpose(theta, (0, 2, 1)))
    return call.reshape(made, (theta.shape[0], *sizes, len(sizes)))


def _line(count: int, corners: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if corners:
        return np.linspace(-1, 1, count) if count > 1 else np.full(1, -1.0)
    return (2 * np.arange(count) + 1) / count - 1


@onnx_op("CenterCropPad")
def _center(call: Call) -> Node:
    """Each axis cut or filled with zeros on both sides alike, the odd one behind."""
    x, rank = call.node(0), call.node(0).type.rank
    axes = [a % rank for a in call.attribute("axes", range(rank))]
    wanted = call.known_dims(1)
    if wanted is None:
        declared = call.shape_of_result("a shape")
        wanted = tuple(declared[a] for a in axes)
    for axis, goal in zip(axes, wanted, strict=True):
        have = x.shape[axis]
        call.require(isinstance(have, int) and isinstance(goal, int), "CenterCropPad of a dynamic size")
        if goal < have:
            first = (have - goal) // 2
            x = call.sliced(x, axis, first, first + goal)
        elif goal > have:
            low = (goal - have) // 2
            before, after = [0] * rank, [0] * rank
            before[axis], after[axis] = low, goal - have - low
            x = padded(call, x, before, after)
    return x


@onnx_op("RoiAlign")
def _roi_align(call: Call) -> Node:
    """The mean, or the largest, of samples between pixels in each cell of a region."""
    x, rois, batch = call.node(0), call.node(1), call.cast(call.node(2), "i64")
    half = call.attribute(
        "coordinate_transformation_mode", "half_pixel" if call.opset > 15 else "output_half_pixel"
    )
    outs = [call.attribute(f"output_{n}", 1) for n in ("height", "width")]
    ratio, mode = call.attribute("sampling_ratio", 0), call.attribute("mode", "avg")
    call.require(ratio > 0, "a RoiAlign whose number of samples depends on the regions")
    scale, offset = call.attribute("spatial_scale", 1.0), 0.5 if half == "half_pixel" else 0.0
    count = rois.shape[0]
    lines = [_samples(call, rois, 1 - i, outs[i], ratio, scale, offset) for i in (0, 1)]
    values = _weighed(call, x, batch, count, lines, mode == "max")
    cells = call.reshape(values, (count, x.shape[1], outs[0], ratio, outs[1], ratio))
    return call.op("max" if mode == "max" else "mean", cells, axes=(3, 5), keepdims=False)


def _samples(call: Call, rois: Node, column: int, out: int, ratio: int, scale: float, offset: float) -> Node:
    """Places along one axis, `[regions, out * ratio]`."""

    def number(value: float) -> Node:
        return call.number(value, "f32")

    ends = [call.op("mul", call.sliced(rois, 1, c, c + 1), number(scale)) for c in (column, column + 2)]
    start, stop = (call.op("sub", end, number(offset)) for end in ends)
    span = call.op("sub", stop, start)
    span = span if offset else call.op("maximum", span, number(1))
    steps = ((np.arange(out * ratio) + 0.5) / (out * ratio)).astype(np.float32)
    return call.op("add", start, call.op("mul", span, constant(steps, source=call.source)))


def _weighed(call: Call, x: Node, batch: Node, count: Dim, lines: list[Node], largest: bool) -> Node:
    """`[regions, c, rows, columns]` between the four pixels around; the largest of them is that of their shares."""
    sizes, channels = x.shape[2:], x.shape[1]
    flat = call.reshape(call.transpose(x, (0, 2, 3, 1)), (product((x.shape[0], *sizes)), channels))
    rows, columns = (_pairs(call, line, length) for line, length in zip(lines, sizes, strict=True))
    begin = call.reshape(call.op("mul", batch, size(call, product(sizes))), (count, 1, 1))
    total: Node | None = None
    for at_row, row_share in rows:
        for at_column, column_share in columns:
            place = call.op("mul", call.reshape(at_row, (*at_row.shape, 1)), size(call, sizes[1]))
            place = call.op(
                "add", call.op("add", place, call.reshape(at_column, (count, 1, at_column.shape[1]))), begin
            )
            share = call.op(
                "mul",
                call.reshape(row_share, (*row_share.shape, 1)),
                call.reshape(column_share, (count, 1, column_share.shape[1])),
            )
            part = call.op("mul", call.op("embedding", flat, place), call.reshape(share, (*share.shape, 1)))
            total = part if total is None else call.op("maximum" if largest else "add", total, part)
    assert total is not None
    return call.transpose(total, (0, 3, 1, 2))


def _pairs(call: Call, place: Node, length: Dim) -> list[tuple[Node, Node]]:
    """The pixels on both sides and their shares; nothing of what lies more than a pixel outside."""
    whole = call.cast(size(call, length), "f32")
    one, zero = call.number(1, "f32"), call.number(0, "f32")
    last = call.op("sub", whole, one)
    out = call.op("or", call.op("lt", place, call.number(-1, "f32")), call.op("gt", place, whole))
    inside = call.op("minimum", call.op("maximum", place, zero), last)
    low = call.op("floor", inside)
    high = call.op("minimum", call.op("add", low, one), last)
    more = call.op("sub", inside, low)
    shares = (call.op("sub", one, more), more)
    return [
        (call.cast(at, "i64"), call.op("where", out, zero, share))
        for at, share in zip((low, high), shares, strict=True)
    ]
