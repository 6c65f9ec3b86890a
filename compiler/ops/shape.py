"""Ops that make, move or select elements without arithmetic, and the leaves `input` and `constant`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim, dim, dim_text, evaluate, floor_div, product
from llmc.compiler.graph import DTYPES, Node, TensorType, Weight, dtype_name
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.rules import (
    INDICES,
    NUMBERS,
    Array,
    same_dim,
    shape_text,
    want_axis,
    want_broadcastable,
    want_dim,
    want_dims,
    want_dtype,
    want_int,
    want_number,
    want_rank,
    want_same_dtype,
    want_shape,
)
from llmc.compiler.ops.traits import SHAPED, AtMost, Rows, all_inputs, beside_first, last_axes
from llmc.errors import LlmcError

Sizes = Mapping[str, int]
SYMBOLIC = {"symbolic": True}


def _actual(shape: tuple[Dim, ...], sizes: Sizes) -> tuple[int, ...]:
    return tuple(evaluate(d, sizes) for d in shape)


# --- leaves


def _input_reference(
    *, name: str, dtype: str, shape: Any, default: Any, low: Any, high: Any, sizes: Sizes
) -> Array:
    """The value of an absent input; the interpreter binds the others itself."""
    if default is None:
        raise LlmcError(f"input {name!r} is missing")
    return np.full(_actual(shape, sizes), default, DTYPES[dtype])


@op(
    "input",
    _input_reference,
    traits=SYMBOLIC,
    name=REQUIRED,
    dtype=REQUIRED,
    shape=REQUIRED,
    default=None,
    low=None,
    high=None,
)
def _input(*, name: str, dtype: str, shape: Any, default: Any, low: Any, high: Any) -> TensorType:
    if not isinstance(name, str) or not name:
        raise LlmcError(f"the name {name!r} is not a non-empty string")
    for what, value in (("default", default), ("low", low), ("high", high)):
        if value is not None:
            want_number(value, what)
    if low is not None and high is not None and low > high:
        raise LlmcError(f"low {low} is above high {high}")
    return TensorType(dtype, want_dims(shape))


@op("constant", lambda value: value.array, value=REQUIRED)
def _constant(*, value: Any) -> TensorType:
    if not isinstance(value, Weight):
        raise LlmcError(f"value is a {type(value).__name__}, not a Weight")
    return TensorType(dtype_name(value.array.dtype), value.array.shape)


def _full_reference(*, shape: Any, value: Any, dtype: str, sizes: Sizes) -> Array:
    return np.full(_actual(shape, sizes), value, DTYPES[dtype])


@op("full", _full_reference, traits=SYMBOLIC, shape=REQUIRED, value=REQUIRED, dtype=REQUIRED)
def _full(*, shape: Any, value: Any, dtype: str) -> TensorType:
    want_number(value, "value")
    return TensorType(dtype, want_dims(shape))


def _iota_reference(*, length: Dim, start: Dim, step: int, dtype: str, sizes: Sizes) -> Array:
    count = np.arange(evaluate(dim(length), sizes), dtype=np.int64)
    return (evaluate(dim(start), sizes) + count * step).astype(DTYPES[dtype])


@op("iota", _iota_reference, traits=SYMBOLIC, length=REQUIRED, start=0, step=1, dtype="i64")
def _iota(*, length: Dim, start: Dim, step: int, dtype: str) -> TensorType:
    want_int(step, "step")
    want_dim(start, "start")
    result = TensorType(dtype, want_dims((length,), "length"))
    want_dtype(result, NUMBERS, "the result")
    return result


@op(
    "dim",
    lambda *, value, sizes: np.asarray(evaluate(dim(value), sizes), np.int64),
    traits=SYMBOLIC,
    value=REQUIRED,
)
def _dim(*, value: Dim) -> TensorType:
    want_dim(value, "value")
    return TensorType("i64", ())


# --- views and copies


def _reshape_reference(x: Array, shape: Any, sizes: Sizes) -> Array:
    return x.reshape(_actual(shape, sizes))


_RESHAPE = {"symbolic": True, "view": True, "moves": True, "rows": SHAPED}


@op("reshape", _reshape_reference, traits=_RESHAPE, shape=REQUIRED)
def _reshape(x: TensorType, shape: Any) -> TensorType:
    dims = want_dims(shape)
    if not same_dim(product(x.shape), product(dims)):
        has, needs = dim_text(product(x.shape)), dim_text(product(dims))
        raise LlmcError(
            f"the input has {has} elements, {shape_text(dims)} needs {needs}",
        )
    return TensorType(x.dtype, dims)


def _ensure_constraints(x: TensorType, shape: Any) -> Iterator[AtMost]:
    for axis, (size, wanted) in enumerate(zip(x.shape, shape, strict=True)):
        if not same_dim(size, wanted):
            yield AtMost(size, wanted, f"the size of axis {axis}", "what it has to be")
            yield AtMost(wanted, size, f"what the size of axis {axis} has to be", "what it is")


_ENSURE = {**_RESHAPE, "constraints": _ensure_constraints}


@op("ensure_shape", lambda x, shape, sizes: x.reshape(_actual(shape, sizes)), traits=_ENSURE, shape=REQUIRED)
def _ensure_shape(x: TensorType, shape: Any) -> TensorType:
    """x, whose sizes are those of `shape` at some sizes of the dims: looked at before each call."""
    dims = want_dims(shape)
    if len(dims) != x.rank:
        raise LlmcError(f"the input has {x.rank} axes, {shape_text(dims)} has {len(dims)}")
    for size, wanted in zip(x.shape, dims, strict=True):
        apart = dim(size - wanted)
        if isinstance(apart, int) and apart:
            raise LlmcError(f"{dim_text(size)} is never {dim_text(wanted)}")
    return TensorType(x.dtype, dims)


def _in_place(node: Node) -> Collection[int]:
    return (0,) if node.attributes["perm"][:1] == (0,) else ()


@op(
    "transpose",
    lambda x, perm: np.transpose(x, perm),
    traits={"moves": True, "first_axis": _in_place},
    perm=REQUIRED,
)
def _transpose(x: TensorType, perm: Any) -> TensorType:
    if not isinstance(perm, tuple) or sorted(map(str, perm)) != sorted(map(str, range(x.rank))):
        raise LlmcError(f"perm {perm!r} is not an order of the axes 0..{x.rank - 1}")
    return TensorType(x.dtype, tuple(x.shape[p] for p in perm))


def _of_equal_rank(node: Node) -> Collection[int]:
    return (0,) if node.inputs[0].type.rank == node.type.rank else ()


@op(
    "expand",
    lambda x, shape, sizes: np.broadcast_to(x, _actual(shape, sizes)),
    traits={"symbolic": True, "moves": True, "rows": SHAPED, "first_axis": _of_equal_rank},
    shape=REQUIRED,
)
def _expand(x: TensorType, shape: Any) -> TensorType:
    dims = want_dims(shape)
    want_broadcastable(x, dims, "the input")
    return TensorType(x.dtype, dims)


def _slice_reference(x: Array, axis: int, start: Dim, stop: Dim, step: int, sizes: Sizes) -> Array:
    stop = max(
        evaluate(dim(stop), sizes), 0
    )  # one of nothing by steps may end before the axis, as indices do not
    part = slice(evaluate(dim(start), sizes), stop, step)
    return x[(slice(None),) * axis + (part,)]


def _slice_constraints(
    x: TensorType, axis: int, start: Dim, stop: Dim, step: int
) -> tuple[AtMost, AtMost, AtMost]:
    return (
        AtMost(0, start, high_name="its start"),
        AtMost(
            start, dim(stop + step - 1), "its start", f"its stop and {step - 1}" if step > 1 else "its stop"
        ),
        AtMost(stop, x.shape[axis], "its stop", f"the size of axis {axis}"),
    )


_SLICE = {
    "symbolic": True,
    "moves": True,
    "rows": last_axes("axis"),
    "first_axis": beside_first("axis"),
    "constraints": _slice_constraints,
}


@op("slice", _slice_reference, traits=_SLICE, axis=REQUIRED, start=REQUIRED, stop=REQUIRED, step=1)
def _slice(x: TensorType, axis: int, start: Dim, stop: Dim, step: int) -> TensorType:
    want_axis(x, axis)
    want_int(step, "step", 1)
    start, stop = want_dim(start, "start"), want_dim(stop, "stop")
    # what is not known at compile time is looked at before each call: `_slice_constraints`
    for low, high in ((0, start), (start, stop), (stop, x.shape[axis])):
        room = dim(high - low)
        if isinstance(room, int) and room < 0:
            raise LlmcError(
                f"{dim_text(start)}:{dim_text(stop)} is not within 0:{dim_text(x.shape[axis])} on axis {axis}"
            )
    length = floor_div(dim(stop - start + step - 1), step)
    return TensorType(x.dtype, (*x.shape[:axis], length, *x.shape[axis + 1 :]))


_CONCAT = {"first_axis": beside_first("axis", all_inputs)}


@op("concat", lambda *arrays, axis: np.concatenate(arrays, axis), traits=_CONCAT, axis=REQUIRED)
def _concat(*inputs: TensorType, axis: int) -> TensorType:
    if not inputs:
        raise LlmcError("it takes at least one input")
    first = inputs[0]
    want_same_dtype(*inputs)
    want_axis(first, axis)
    for number, other in enumerate(inputs[1:], 1):
        want_rank(other, first.rank, what=f"input {number}")
        want_shape(
            other, (*first.shape[:axis], other.shape[axis], *first.shape[axis + 1 :]), f"input {number}"
        )
    total = dim(sum(t.shape[axis] for t in inputs))
    return TensorType(first.dtype, (*first.shape[:axis], total, *first.shape[axis + 1 :]))


def _pad_reference(x: Array, before: Any, after: Any, value: Any) -> Array:
    return np.pad(
        x, tuple(zip(before, after, strict=True)), constant_values=np.asarray(value).astype(x.dtype)
    )


def _around_others(node: Node) -> Collection[int]:
    return () if node.attributes["before"][0] or node.attributes["after"][0] else (0,)


@op("pad", _pad_reference, traits={"first_axis": _around_others}, before=REQUIRED, after=REQUIRED, value=0)
def _pad(x: TensorType, before: Any, after: Any, value: Any) -> TensorType:
    want_number(value, "value")
    for what, counts in (("before", before), ("after", after)):
        if not isinstance(counts, tuple) or len(counts) != x.rank:
            raise LlmcError(f"{what} is {counts!r}, not one number for each of {x.rank} axes")
        for count in counts:
            want_int(count, what, 0)
    return TensorType(x.dtype, tuple(dim(b + d + a) for b, d, a in zip(before, x.shape, after, strict=True)))


# --- selection by index; the references clamp indices, as kernels do


def _gather_reference(x: Array, index: Array, axis: int) -> Array:
    return np.take_along_axis(x, np.clip(index, 0, max(x.shape[axis] - 1, 0)), axis)


def _gather_constraints(x: TensorType, index: TensorType, axis: int) -> tuple[AtMost]:
    return (AtMost(1, x.shape[axis], high_name=f"the size of axis {axis}", times=product(index.shape)),)


def _picked_along(node: Node) -> Collection[int]:
    return (0, 1) if node.attributes["axis"] else (1,)


_GATHER = {"constraints": _gather_constraints, "first_axis": _picked_along}


@op("gather", _gather_reference, traits=_GATHER, axis=REQUIRED)
def _gather(x: TensorType, index: TensorType, axis: int) -> TensorType:
    want_dtype(index, INDICES, "the index")
    want_axis(x, axis)
    want_rank(index, x.rank, what="the index")
    want_shape(index, (*x.shape[:axis], index.shape[axis], *x.shape[axis + 1 :]), "the index")
    return TensorType(x.dtype, index.shape)


def table_constraints(table: TensorType, index: TensorType, what: str = "its table") -> tuple[AtMost]:
    """An index is clamped to the rows that there are, so there is one."""
    return (AtMost(1, table.shape[0], high_name=f"the number of rows of {what}", times=product(index.shape)),)


@op(
    "embedding",
    lambda table, index: np.take(table, index, axis=0, mode="clip"),
    traits={"rows": Rows((1,)), "constraints": table_constraints},
)
def _embedding(table: TensorType, index: TensorType) -> TensorType:
    want_dtype(index, INDICES, "the index")
    if not table.rank:
        raise LlmcError("the table is a scalar")
    return TensorType(table.dtype, (*index.shape, *table.shape[1:]))
