"""Rows of float32 in parts of 8 bits; `compiler/ops/split.py` and `int16.py` say how they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.graph import Node
from llmc.compiler.ops import int16, quantise, split
from llmc.compiler.ops.rows import ZERO, line_stride
from llmc.compiler.ops.split import part_size
from llmc.targets.cpu.rows.quantised import row_call, row_length, scales_of, store_scale
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Emitter, Expr, f32, splat
from llmc.targets.tir.grid import by_rows, columns
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import to_level

ROWS = 2  # split together: what one waits for, the other fills


@dataclass(frozen=True)
class _Parts:
    """How rows are written as fixed point: levels of x * unit / scale, in `count` bytes each.

    Args:
        limit: the largest level.
        top: the scale is the largest magnitude / top, unless that is below `tiny`.
    """

    count: int
    unit: float
    limit: float
    top: float
    tiny: float

    @property
    def zero(self) -> int:
        """The parts of zero."""
        return sum(ZERO << 8 * part for part in range(self.count))


_SPLIT = _Parts(split.PARTS, split.UNIT, split.LIMIT, split.TOP, split.TINY)
_INT16 = _Parts(int16.PARTS, 1, int16.LIMIT, int16.LIMIT, quantise.TINY)


def _lower(node: Node, parts: _Parts) -> Call:
    """One item is one row."""
    (x,) = node.inputs
    k = row_length(x)
    kernel = Kernel(node.op, k, ("f32", "u8"), 0, partial(emit_rows, k=k, parts=parts))
    return row_call(node, kernel, x, k)


def emit_rows(symbol: str, cpu: Cpu, *, k: int, parts: _Parts) -> Any:
    """Each row of x as bytes of its parts, and its scale."""
    e = Emitter(symbol)
    x, out = e.pointer("x", "f32"), e.pointer("out", "u8")
    words = e.alias(out, "float32")
    part, size = part_size(k), parts.count * part_size(k)

    def several(rows: list[Expr]) -> None:
        starts = [e.let(row * k) for row in rows]
        targets = [e.let(row * line_stride(size)) for row in rows]
        scales = scales_of(e, x, starts, k, parts.top, parts.tiny)
        inverses = [e.let(splat(e.let(f32(float(parts.unit)) / scale))) for scale in scales]

        def convert(at: Expr, mask: Expr | None) -> None:
            for start, target, inverse in zip(starts, targets, inverses, strict=True):
                # past the end a load gives 0, which is the padding wanted
                fixed = to_level(e, e.load(x, start + at, LANES, mask), inverse, float(parts.limit))
                fixed = e.let(fixed + splat(tirx.const(parts.zero, "int32")))
                for number in range(parts.count):
                    shift = splat(tirx.const(8 * (parts.count - 1 - number), "int32"))
                    byte = tirx.Cast(f"uint8x{LANES}", e.let(tirx.shift_right(fixed, shift)))
                    e.store(out, target + number * part + at, byte)

        columns(e, k, convert)
        for row, target, scale in zip(rows, targets, scales, strict=True):
            for at in range(-(-k // LANES) * LANES, part, LANES):
                for number in range(parts.count):
                    e.store(out, target + number * part + at, splat(tirx.const(ZERO, "uint8")))
            store_scale(e, words, row, size, scale)

    by_rows(e, ROWS, several)
    return e.function()


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "split_rows": partial(_lower, parts=_SPLIT),
    "int16_rows": partial(_lower, parts=_INT16),
}
