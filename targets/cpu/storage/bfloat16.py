"""`bfloat16` on CPUs: the upper halves of float32, widened in registers."""

from __future__ import annotations

from functools import partial
from typing import Any

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.graph import Node
from llmc.targets.cpu.storage.blockwise import AHEAD, LINE_BYTES
from llmc.targets.cpu.storage.packing import pack_halves
from llmc.targets.cpu.storage.panels import Lines, Stored, decode_lines, rows_call
from llmc.targets.lowering import Lowerings
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, splat
from llmc.targets.tir.grid import columns
from llmc.targets.tir.later import tirx


def panels(weight: Node, width: int) -> Stored:
    """The halves by panels, for kernels that read any format; plain products widen them themselves (`linear.py`)."""
    k = int(weight.attributes["columns"])
    operand = Packed(
        weight.inputs[0].attributes["value"], f"bfloat16 {width}", partial(pack_halves, width=width)
    )
    lines = Lines(k, width, k, 1, lambda e, parts, panel, block: [], partial(_values, k=k, width=width))
    return Stored("bfloat16", (operand,), ("f16",), partial(decode_lines, lines=lines), lines)


def _values(
    e: Emitter,
    parts: list[Buffer],
    panel: Expr,
    line: Expr,
    vector: int,
    shared: list[Expr],
    *,
    k: int,
    width: int,
) -> list[Expr]:
    """Sixteen columns of one step of k; those further on are asked for."""
    at = e.let((panel * k + line) * width + vector * LANES)
    if 2 * vector * LANES % LINE_BYTES == 0:
        e.prefetch(parts[0], at + AHEAD // 2)
    return [_widened(e, e.load(parts[0], at, LANES))]


def _widened(e: Emitter, halves: Expr) -> Expr:
    """float32 of which these 16 are the upper halves."""
    wide = tirx.Cast(f"uint32x{LANES}", e.let(tirx.reinterpret(f"uint16x{LANES}", halves)))
    moved = tirx.shift_left(e.let(wide), splat(tirx.const(16, "uint32")))
    return e.let(tirx.reinterpret(f"float32x{LANES}", e.let(moved)))


# --- rows by themselves


def lower_bfloat16(node: Node) -> Call:
    """One item is one row, which may be computed: rows looked up in a table."""
    k = int(node.attributes["columns"])
    kernel = Kernel("bfloat16", k, ("u8", "f32"), 0, partial(emit_bfloat16, k=k))
    return rows_call(node, kernel, (*node.inputs, node), 6 * k)


def emit_bfloat16(symbol: str, cpu: Cpu, *, k: int) -> Any:
    """out[row, c] = the float32 with the upper half that stands there"""
    e = Emitter(symbol)
    rows, out = e.pointer("rows", "u8"), e.pointer("out", "f32")
    halves = e.alias(rows, "float16")
    with e.loop(e.begin, e.end, "row") as row:
        start = e.let(row * k)

        def widen(at: Expr, mask: Expr | None, start: Expr = start) -> None:
            e.store(out, start + at, _widened(e, e.load(halves, start + at, LANES, mask)), mask)

        columns(e, k, widen)
    return e.function()


LOWERINGS: Lowerings = {"bfloat16": lower_bfloat16}
