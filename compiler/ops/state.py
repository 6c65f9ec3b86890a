"""States: what a session keeps between two calls of a module's functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import dim, dim_names, evaluate
from llmc.compiler.graph import DTYPES, TensorType
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.rules import Array, want_axis, want_dims, want_rank, want_same_dtype, want_shape
from llmc.compiler.ops.shape import SYMBOLIC, Sizes
from llmc.errors import LlmcError


def _state_reference(*, name: str, dtype: str, shape: Any, grows: int | None, sizes: Sizes) -> Array:
    """What a session begins with; the interpreter binds later values itself."""
    return np.zeros(tuple(evaluate(d, sizes) for d in shape), DTYPES[dtype])


@op(
    "state",
    _state_reference,
    traits=SYMBOLIC,
    name=REQUIRED,
    dtype=REQUIRED,
    shape=REQUIRED,
    grows=None,
)
def _state(*, name: str, dtype: str, shape: Any, grows: int | None) -> TensorType:
    """A state's value when the call begins. The axis `grows`, if any, is a named dim of its own, 0 at first."""
    if not isinstance(name, str) or not name:
        raise LlmcError(f"the name {name!r} is not a non-empty string")
    result = TensorType(dtype, want_dims(shape))
    if grows is None:
        return result
    length = result.shape[want_axis(result, grows, "the growing axis")]
    if not isinstance(length, sympy.Symbol):
        raise LlmcError(f"the axis that grows has size {length}, not a named dim of its own")
    if any(str(length) in dim_names(d) for axis, d in enumerate(result.shape) if axis != grows):
        raise LlmcError(f"the dim that grows, {length}, is the size of another axis too")
    return result


@op("append", lambda state, new: np.concatenate((state, new)), traits={"view": True})
def _append(state: TensorType, new: TensorType) -> TensorType:
    """concat of `[rows, ...]` and `[more, ...]`, where the new rows lie behind those of the state, in its memory"""
    want_same_dtype(state, new)
    want_rank(new, max(state.rank, 1), what="the new part")
    want_shape(new, (new.shape[0], *state.shape[1:]), "the new part")
    return TensorType(state.dtype, (dim(state.shape[0] + new.shape[0]), *state.shape[1:]))
