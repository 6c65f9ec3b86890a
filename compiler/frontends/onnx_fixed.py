"""Inputs of an ONNX file that always have one value: they become weights, and what depends on them is decided."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.frontends.onnx_kinds import DTYPES, dtype_name
from llmc.compiler.graph import DTYPES as ARRAYS
from llmc.errors import LlmcError

Number = int | float
_MOST = 1 << 20  # elements


def fix(graph: Any, values: Mapping[str, Number], path: Path) -> None:
    """Make weights of those inputs of a file's graph.

    Args:
        graph: onnx.GraphProto, which is changed.
        values: of each input, for all of its elements.

    Raises:
        LlmcError: there is no such input, its size is open, or its dtype does not hold the value.
    """
    from onnx import numpy_helper

    weights = {t.name for t in graph.initializer}
    inputs = {i.name: i for i in graph.input if i.name not in weights}
    for name, value in values.items():
        if name not in inputs:
            raise LlmcError(
                f"the file has no input {name!r}", at=str(path), hint=f"it has {', '.join(inputs)}"
            )
        array = _array(inputs[name], value, str(path))
        graph.input.remove(inputs[name])
        graph.initializer.append(numpy_helper.from_array(array, name))


def _array(info: Any, value: Number, at: str) -> np.ndarray[Any, Any]:
    kind = info.type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
    if kind.elem_type not in DTYPES or not kind.HasField("shape") or min(sizes, default=0) < 0:
        raise LlmcError(
            f"input {info.name!r} cannot have one value",
            at=at,
            found="an open size" if min(sizes, default=0) < 0 else dtype_name(kind.elem_type),
            hint="--dim gives open axes a size",
        )
    if int(np.prod(sizes, dtype=object)) > _MOST:
        raise LlmcError(f"input {info.name!r} has more than {_MOST} elements", at=at, found=str(sizes)[:200])
    dtype = np.dtype(ARRAYS[DTYPES[kind.elem_type]])
    return np.full(sizes, _held(value, dtype, info.name, at), dtype)


def _held(value: Number, dtype: np.dtype[Any], name: str, at: str) -> Any:
    """The value in that dtype."""
    if dtype.kind == "f":
        return dtype.type(value)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if value != int(value) or not low <= value <= high:
        raise LlmcError(f"input {name!r} of {dtype} cannot be {value}", at=at, hint=f"{low} to {high}")
    return int(value)
