"""1x1 convolution: a product over channels, 16 pixels in a vector, six output channels at a time."""

from __future__ import annotations

from typing import Any

from llmc.targets.cpu.conv.channel_tile import CHANNELS, extras_of, finish, multiply
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Emitter, Expr, div, mod
from llmc.targets.tir.tiling import zeros

PIXELS = 64  # of one work item
VECTORS = PIXELS // LANES


def emit_flat(symbol: str, cpu: Cpu, *, epilogue: tuple[str, ...]) -> Any:
    """out[b, o, p] = epilogue(sum over c of w[o, c] * x[b, c, p])"""
    e = Emitter(symbol)
    x, w = e.pointer("x", "f32"), e.pointer("w", "f32")
    extras, out = extras_of(e, epilogue), e.pointer("out", "f32")
    channels, outputs, pixels = (e.scalar(name) for name in ("channels", "outputs", "pixels"))
    panels = e.let(div(outputs + (CHANNELS - 1), CHANNELS))
    blocks = e.let(div(pixels + (PIXELS - 1), PIXELS))

    def tile(image: Expr, panel: Expr, pixel: Expr, vectors: int, mask: Expr | None) -> None:
        acc = zeros(e, CHANNELS * vectors)
        source = e.let(image * channels * pixels + pixel)
        weights = e.let(panel * channels * CHANNELS)
        with e.loop(0, channels, "c") as c:
            line = e.let(source + c * pixels)
            values = [e.load(x, line + v * LANES, LANES, mask) for v in range(vectors)]
            multiply(e, acc, w, weights + c * CHANNELS, CHANNELS, values)

        def at(i: Expr) -> tuple[Expr, Expr, Expr]:
            channel = e.let(panel * CHANNELS + i)
            return channel < outputs, channel, e.let((image * outputs + channel) * pixels + pixel)

        finish(e, acc, CHANNELS, vectors, extras, at, out, mask, epilogue)

    with e.loop(e.begin, e.end, "item") as item:
        panel, rest = e.let(mod(item, panels)), e.let(div(item, panels))
        image, first = e.let(div(rest, blocks)), e.let(mod(rest, blocks) * PIXELS)
        left = e.let(pixels - first)
        if cpu.vectors >= 32:
            with e.when(left >= PIXELS):
                tile(image, panel, first, VECTORS, None)
        else:
            with e.when(left >= PIXELS), e.loop(0, VECTORS, "v") as v:
                tile(image, panel, e.let(first + v * LANES), 1, None)
        with e.when(left < PIXELS), e.loop(0, div(left + (LANES - 1), LANES), "v") as v:
            tile(image, panel, e.let(first + v * LANES), 1, e.first(left - v * LANES))
    return e.function()
