"""ONNX's element types, and the dtypes of the IR that hold their values.

Floats of any width are computed as f32. Integers that no kernel has are held in the next wider one, and wrapped to
their own bits again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

_FLOATS = (
    *("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2"),
    *("FLOAT8E5M2FNUZ", "FLOAT4E2M1", "FLOAT8E8M0", "FLOAT6E2M3", "FLOAT6E3M2"),
)
_INTEGERS = {
    **{"INT8": "i8", "INT4": "i8", "INT2": "i8", "UINT8": "u8", "UINT4": "u8", "UINT2": "u8"},
    **{"INT16": "i32", "UINT16": "i32", "INT32": "i32", "UINT32": "i64", "UINT64": "i64", "INT64": "i64"},
}
_KNOWN: Mapping[str, int] = dict(TensorProto.DataType.items())

# number of an element type -> dtype of the IR
DTYPES: Mapping[int, str] = {
    **{_KNOWN[name]: "f32" for name in _FLOATS if name in _KNOWN},
    **{_KNOWN[name]: dtype for name, dtype in _INTEGERS.items() if name in _KNOWN},
    TensorProto.BOOL: "bool",
}
# element types whose bytes in a file are a view
RAW: Mapping[int, Any] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.INT8: np.dtype("i1"),
    TensorProto.UINT8: np.dtype("u1"),
    TensorProto.INT16: np.dtype("<i2"),
    TensorProto.UINT16: np.dtype("<u2"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.UINT32: np.dtype("<u4"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.UINT64: np.dtype("<u8"),
    TensorProto.BOOL: np.dtype("?"),
}
_NATURAL = {
    "f32": TensorProto.FLOAT,
    "i8": TensorProto.INT8,
    "u8": TensorProto.UINT8,
    "i32": TensorProto.INT32,
    "i64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "f64": TensorProto.DOUBLE,
}


def held_in(kind: int, doubles: bool = False) -> str:
    """The dtype of the IR that holds an element type of `DTYPES`; of a file that is computed in doubles f64, too."""
    return "f64" if doubles and kind == TensorProto.DOUBLE else DTYPES[kind]


def dtype_name(number: int) -> str:
    """ONNX's name of an element type."""
    known = {v: k for k, v in _KNOWN.items()}
    return known.get(number, f"number {number}")


def natural(dtype: str) -> int:
    """The element type that a dtype of the IR is."""
    return _NATURAL[dtype]


def bits(kind: int) -> tuple[int, bool] | None:
    """Bits and sign of an integer that is held in a wider one; None for all others."""
    name = dtype_name(kind)
    if name not in _INTEGERS or kind in _NATURAL.values() or name == "UINT64":
        return None
    return int(name.lstrip("UINT")), not name.startswith("U")


def wide(array: np.ndarray[Any, Any], what: str = "the data") -> np.ndarray[Any, Any]:
    """An array in the dtype of the IR that holds its values.

    Raises:
        ValueError: a value does not fit: a double beyond f32, an unsigned number from 2**63 on.
    """
    if array.dtype.kind in "biu" and array.dtype.name in ("bool", "int8", "uint8", "int32", "int64"):
        return array
    if array.dtype.kind == "c" or array.dtype.kind in "OSU":
        raise ValueError(f"{what} of {array.dtype}")
    if array.dtype.name == "uint64" and array.size and array.max() >= 1 << 63:
        raise ValueError(f"{what} has a number from 2**63 on")
    target = _wider(array.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(target)
    if (
        array.dtype == np.float64
        and np.isinf(made).any()
        and not np.array_equal(np.isinf(made), np.isinf(array))
    ):
        raise ValueError(f"{what} has doubles that are beyond float32")
    return np.asarray(made)


def _wider(dtype: Any) -> Any:
    name = str(dtype.name)
    if name.startswith(("int", "uint")):
        return {"int16": np.int32, "uint16": np.int32, "uint32": np.int64, "uint64": np.int64}.get(
            name, np.uint8 if name.startswith("u") else np.int8
        )
    return np.float32
