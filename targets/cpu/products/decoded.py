"""Compressed weights: products that decode a panel into scratch memory, and rows decoded by themselves.

A product's item is (panel, block of rows): its panel is decoded once, f32 `[k][width]`, and then runs through
the same tiles as a dense one (linear.py). So a product has the bits of the dense product of the decoded
weight on every CPU, and reads as many bytes as are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import Node
from llmc.errors import LlmcError
from llmc.targets.cpu.products import linear
from llmc.targets.cpu.products.blocking import Blocking, panel_width
from llmc.targets.cpu.products.linear import rows_that_fit, tile_shape
from llmc.targets.cpu.storage.formats import readers
from llmc.targets.cpu.storage.packing import pad_columns
from llmc.targets.cpu.storage.panels import Lines, Stored
from llmc.targets.lowering import Lowerings
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, fma, i64, splat
from llmc.targets.tir.epilogue import finish
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles, zeros

ROWS_PER_ITEM = 192  # decoding a panel costs about as much as multiplying it by 24 rows
DECODE_COST = 24

Array = np.ndarray[Any, Any]


def lower_linear(node: Node) -> Call | None:
    """`linear` with a compressed weight that has a reader."""
    x, w, *extras = node.inputs
    reader = readers().get(w.op)
    if reader is None or w.op == linear.BFLOAT16:
        return None
    if any(i.op != "constant" for i in w.inputs):
        raise LlmcError("linear: the weight is computed at run time")
    n, k = (int(d) for d in w.shape)
    width, epilogue = panel_width(n), node.attributes["epilogue"]
    stored = reader(w, width)
    reading = [s for s in epilogue if s in ("bias", "residual")]
    given = [_extra(step, extra, width) for step, extra in zip(reading, extras, strict=True)]
    rows = product(x.shape[:-1])
    blocks, panels = ceil_div(rows, ROWS_PER_ITEM), -(-n // width)
    kernel = Kernel(
        "linear_decoded",
        (n, k, width, epilogue, stored.kind),
        ("f32", *stored.dtypes, *("f32",) * (len(given) + 1)),
        1,
        partial(emit_linear, n=n, k=k, width=width, epilogue=epilogue, stored=stored),
        scratch=4 * k * width,
    )
    cost = k * (width // LANES) * (sympy.Min(rows, ROWS_PER_ITEM) + DECODE_COST)
    read = sum(p.pack(p.weight.array).nbytes for p in stored.operands)
    return Call(
        kernel,
        (x, *stored.operands, *given, node),
        (rows,),
        panels * blocks,
        cost,
        2 * rows * n * k,
        4 * rows * (k + n) + read,
        node.source,
    )


def _extra(step: str, extra: Node, width: int) -> Node | Packed:
    if step == "residual":
        return extra
    if extra.op != "constant":
        raise LlmcError("linear: the bias is computed at run time")
    return Packed(extra.attributes["value"], f"pad{width}", partial(pad_columns, width=width))


def emit_linear(
    symbol: str, cpu: Cpu, *, n: int, k: int, width: int, epilogue: tuple[str, ...], stored: Stored
) -> Any:
    """out[m, n] = epilogue(x[m, k] . decoded[n, k]^T)"""
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    parts = [e.pointer(f"part{i}", dtype) for i, dtype in enumerate(stored.dtypes)]
    extras = [e.pointer(step, "f32") for step in epilogue if step in ("bias", "residual")]
    out, m = e.pointer("out", "f32"), e.scalar("m")
    held = e.scratch()
    cut = Blocking.of(k, width, ROWS_PER_ITEM)
    store = partial(finish, e, n=n, width=width, epilogue=epilogue, extras=extras, out=out)
    rows, vectors = tile_shape(cpu, width)
    blocks = e.let(div(m + (ROWS_PER_ITEM - 1), ROWS_PER_ITEM))
    with e.loop(e.begin, e.end, "item") as item:
        panel = e.let(div(item, blocks))
        first = e.let((item - panel * blocks) * ROWS_PER_ITEM)
        count = e.let(tirx.min(i64(ROWS_PER_ITEM), m - first))
        few = _few(cpu, stored, width)
        if few and stored.lines is not None:
            with e.when(count <= few):
                _stream(e, stored.lines.on(cpu), parts, x, panel, (first, count), few, store)
        with e.when(count > few):
            stored.decode(e, cpu, parts, panel, held, k * width // LANES)
            for part in range(0, width // LANES, vectors):

                def tile(row: Expr, height: int, part: int = part, panel: Expr = panel) -> None:
                    here = min(vectors, width // LANES - part)
                    acc, steps = zeros(e, height * here), i64(k // cut.unroll)
                    start, column = i64(part * LANES), e.let(panel * width + part * LANES)
                    linear.multiply(e, cut, acc, x, e.let(row * k), held, start, height, here, steps)
                    store(acc, row, column, height, here)

                tiles(e, first, count, rows, tile)
    return e.function()


def _few(cpu: Cpu, stored: Stored, width: int) -> int:
    """Rows at most for which the panel is decoded in registers as it streams by; 0: the format cannot."""
    if stored.lines is None:
        return 0
    fit = rows_that_fit(cpu, width // LANES)
    # Of two steps of k that share a line the scales and both values are in registers too.
    return min(8, fit) if stored.lines.step == 1 else min(4, max(1, fit - 2))


def _stream(
    e: Emitter,
    lines: Lines,
    parts: list[Buffer],
    x: Buffer,
    panel: Expr,
    rows: tuple[Expr, Expr],
    few: int,
    store: Callable[..., None],
) -> None:
    """Few rows: every weight is used once it is decoded, in the order of k as everywhere."""
    vectors = lines.width // LANES

    def tile(row: Expr, height: int) -> None:
        acc, start = zeros(e, height * vectors), e.let(row * lines.k)

        def use(first: Expr, steps: int, values: list[list[Expr]]) -> None:
            for step in range(steps):
                for i in range(height):
                    a = e.let(splat(e.load(x, start + (i * lines.k + step) + first)))
                    for j, b in enumerate(values[step]):
                        e.set(acc, i * vectors + j, fma(a, b, e.get(acc, i * vectors + j)))

        lines.emit(e, parts, panel, use)
        store(acc, row, e.let(panel * lines.width), height, vectors)

    tiles(e, *rows, few, tile)


LOWERINGS: Lowerings = {"linear": lower_linear}
