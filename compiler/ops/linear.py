"""Matrix products and embeddings with a norm. References compute in float64 and round once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.compiler.graph import Node, TensorType
from llmc.compiler.ops.declare import OPS, REQUIRED, op
from llmc.compiler.ops.elementwise import gelu64, gelu_poly64, gelu_tanh64, relu, sigmoid64, silu64
from llmc.compiler.ops.float_steps import fma32, norm32
from llmc.compiler.ops.reduction import F32, layer_norm64, want_norm
from llmc.compiler.ops.rows import row_stride, unpack_rows
from llmc.compiler.ops.rules import (
    FLOATS,
    INDICES,
    Array,
    broadcast,
    same_dim,
    shape_text,
    want_count,
    want_dtype,
    want_int,
    want_rank,
    want_same_dtype,
    want_shape,
)
from llmc.compiler.ops.shape import table_constraints
from llmc.compiler.ops.traits import AtMost, Rows
from llmc.errors import LlmcError

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "gelu": gelu64,
        "gelu_tanh": gelu_tanh64,
        "gelu_poly": gelu_poly64,
        "relu": relu,
        "relu6": lambda x: np.minimum(np.maximum(x, 0.0), 6.0),
        "tanh": np.tanh,
        "silu": silu64,
        "sigmoid": sigmoid64,
    }
)
TABLES = frozenset({"f32", "f16", "u8"})  # u8: packed rows (rows.py)
EXTRAS = frozenset({"bias", "residual"})  # epilogue steps that read an extra input


_BLOCK = 1 << 15  # numbers of a weight that a cache holds in float64, or the head of a model takes a gigabyte
_ROWS = 16  # BLAS takes no threads for so many rows of a block: its threads wait for each other at full speed
_FEW = 1 << 22  # products that are not worth threads


def _product64(x: Array, w: Array) -> Array:
    """x `[..., k]` times w `[n, k]` transposed, in float64, a block of the weight after the other."""
    wide = x.astype(np.float64).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    result = np.empty((len(wide), len(w)))

    def fill(first: int, last: int) -> None:
        for begin in range(first, last, step):
            end = min(begin + step, last)
            block = w[begin:end].astype(np.float64).T
            for row in range(0, len(wide), _ROWS):
                np.matmul(wide[row : row + _ROWS], block, out=result[row : row + _ROWS, begin:end])

    step = max(1, _BLOCK // max(1, w.shape[1]))
    parts = len(os.sched_getaffinity(0)) if len(wide) * w.size > _FEW else 1
    cuts = [len(w) * part // parts for part in range(parts + 1)]
    if parts == 1:
        fill(0, len(w))
    else:
        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(fill, cuts, cuts[1:]))
    return result.reshape(*x.shape[:-1], len(w))


def _linear_reference(x: Array, w: Array, *extras: Array, epilogue: tuple[str, ...]) -> Array:
    result = _product64(x, w)
    pending = iter(extras)
    for step in epilogue:
        result = result + next(pending) if step in EXTRAS else ACTIVATIONS[step](result)
    return np.asarray(result).astype(x.dtype)


def product_rows(node: Node) -> Collection[int]:
    """Operands that a product with a weight reads row by row: the activation and what is added to the result."""
    extras = [step for step in node.attributes["epilogue"] if step in EXTRAS]
    first = len(node.inputs) - len(extras)
    return {0} | {first + i for i, step in enumerate(extras) if step == "residual"}


_LINEAR = {"accuracy": "close", "product": True, "rows": Rows(product_rows, sliced=True)}


@op("linear", _linear_reference, traits=_LINEAR, epilogue=())
def _linear(x: TensorType, w: TensorType, *extras: TensorType, epilogue: Any) -> TensorType:
    want_dtype(x, F32)
    want_dtype(w, FLOATS, "the weight")
    want_rank(w, 2, what="the weight")
    if not x.rank or not same_dim(x.shape[-1], w.shape[1]):
        raise LlmcError(f"x has last dim {shape_text(x.shape[-1:])}, the weight {shape_text(w.shape[1:])}")
    result = TensorType("f32", (*x.shape[:-1], w.shape[0]))
    check_epilogue(result, extras, epilogue)
    return result


def check_epilogue(result: TensorType, extras: tuple[TensorType, ...], epilogue: Any) -> None:
    """Refuse an epilogue with unknown steps, or extras that do not fit a product of type `result`."""
    if not isinstance(epilogue, tuple):
        raise LlmcError(f"epilogue is {epilogue!r}, not a tuple")
    for step in epilogue:
        if step not in EXTRAS and step not in ACTIVATIONS:
            raise LlmcError(
                f"no epilogue step {step!r}", hint=f"use {', '.join([*sorted(EXTRAS), *ACTIVATIONS])}"
            )
    reading = [step for step in epilogue if step in EXTRAS]
    if len(reading) != len(extras):
        raise LlmcError(f"the epilogue {epilogue} reads {len(reading)} extra inputs, given are {len(extras)}")
    for step, extra in zip(reading, extras, strict=True):
        want_dtype(extra, F32, step)
        want_shape(extra, result.shape[-1:] if step == "bias" else result.shape, step)


def _matmul_reference(a: Array, b: Array) -> Array:
    return np.asarray(a.astype(np.float64) @ b.astype(np.float64)).astype(a.dtype)


def _matrices(node: Node) -> Collection[int]:
    return (0, 1) if node.type.rank > 2 else (0,)


@op("matmul", _matmul_reference, traits={"accuracy": "close", "first_axis": _matrices})
def _matmul(a: TensorType, b: TensorType) -> TensorType:
    want_same_dtype(a, b)
    want_dtype(a, FLOATS)
    if a.rank < 2 or b.rank < 2:
        raise LlmcError("an input has fewer than 2 axes", hint="reshape a vector to a matrix")
    if not same_dim(a.shape[-1], b.shape[-2]):
        raise LlmcError(f"inner dims differ: {shape_text(a.shape[-1:])} and {shape_text(b.shape[-2:-1])}")
    return TensorType(a.dtype, (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))


def _grouped_reference(x: Array, w: Array, ends: Array) -> Array:
    result = np.zeros((len(x), w.shape[2]), x.dtype)
    start = 0
    for matrix, end in zip(w, ends.tolist(), strict=True):
        end = min(max(start, end), len(x))
        result[start:end] = x[start:end].astype(np.float64) @ matrix.astype(np.float64)
        start = end
    return result


@op("grouped_matmul", _grouped_reference, traits={"accuracy": "close"})
def _grouped_matmul(x: TensorType, w: TensorType, ends: TensorType) -> TensorType:
    """Rows of x, those of a group side by side, by the group's own matrix: group g ends before row `ends[g]`.

    Rows behind the last end are zeros. Mixtures of experts are computed by it.
    """
    want_dtype(x, F32)
    want_dtype(w, F32, "w")
    want_dtype(ends, INDICES, "ends")
    want_rank(x, 2, what="x")
    want_rank(w, 3, what="w")
    want_shape(ends, w.shape[:1], "ends")
    want_shape(w, (w.shape[0], x.shape[1], w.shape[2]), "w")
    if same_dim(w.shape[0], 0):
        raise LlmcError("w has no matrix")
    return TensorType("f32", (x.shape[0], w.shape[2]))


# --- made by fusion only


def _embed_norm_reference(*arrays: Array, eps: float, tables: int) -> Array:
    *pairs, weight, bias = arrays
    rows = [
        _rows64(OPS["embedding"].reference(table, index), len(weight))
        for table, index in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    return layer_norm64(np.asarray(sum(rows[1:], start=rows[0])), weight, bias, eps).astype(np.float32)


def _rows64(rows: Array, size: int) -> Array:
    """Table rows as float64; u8 ones are packed."""
    if rows.dtype != np.uint8:
        return rows.astype(np.float64)
    q, scale = unpack_rows(rows, size)
    return np.asarray(q * scale.astype(np.float64))


def _embed_norm_steps(*arrays: Array, eps: float, tables: int) -> Array:
    *pairs, weight, bias = arrays
    total: Array | None = None
    for table, index in zip(pairs[::2], pairs[1::2], strict=True):
        total = _plus_rows(total, OPS["embedding"].reference(table, index), len(weight))
    assert total is not None
    return norm32(total, weight, bias, eps)


def _plus_rows(total: Array | None, rows: Array, size: int) -> Array:
    """total + table rows in f32; packed ones by one fused multiply-add."""
    if rows.dtype == np.uint8:
        q, scale = unpack_rows(rows, size)
        return fma32(q, scale, np.float32(0) if total is None else total)
    rows = rows.astype(np.float32)
    return rows if total is None else total + rows


def _indices(node: Node) -> Collection[int]:
    return range(1, 2 * node.attributes["tables"], 2)


def _embed_norm_constraints(*inputs: TensorType, eps: float, tables: int) -> Iterator[AtMost]:
    for at in range(tables):
        yield from table_constraints(inputs[2 * at], inputs[2 * at + 1], f"table {at}")


_EMBED_NORM = {
    "accuracy": "close",
    "rows": Rows(_indices, broadcast=True),
    "constraints": _embed_norm_constraints,
    "steps": _embed_norm_steps,
}


@op("embed_norm", _embed_norm_reference, traits=_EMBED_NORM, eps=REQUIRED, tables=REQUIRED)
def _embed_norm(*inputs: TensorType, eps: float, tables: int) -> TensorType:
    want_int(tables, "tables", 1)
    want_count(inputs, 2 * tables + 2)
    *pairs, weight, bias = inputs
    want_rank(weight, 1, what="weight")
    size = weight.shape[0]
    for number, table in enumerate(pairs[::2]):
        want_rank(table, 2, what=f"table {number}")
        width = row_stride(int(size)) if table.dtype == "u8" else size
        want_shape(table, (table.shape[0], width), f"table {number}")
        want_dtype(table, TABLES, f"table {number}")
    rows = [OPS["embedding"].rule(t, i) for t, i in zip(pairs[::2], pairs[1::2], strict=True)]
    result = TensorType("f32", (*broadcast(*(r.shape[:-1] for r in rows)), size))
    want_norm(result, eps, weight=weight, bias=bias)
    return result
