"""ATen's pooling."""

from __future__ import annotations

from llmc.compiler.frontends.aten import Call, Result, aten
from llmc.compiler.frontends.aten_image import spread
from llmc.compiler.frontends.composed_pool import Axis, adaptive, avg_pool, max_pool

_RANKS = {"1d": 1, "2d": 2}


def _axes(call: Call, name: str) -> list[Axis]:
    """Windows along each axis; without a stride they lie side by side."""
    rank = next(n for text, n in _RANKS.items() if text in name)
    kernel = spread(call["kernel_size"], rank)
    stride = spread(call.get("stride") or list(kernel), rank)
    pads, dilation = (spread(call.get(n, d), rank) for n, d in (("padding", 0), ("dilation", 1)))
    return [
        Axis(k, s, (p, p), d, call.get("ceil_mode", False))
        for k, s, p, d in zip(kernel, stride, pads, dilation, strict=True)
    ]


@aten(
    "max_pool1d.default",
    "max_pool2d.default",
    "max_pool1d_with_indices.default",
    "max_pool2d_with_indices.default",
)
def _max_pool(call: Call) -> Result:
    """The indices are computed for nobody: whoever reads them is refused."""
    name = str(call.target)
    y = max_pool(call, call["self"], _axes(call, name))
    return (y, None) if "indices" in name else y


@aten("avg_pool1d.default", "avg_pool2d.default")
def _avg_pool(call: Call) -> Result:
    counted, divisor = call.get("count_include_pad", True), call.get("divisor_override")
    return avg_pool(call, call["self"], _axes(call, str(call.target)), counted, divisor)


@aten(
    "adaptive_avg_pool1d.default",
    "adaptive_avg_pool2d.default",
    "_adaptive_avg_pool2d.default",
    "adaptive_max_pool1d.default",
    "adaptive_max_pool2d.default",
)
def _adaptive_pool(call: Call) -> Result:
    name = str(call.target)
    y = adaptive(call, call["self"], [int(d) for d in call["output_size"]], "max" in name)
    return (y, None) if "max" in name else y
