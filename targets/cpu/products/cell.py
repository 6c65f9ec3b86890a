"""Cells of recurrent networks: the product with the state before, and the gates while its sums are in registers.

Sixteen units make a panel: w `[gates * n, k]` is packed as `[ceil(n / 16)][k][gates][16]`, so that a tile holds all
gates of its units. As in linear.py each sum runs over k in order, one fma for each step; then the input's part is
added and the gates are applied, by the polynomials of tir/math.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import ceil_div
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops.recurrent import GRU_GATES, LSTM_GATES
from llmc.errors import LlmcError
from llmc.targets import Cpu
from llmc.targets.cpu.products.blocking import Blocking
from llmc.targets.cpu.products.linear import multiply, rows_that_fit
from llmc.targets.cpu.storage.packing import pad_columns
from llmc.targets.tir import math
from llmc.targets.tir.emit import LANES, Emitter, Expr, div, fma, i64
from llmc.targets.tir.epilogue import unpadded
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles, zeros

ROWS = 16  # of an item at most
_TILE = 4  # rows whose sums are held at once; more would cost more code than speed


def pack_gates(array: np.ndarray[Any, Any], gates: int) -> np.ndarray[Any, Any]:
    """f32 `[gates * n, k]` -> `[ceil(n / 16), k, gates, 16]`, missing units zero."""
    units, k = array.shape[0] // gates, array.shape[1]
    padded = np.zeros((gates, -(-units // LANES) * LANES, k), array.dtype)
    padded[:, :units] = array.reshape(gates, units, k)
    return np.ascontiguousarray(padded.reshape(gates, -1, LANES, k).transpose(1, 3, 0, 2))


def lower_cell(node: Node) -> Call:
    """One call for `lstm_cell` and `gru_cell`: items are (panel, block of rows)."""
    x, h, *rest = node.inputs
    gates = LSTM_GATES if node.op == "lstm_cell" else GRU_GATES
    w = rest[1] if node.op == "lstm_cell" else rest[0]
    if w.op != "constant":
        raise LlmcError(f"{node.op}: the weight is computed at run time")
    n, k = int(w.shape[0]) // gates, int(w.shape[1])
    packed = Packed(w.attributes["value"], f"gates{gates}", partial(pack_gates, gates=gates))
    last: Any = rest[0] if node.op == "lstm_cell" else _bias(rest[1])
    written = 2 if node.op == "lstm_cell" else 1
    kernel = Kernel(
        node.op,
        (n, k, w.dtype),
        ("f32", "f32", w.dtype, "f32", *("f32",) * written),
        1,
        partial(emit_cell, n=n, k=k, gates=gates, dtype=w.dtype),
        written=written,
    )
    rows = x.shape[0]
    return Call(
        kernel,
        (x, h, packed, last, node),
        (rows,),
        -(-n // LANES) * ceil_div(rows, ROWS),
        k * gates * sympy.Min(rows, ROWS),
        2 * rows * n * gates * k,
        4 * rows * (k + n * (gates + 2)) + n * gates * k * DTYPES[w.dtype].itemsize,
        node.source,
    )


def _bias(bias: Node) -> Packed:
    if bias.op != "constant":
        raise LlmcError("gru_cell: the bias is computed at run time")
    return Packed(bias.attributes["value"], f"pad{LANES}", partial(pad_columns, width=LANES))


def emit_cell(symbol: str, cpu: Cpu, *, n: int, k: int, gates: int, dtype: str) -> Any:
    """h'[m, n] (and c') from x[m, gates n], h[m, k], w, and c[m, n] of an LSTM or the bias[n] of a GRU."""
    e = Emitter(symbol)
    cell = _Cell(e, cpu, n, k, gates, dtype)
    m = e.scalar("m")
    panels = -(-n // LANES)
    with e.loop(e.begin, e.end, "item") as item:
        block = e.let(div(item, panels))
        panel = e.let(item - block * panels)
        first = e.let(block * ROWS)
        cell.rows(panel, first, e.let(tirx.min(i64(ROWS), m - first)))
    return e.function()


class _Cell:
    """Writes the tiles of a cell."""

    def __init__(self, e: Emitter, cpu: Cpu, n: int, k: int, gates: int, dtype: str) -> None:
        self.e, self.n, self.k, self.gates = e, n, k, gates
        self.x, self.h, self.w = e.pointer("x", "f32"), e.pointer("h", "f32"), e.pointer("w", dtype)
        self.last = e.pointer("last", "f32")  # c or the bias
        self.out = [e.pointer(f"out{i}", "f32") for i in range(2 if gates == LSTM_GATES else 1)]
        self.cut = Blocking.of(k, gates * LANES, ROWS)
        # Registers for all gates of a row at once, or for one gate of more rows.
        self.height = min(_TILE, rows_that_fit(cpu, gates)) if cpu.wide else 1

    def rows(self, panel: Expr, first: Expr, count: Expr) -> None:
        tiles(self.e, first, count, self.height, partial(self._tile, panel))

    def _tile(self, panel: Expr, row: Expr, rows: int) -> None:
        e, gates = self.e, self.gates
        start = e.let(panel * (self.k * gates * LANES))
        at_h = e.let(row * self.k)

        sums = zeros(e, rows * gates)
        steps = i64(self.k // self.cut.unroll)
        multiply(e, self.cut, sums, self.h, at_h, self.w, start, rows, gates, steps)
        held = e.registers(rows * gates)
        for i in range(rows * gates):
            e.set(held, i, e.get(sums, i))
        unit = e.let(panel * LANES)
        mask = unpadded(e, self.n, LANES, unit)
        with e.loop(0, rows, "row") as i:
            products = [e.let(e.get(held, i * gates + gate)) for gate in range(gates)]
            (self._lstm if gates == LSTM_GATES else self._gru)(e.let(row + i), unit, products, mask)

    def _inputs(self, row: Expr, unit: Expr, mask: Expr | None) -> list[Expr]:
        """The input's part of each gate."""
        at = self.e.let(row * (self.gates * self.n) + unit)
        return [self.e.load(self.x, at + gate * self.n, LANES, mask) for gate in range(self.gates)]

    def _lstm(self, row: Expr, unit: Expr, products: list[Expr], mask: Expr | None) -> None:
        """c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')"""
        e = self.e
        at = e.let(row * self.n + unit)
        i, f, g, o = (e.let(p + x) for p, x in zip(products, self._inputs(row, unit, mask), strict=True))
        new = e.let(math.sigmoid(e, i) * math.tanh(e, g))
        c = e.let(fma(math.sigmoid(e, f), e.load(self.last, at, LANES, mask), new))
        h = e.let(math.sigmoid(e, o) * math.tanh(e, c))
        for out, value in zip(self.out, (h, c), strict=True):
            e.store(out, at, value, mask)

    def _gru(self, row: Expr, unit: Expr, products: list[Expr], mask: Expr | None) -> None:
        """n = tanh(xn + r (hn + bias)), h' = n + z (h - n)"""
        e = self.e
        at = e.let(row * self.n + unit)
        xr, xz, xn = self._inputs(row, unit, mask)
        r = math.sigmoid(e, e.let(products[0] + xr))
        z = math.sigmoid(e, e.let(products[1] + xz))
        recurrent = e.let(products[2] + e.load(self.last, unit, LANES))
        n = math.tanh(e, e.let(fma(r, recurrent, xn)))
        h = e.load(self.h, e.let(row * self.k + unit), LANES, mask)
        e.store(self.out[0], at, e.let(fma(z, e.let(h - n), n)), mask)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"lstm_cell": lower_cell, "gru_cell": lower_cell}
