"""Cells of recurrent networks: one step from the products of the input and the state before to the state after.

Gates lie one after the other in the columns, in PyTorch's order: i, f, g, o of an LSTM; r, z, n of a GRU.
References compute in float64 and round once.
"""

from __future__ import annotations

import numpy as np

from llmc.compiler.graph import Results, TensorType
from llmc.compiler.ops.declare import op
from llmc.compiler.ops.elementwise import sigmoid64
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rules import FLOATS, Array, want_dtype, want_rank, want_shape
from llmc.errors import LlmcError

LSTM_GATES, GRU_GATES = 4, 3


def _lstm_reference(x: Array, h: Array, c: Array, w: Array) -> tuple[Array, Array]:
    gates = h.astype(np.float64) @ w.astype(np.float64).T + x
    i, f, g, o = np.split(gates, LSTM_GATES, axis=-1)
    cell = sigmoid64(f) * c + sigmoid64(i) * np.tanh(g)
    return (sigmoid64(o) * np.tanh(cell)).astype(np.float32), cell.astype(np.float32)


@op("lstm_cell", _lstm_reference, traits={"accuracy": "close"})
def _lstm_cell(x: TensorType, h: TensorType, c: TensorType, w: TensorType) -> TensorType:
    """x `[b, 4n]`: the input's part of the gates, biases included; h `[b, k]`, c `[b, n]`, w `[4n, k]` -> h', c'."""
    want_rank(c, 2, what="c")
    _want_cell(x, h, w, (c.shape[0], c.shape[1]), LSTM_GATES)
    want_dtype(c, F32, "c")
    return Results((c, c))


def _gru_reference(x: Array, h: Array, w: Array, bias: Array) -> Array:
    products = h.astype(np.float64) @ w.astype(np.float64).T
    (xr, xz, xn), (hr, hz, hn) = (np.split(v, GRU_GATES, axis=-1) for v in (x.astype(np.float64), products))
    r, z = sigmoid64(xr + hr), sigmoid64(xz + hz)
    n = np.tanh(xn + r * (hn + bias))
    return np.asarray(n + z * (h - n)).astype(np.float32)


@op("gru_cell", _gru_reference, traits={"accuracy": "close"})
def _gru_cell(x: TensorType, h: TensorType, w: TensorType, bias: TensorType) -> TensorType:
    """x `[b, 3n]`: the input's part, biases but `bias` included; h `[b, n]`, w `[3n, n]`, bias `[n]` -> h'."""
    want_rank(h, 2, what="h")
    _want_cell(x, h, w, (h.shape[0], h.shape[1]), GRU_GATES)
    want_shape(bias, h.shape[1:], "bias")
    want_dtype(bias, F32, "bias")
    return h


def _want_cell(
    x: TensorType, h: TensorType, w: TensorType, state: tuple[object, object], gates: int
) -> None:
    """Refuse operands that do not fit a state of `[b, n]`."""
    rows, units = state
    if not isinstance(units, int):
        raise LlmcError(f"the state has {units} units: their number is fixed")
    for value, what in ((x, "x"), (h, "h")):
        want_dtype(value, F32, what)
        want_rank(value, 2, what=what)
    want_dtype(w, FLOATS, "the weight")
    want_shape(x, (rows, gates * units), "x")
    want_shape(h, (rows, h.shape[1]), "h")
    want_shape(w, (gates * units, h.shape[1]), "the weight")
