"""`channel_rows`: a convolution by channel, and its pixels rounded to levels while they are in the cache.

An item is a row of the output. The floats of a strip's pixels wait in scratch memory until all channels are there, for
their largest magnitude makes the scale of each. What a product reads next is a quarter of the bytes, and what it is
made of does not go to memory and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Node
from llmc.compiler.ops.rows import ZERO, line_stride
from llmc.errors import LlmcError
from llmc.targets.cpu.conv.by_channel import SIZES, Channelwise, Row, channel_operands
from llmc.targets.cpu.rows.quantised import magnitude, scale_of, store_scale
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, f32, i64, splat
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import to_byte

_QUANTISE = 3  # what rounding 16 values costs, in taps


def lower_channel_rows(node: Node) -> Call:
    """Items are rows of the output."""
    a, x, w = node.attributes, node.inputs[0], node.inputs[1]
    if w.op != "constant":
        raise LlmcError("channel_rows: the weight is computed at run time")
    channels, kernel = int(w.shape[0]), (int(w.shape[2]), int(w.shape[3]))
    key = Channelwise("conv", kernel, a["stride"], a["dilation"], a["epilogue"])
    operands = channel_operands(node)
    vectors, taps = -(-channels // LANES), kernel[0] * kernel[1]
    pointers = (*("f32",) * len(operands), "u8")
    emit = partial(emit_channel_rows, key=key, channels=channels)
    scratch = 4 * Row.TILE * vectors * LANES
    values = product(node.shape[:-1]) * channels
    return Call(
        Kernel("channel_rows", (key, channels), pointers, len(SIZES), emit, scratch),
        (*operands, node),
        (channels, *x.shape[1:3], *a["padding"][:2], *node.shape[1:3]),
        dim(node.shape[0] * node.shape[1]),
        dim(node.shape[2] * (taps + _QUANTISE) * vectors),
        values * taps * 2,
        4 * product(x.shape) + product(node.shape),
        node.source,
    )


def emit_channel_rows(symbol: str, cpu: Cpu, *, key: Channelwise, channels: int) -> Any:
    """Packed rows of the pixels of a row of the output, an item."""
    e = Emitter(symbol)
    x, w = e.pointer("x", "f32"), e.pointer("w", "f32")
    extras = [e.pointer(step, "f32") for step in key.epilogue if step in ("bias", "residual")]
    row = _PackedRow(e, cpu, key, x, w, extras, e.pointer("out", "u8"), channels)
    with e.loop(e.begin, e.end, "item") as item:
        row.locate(item)
        row.compute()
    return e.function()


class _PackedRow(Row):
    """Writes the code of an item; the number of channels is known."""

    def __init__(
        self,
        e: Emitter,
        cpu: Cpu,
        key: Channelwise,
        x: Buffer,
        w: Buffer,
        extras: Any,
        out: Buffer,
        channels: int,
    ) -> None:
        super().__init__(e, cpu, key, x, w, extras, out)
        self.channels, self.vectors = channels, -(-channels // LANES)
        self.sizes["channels"] = i64(channels)
        self.words = e.alias(out, "float32")
        self.held, self.tops = e.scratch(), e.registers(self.tile, "int32x16")

    def locate(self, item: Expr) -> None:
        """All channels of a row."""
        self.start, self.full, self.rest = (
            i64(n) for n in (0, self.channels // LANES, self.channels % LANES)
        )
        self.place(item)

    def pixels(self, column: Expr, count: int, body: Callable[[Expr, Expr | None], None]) -> None:
        """Floats to scratch, and from there levels to the result."""
        for number in range(count):
            self.e.set(self.tops, number, splat(tirx.const(0, "int32")))
        super().pixels(column, count, body)
        for number in range(count):
            self._pack(self.e.let(self.line + column + number), number)

    def store(self, value: Expr, column: Expr, number: int, mask: Expr | None) -> None:
        """To scratch; what the padded channels hold counts as zero."""
        e = self.e
        if mask is not None:
            value = e.let(tirx.Select(mask, value, splat(f32(0.0))))
        e.store(self.held, self.channel + number * self.vectors * LANES, value)
        e.set(self.tops, number, tirx.max(e.get(self.tops, number), magnitude(e, value)))

    def _pack(self, pixel: Expr, number: int) -> None:
        e, stride = self.e, line_stride(self.channels)
        scale = scale_of(e, e.fold(e.let(e.get(self.tops, number)), tirx.max))
        inverse = e.let(splat(e.let(f32(1.0) / scale)))
        with e.loop(0, self.vectors, "v") as v:
            value = e.load(self.held, (v + number * self.vectors) * LANES, LANES)
            e.store(self.out, pixel * stride + v * LANES, to_byte(e, value, inverse, ZERO))
        store_scale(e, self.words, pixel, self.channels, scale)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"channel_rows": lower_channel_rows}
