"""Orders along an axis, and values written at indices.

Both are the same on every machine: of equal elements the one with the lowest index comes first, and of several values
for one place the last one stays, or they are combined in index order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import numpy as np

from llmc.compiler.dims import Dim, dim, evaluate, product
from llmc.compiler.graph import DTYPES, Node, TensorType
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.rules import (
    INDICES,
    INTEGERS,
    NUMBERS,
    Array,
    want_axis,
    want_dim,
    want_dtype,
    want_flags,
    want_rank,
    want_same_dtype,
    want_shape,
)
from llmc.compiler.ops.traits import AtMost, Rows
from llmc.errors import LlmcError

# --- order


def _argsort_reference(x: Array, count: Dim, descending: bool, sizes: Mapping[str, int]) -> Array:
    """Stable; backwards it is the reverse of what is stable from the back, so that the first of equals stays first."""
    if descending:
        order = x.shape[-1] - 1 - np.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1]
    else:
        order = np.argsort(x, axis=-1, kind="stable")
    return np.asarray(order[..., : evaluate(dim(count), sizes)], np.int64)


def _argsort_constraints(x: TensorType, count: Dim, descending: bool) -> tuple[AtMost, AtMost]:
    return (
        AtMost(0, count, high_name="its count"),
        AtMost(count, x.shape[-1], "its count", "the size of the last axis"),
    )


def _behind_rows(node: Node) -> Collection[int]:
    return (0,) if node.inputs[0].type.rank > 2 else ()


_ARGSORT = {"symbolic": True, "constraints": _argsort_constraints, "rows": Rows(_behind_rows, sliced=True)}


@op("argsort", _argsort_reference, traits=_ARGSORT, count=REQUIRED, descending=False)
def _argsort(x: TensorType, count: Dim, descending: bool) -> TensorType:
    """The first `count` indices along the last axis in order of their elements; NaN is above all numbers."""
    want_dtype(x, NUMBERS)
    want_flags(descending=descending)
    if not x.rank:
        raise LlmcError("the input is a scalar")
    room = dim(x.shape[-1] - want_dim(count, "count"))
    if any(isinstance(d, int) and d < 0 for d in (count, room)):
        raise LlmcError(f"count {count} is not within 0:{x.shape[-1]}")
    return TensorType("i64", (*x.shape[:-1], dim(count)))


# --- scatter

Combine = Callable[[Array, Array], Array]
REDUCTIONS: Mapping[str, Combine] = MappingProxyType(
    {
        "none": lambda old, new: new,
        "add": np.add,
        "mul": np.multiply,
        "max": np.maximum,
        "min": np.minimum,
    }
)
_SUMS = frozenset({"add", "mul"})  # of f32 in float64, rounded once


def _scatter_reference(x: Array, index: Array, updates: Array, axis: int, reduce: str) -> Array:
    wide = np.float64 if reduce in _SUMS and x.dtype.kind == "f" else x.dtype
    result = np.moveaxis(x.astype(wide), axis, 0)
    places = np.clip(index, 0, max(x.shape[axis] - 1, 0))
    if index.ndim == x.ndim:
        places = np.moveaxis(places, axis, 0)
    else:
        places = np.broadcast_to(places.reshape(-1, *(1,) * (x.ndim - 1)), (len(index), *result.shape[1:]))
    for place, update in zip(
        places, np.moveaxis(updates, axis, 0), strict=True
    ):  # one for each place of a line
        old = np.take_along_axis(result, place[None], 0)
        np.put_along_axis(result, place[None], REDUCTIONS[reduce](old, update[None]).astype(wide), 0)
    return np.moveaxis(result, 0, axis).astype(x.dtype)


def _scatter_constraints(
    x: TensorType, index: TensorType, updates: TensorType, axis: int, reduce: str
) -> tuple[AtMost]:
    return (AtMost(1, x.shape[axis], high_name=f"the size of axis {axis}", times=product(updates.shape)),)


@op(
    "scatter",
    _scatter_reference,
    traits={"accuracy": "close", "constraints": _scatter_constraints},
    axis=REQUIRED,
    reduce="none",
)
def _scatter(x: TensorType, index: TensorType, updates: TensorType, axis: int, reduce: str) -> TensorType:
    """x with `updates` at `index` along an axis; the index is of the updates' shape, or `[m]` for all lines alike."""
    want_dtype(index, INDICES, "the index")
    want_same_dtype(x, updates)
    want_axis(x, axis)
    if reduce not in REDUCTIONS:
        raise LlmcError(f"reduce is {reduce!r}", hint=f"use {', '.join(REDUCTIONS)}")
    want_dtype(x, frozenset(DTYPES) if reduce == "none" else INTEGERS | {"f32"})
    want_rank(updates, x.rank, what="updates")
    want_shape(updates, (*x.shape[:axis], updates.shape[axis], *x.shape[axis + 1 :]), "updates")
    want_shape(index, updates.shape if index.rank == x.rank else (updates.shape[axis],), "the index")
    return x
