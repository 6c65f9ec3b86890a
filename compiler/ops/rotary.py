"""Rotary position embedding: Su et al. 2021, "RoFormer"."""

from __future__ import annotations

import numpy as np

from llmc.compiler.graph import TensorType
from llmc.compiler.ops.declare import op
from llmc.compiler.ops.reduction import F32
from llmc.compiler.ops.rules import Array, want_broadcastable, want_dtype, want_flags
from llmc.compiler.ops.traits import Rows, all_inputs
from llmc.errors import LlmcError


def _rotary_reference(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    part, rest = np.split(x, [cos.shape[-1]], axis=-1)
    a, b = (part[..., ::2], part[..., 1::2]) if interleaved else np.split(part, 2, axis=-1)
    turned = np.stack((-b, a), axis=-1 if interleaved else -2).reshape(part.shape)
    return np.concatenate((part * cos + turned * sin, rest), axis=-1)


_ROTARY = {"accuracy": "close", "rows": Rows(all_inputs, sliced=True, broadcast=True)}


@op("rotary", _rotary_reference, traits=_ROTARY, interleaved=False)
def _rotary(x: TensorType, cos: TensorType, sin: TensorType, interleaved: bool) -> TensorType:
    """x * cos + turned(x) * sin for the first r numbers of a row; the others stay.

    `turned` is concat(-x[r/2:r], x[:r/2]), or -x[1], x[0], -x[3], x[2] ... where it is `interleaved`. The tables have
    r, an even number, at their last axis, and broadcast to x along the others.
    """
    want_flags(interleaved=interleaved)
    for table, what in ((cos, "cos"), (sin, "sin")):
        want_dtype(table, F32, what)
        width = table.shape[-1] if table.rank else 0
        if not isinstance(width, int) or width % 2 or width == 0 or width != cos.shape[-1]:
            raise LlmcError(f"{what} has {width} numbers a row, not the same even number as cos")
        if not x.rank or not isinstance(x.shape[-1], int) or x.shape[-1] < width:
            raise LlmcError(f"x has fewer numbers a row than the {width} of {what}")
        want_broadcastable(table, (*x.shape[:-1], width), what)
    want_dtype(x, F32)
    return x
