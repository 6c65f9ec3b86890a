"""What a model takes and gives, as its module says, and whether its manifest says the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.manifest import Manifest, TensorEntry

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "f32": np.dtype(np.float32),
        "f16": np.dtype(np.float16),
        "bf16": np.dtype(np.uint16),  # NumPy has no bfloat16: the bits
        "i8": np.dtype(np.int8),
        "u8": np.dtype(np.uint8),
        "i32": np.dtype(np.int32),
        "i64": np.dtype(np.int64),
        "bool": np.dtype(np.bool_),
    }
)


@dataclass(frozen=True)
class TensorInfo:
    """One input or output.

    Attributes:
        dtype: llmc's name, such as "f32".
        shape: ints and texts over the dims, such as ("batch", "seq", 384).
        default: the value that fills the input when it is not given; None: it must be given.
        range: inclusive bounds of an integer input's values.
    """

    dtype: str
    shape: tuple[int | str, ...]
    default: float | None = None
    range: tuple[int, int] | None = None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """dtype of the arrays that hold it."""
        return NUMPY_DTYPES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature:
    """Ordered inputs, outputs and dims (inclusive bounds)."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    dims: Mapping[str, tuple[int, int]]


def read_signature(info: native.Info) -> Signature:
    """The signature compiled into the module."""
    dims = {info.dims[i].name.decode(): (info.dims[i].low, info.dims[i].high) for i in range(info.n_dims)}
    inputs = dict(_tensor(info.inputs[i]) for i in range(info.n_inputs))
    outputs = dict(_tensor(info.outputs[i]) for i in range(info.n_outputs))
    return Signature(MappingProxyType(inputs), MappingProxyType(outputs), MappingProxyType(dims))


def _tensor(spec: native.TensorSpec) -> tuple[str, TensorInfo]:
    shape = tuple(
        spec.dims[axis] if spec.dims[axis] >= 0 else spec.dims_text[axis].decode()
        for axis in range(spec.rank)
    )
    return spec.name.decode(), TensorInfo(
        dtype=native.DTYPE_NAMES[spec.dtype],
        shape=shape,
        default=spec.default_value if spec.has_default else None,
        range=(spec.low, spec.high) if spec.has_range else None,
    )


def check_same(manifest: Manifest, info: native.Info, signature: Signature) -> None:
    """Raise where the manifest describes another program than the module holds.

    Raises:
        LlmcError: naming the first field that differs.
    """
    expected: dict[str, Any] = {
        "build_id": info.build_id.decode(),
        "inputs": list(signature.inputs.items()),
        "outputs": list(signature.outputs.items()),
        "dims": list(signature.dims.items()),
    }
    found: dict[str, Any] = {
        "build_id": manifest.build_id,
        "inputs": [_entry(t) for t in manifest.inputs],
        "outputs": [_entry(t) for t in manifest.outputs],
        "dims": list(manifest.dims.items()),
    }
    for field, value in expected.items():
        if found[field] != value:
            raise LlmcError(
                f"field {field} does not describe module.so",
                at=str(manifest.path),
                found=f"{found[field]}, but the module has {value}",
                hint="the files are of different builds, or the file was replaced while loaded: "
                "compile the model again, or start a new process",
            )


def _entry(entry: TensorEntry) -> tuple[str, TensorInfo]:
    return entry.name, TensorInfo(entry.dtype, entry.shape, entry.default, entry.range)
