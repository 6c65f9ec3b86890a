"""Products with constant weights: register tiles over packed panels, epilogue fused.

The weight `w[n, k]` is packed once, at compile time, as `[ceil(n / width)][k][width]` (`pack_panels`): a panel
of `width` columns is read front to back for every tile of rows. One layout serves every CPU. A tile of
`rows x width` results stays in registers while k runs from 0 to K in order, one fma for each step, so
neither the tile's shape nor the number of threads changes a bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import sympy
from tvm import tirx

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import DTYPES, Node, Weight
from llmc.errors import LlmcError
from llmc.targets import Cpu
from llmc.targets.kernels.emit import LANES, Buffer, Emitter, Expr, div, dtype_of, f32, fma, i64, splat
from llmc.targets.kernels.math import ACTIVATIONS

ROWS_PER_ITEM = 48  # a multiple of the full tile heights 6, 8 and 12
AHEAD = 48  # rows of a panel that are asked for before they are needed
WIDTHS = (48, 64, 32, 16)  # panel widths, best first


def panel_width(n: int) -> int:
    """The width with the fewest padded columns; of equals, the one whose tile is fastest."""
    return min(WIDTHS, key=lambda width: -n % width)


def pack_panels(array: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """f32 `[n, k]` -> `[ceil(n / width), k, width]`, missing columns zero."""
    n, k = array.shape
    panels = -(-n // width)
    padded = np.zeros((panels * width, k), array.dtype)
    padded[:n] = array
    return np.ascontiguousarray(padded.reshape(panels, width, k).transpose(0, 2, 1))


def pad_columns(array: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """`[n]` -> `[ceil(n / width) * width]`, missing elements zero."""
    return np.pad(array, (0, -len(array) % width))


def tile_shape(cpu: Cpu, width: int) -> tuple[int, int]:
    """Rows and 16-lane vectors of a register tile: accumulators, one row of weights and one broadcast must fit."""
    pieces = LANES // cpu.lanes  # registers that make one 16-lane vector
    vectors = width // LANES if cpu.wide else 1
    rows = (cpu.vectors - 1) // pieces // vectors - 1
    return max(1, min(rows, {1: 12, 2: 12, 3: 8, 4: 6}[vectors])), vectors


def lower_linear(node: Node) -> Call:
    """One call for `linear`: items are (panel, block of rows), the rows of a panel next to each other."""
    x, w, *extras = node.inputs
    if w.op != "constant":
        raise LlmcError(
            "linear: the weight is computed at run time", hint="use matmul for two computed operands"
        )
    if w.dtype not in ("f32", "f16") or {i.dtype for i in (x, *extras)} != {"f32"}:
        raise LlmcError(f"linear: no kernel for {x.dtype} x {w.dtype}")
    n, k = (int(d) for d in w.shape)
    width = panel_width(n)
    weight: Weight = w.attributes["value"]
    operands: list[Any] = [x, Packed(weight, f"panels{width}", partial(pack_panels, width=width))]
    epilogue: tuple[str, ...] = node.attributes["epilogue"]
    pending = iter(extras)
    for step in epilogue:
        if step == "bias":
            bias = next(pending)
            if bias.op != "constant":
                raise LlmcError("linear: the bias is computed at run time")
            operands.append(
                Packed(bias.attributes["value"], f"pad{width}", partial(pad_columns, width=width))
            )
        elif step == "residual":
            operands.append(next(pending))
    rows = product(x.shape[:-1])
    blocks = ceil_div(rows, ROWS_PER_ITEM)
    panels = -(-n // width)
    kernel = Kernel(
        "linear",
        (n, k, width, epilogue, w.dtype),
        ("f32", w.dtype, *("f32",) * (len(operands) - 1)),
        1,
        partial(emit_linear, n=n, k=k, width=width, epilogue=epilogue, dtype=w.dtype),
    )
    cost = k * (width // LANES) * sympy.Min(rows, ROWS_PER_ITEM)
    return Call(
        kernel,
        (*operands, node),
        (rows,),
        panels * blocks,
        cost,
        2 * rows * n * k,
        4 * rows * (k + n) + n * k * DTYPES[w.dtype].itemsize,
        node.source,
    )


def emit_linear(
    symbol: str, cpu: Cpu, *, n: int, k: int, width: int, epilogue: tuple[str, ...], dtype: str = "f32"
) -> Any:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T); weights of another `dtype` are widened in registers"""
    e = Emitter(symbol)
    x, w = e.pointer("x", "f32"), e.pointer("w", dtype)
    extras = [e.pointer(step, "f32") for step in epilogue if step in ("bias", "residual")]
    out = e.pointer("out", "f32")
    m = e.scalar("m")
    rows, vectors = tile_shape(cpu, width)
    blocks = e.let(div(m + (ROWS_PER_ITEM - 1), ROWS_PER_ITEM))
    with e.loop(e.begin, e.end, "item") as item:
        panel = e.let(div(item, blocks))
        first = e.let((item - panel * blocks) * ROWS_PER_ITEM)
        count = e.let(tirx.min(i64(ROWS_PER_ITEM), m - first))
        for part in range(0, width // LANES, vectors):

            def tile(row: Expr, height: int, part: int = part, panel: Expr = panel) -> None:
                here = min(vectors, width // LANES - part)
                acc = _multiply(e, x, w, row, panel, part * LANES, height, here, k, width)
                column = e.let(panel * width + part * LANES)
                _finish(e, acc, row, column, height, here, n, width, epilogue, extras, out)

            tiles(e, first, count, rows, tile)
    return e.function()


def tiles(e: Emitter, first: Expr, count: Expr, height: int, body: Callable[[Expr, int], None]) -> None:
    """Cover rows first..first+count by tiles of at most `height` rows, as equal as can be: no padded rows.

    `body(row, h)` writes the code of a tile of h rows; it is called once for each h in 1..height.
    """
    number = e.let(div(count + (height - 1), height))
    with e.loop(0, number, "tile") as t:
        start = e.let(div(t * count, number))
        size = e.let(div((t + 1) * count, number) - start)
        row = e.let(first + start)
        for h in range(height, 0, -1):
            with e.when(size == i64(h)):
                body(row, h)


def _multiply(
    e: Emitter,
    x: Buffer,
    w: Buffer,
    row: Expr,
    panel: Expr,
    offset: int,
    rows: int,
    vectors: int,
    k: int,
    width: int,
) -> Buffer:
    """acc[i, j] = sum over k of x[row + i, k] * w[panel, k, offset + 16 j ...], k in order"""
    acc = e.registers(rows * vectors)
    for i in range(rows * vectors):
        e.set(acc, i, splat(f32(0.0)))
    start = e.let(panel * (k * width) + offset)
    bases = [e.let((row + i) * k) for i in range(rows)]
    with e.loop(0, k, "k") as at:
        column = e.let(start + at * width)
        b = [_widened(e, e.load(w, column + j * LANES, LANES)) for j in range(vectors)]
        for j in range(vectors):
            e.prefetch(w, column + AHEAD * width + j * LANES)
        for i in range(rows):
            a = e.let(splat(e.load(x, bases[i] + at)))
            for j in range(vectors):
                e.set(acc, i * vectors + j, fma(a, b[j], e.get(acc, i * vectors + j)))
    return acc


def _widened(e: Emitter, values: Expr) -> Expr:
    return values if dtype_of(values) == "float32x16" else e.let(tirx.Cast("float32x16", values))


def _finish(
    e: Emitter,
    acc: Buffer,
    row: Expr,
    column: Expr,
    rows: int,
    vectors: int,
    n: int,
    width: int,
    epilogue: tuple[str, ...],
    extras: list[Buffer],
    out: Buffer,
) -> None:
    """Apply the epilogue to a tile and store it; columns from n on are padding and stay unwritten."""
    masks = [e.first(i64(n) - (column + j * LANES)) if n % width else None for j in range(vectors)]

    def store_row(i: Expr, values: list[Expr]) -> None:
        base = e.let((row + i) * n + column)
        for j, value in enumerate(values):
            at = e.let(base + j * LANES)
            pending = iter(extras)
            for step in epilogue:
                if step == "bias":
                    value = e.let(value + e.load(next(pending), column + j * LANES, LANES))
                elif step == "residual":
                    value = e.let(value + e.load(next(pending), at, LANES, masks[j]))
                else:
                    value = ACTIVATIONS[step](e, value)
            e.store(out, at, value, masks[j])

    if not any(step in ACTIVATIONS for step in epilogue):
        for i in range(rows):
            store_row(i64(i), [e.get(acc, i * vectors + j) for j in range(vectors)])
        return
    # An activation is long: writing it out for every register of every tile would cost more code than speed.
    held = e.registers(rows * vectors)
    for i in range(rows * vectors):
        e.set(held, i, e.get(acc, i))
    with e.loop(0, rows, "row") as i:
        store_row(i, [e.let(e.get(held, i * vectors + j)) for j in range(vectors)])


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"linear": lower_linear}
