"""What a model takes and gives, as its module says, and whether its manifest says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        "f64": np.dtype(np.float64),
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
class Function:
    """One function of a model.

    Attributes:
        number: its place among the model's functions.
        inputs, outputs: name -> TensorInfo, in order.
        states: name -> what it does to a state: "read", "appended" (it grows) or "replaced" (by a new value).
        single: why it runs for one session at a time; empty if `Model.run_sessions` runs it for several.
    """

    number: int
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    states: Mapping[str, str]
    single: str = ""

    @property
    def batches(self) -> bool:
        """Whether it runs for several sessions at once."""
        return not self.single

    def __str__(self) -> str:
        takes = ", ".join(f"{n}: {t}" for n, t in self.inputs.items())
        gives = ", ".join(f"{n}: {t}" for n, t in self.outputs.items())
        return f"({takes}) -> ({gives})"


@dataclass(frozen=True)
class StateInfo:
    """What a session keeps from one call to the next.

    Attributes:
        dtype: llmc's name, such as "f32".
        shape: ints and texts over the dims, such as ("past", "batch", 64).
        grows: the axis that grows, from length 0; None: the shape stays, and the state begins as zeros.
    """

    dtype: str
    shape: tuple[int | str, ...]
    grows: int | None = None

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature:
    """Ordered functions, states, dims (inclusive bounds), and names of the adapters that a session may have."""

    functions: Mapping[str, Function]
    states: Mapping[str, StateInfo]
    dims: Mapping[str, tuple[int, int]]
    adapters: tuple[str, ...] = ()

    @property
    def lengths(self) -> tuple[str, ...]:
        """The dims along which states grow."""
        growing = [str(s.shape[s.grows]) for s in self.states.values() if s.grows is not None]
        return tuple(name for name in self.dims if name in growing)


_USES = (None, "read", "appended", "replaced")


def read_signature(info: native.Info) -> Signature:
    """The signature compiled into the module."""
    dims = {info.dims[i].name.decode(): (info.dims[i].low, info.dims[i].high) for i in range(info.n_dims)}
    states = dict(_state(info.states[i]) for i in range(info.n_states))
    functions = {
        info.functions[i].name.decode(): _function(i, info.functions[i], list(states))
        for i in range(info.n_functions)
    }
    adapters = tuple(info.adapters[i].decode() for i in range(info.n_adapters))
    return Signature(MappingProxyType(functions), MappingProxyType(states), MappingProxyType(dims), adapters)


def _function(number: int, info: native.FunctionInfo, states: Sequence[str]) -> Function:
    uses = {name: _USES[info.state_use[i]] for i, name in enumerate(states)}
    return Function(
        number,
        MappingProxyType(dict(_tensor(info.inputs[i]) for i in range(info.n_inputs))),
        MappingProxyType(dict(_tensor(info.outputs[i]) for i in range(info.n_outputs))),
        MappingProxyType({name: use for name, use in uses.items() if use}),
        "" if info.batches else (info.single or b"its code was not made for that").decode(),
    )


def _shape(spec: native.TensorSpec | native.StateSpec) -> tuple[int | str, ...]:
    return tuple(
        spec.dims[axis] if spec.dims[axis] >= 0 else spec.dims_text[axis].decode()
        for axis in range(spec.rank)
    )


def _state(spec: native.StateSpec) -> tuple[str, StateInfo]:
    grows = None if spec.grows < 0 else spec.grows
    return spec.name.decode(), StateInfo(native.DTYPE_NAMES[spec.dtype], _shape(spec), grows)


def _tensor(spec: native.TensorSpec) -> tuple[str, TensorInfo]:
    return spec.name.decode(), TensorInfo(
        dtype=native.DTYPE_NAMES[spec.dtype],
        shape=_shape(spec),
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
        "functions": [
            (n, list(f.inputs.items()), list(f.outputs.items())) for n, f in signature.functions.items()
        ],
        "states": list(signature.states.items()),
        "dims": list(signature.dims.items()),
        "adapters": signature.adapters,
    }
    found: dict[str, Any] = {
        "build_id": manifest.build_id,
        "functions": [
            (f.name, [_entry(t) for t in f.inputs], [_entry(t) for t in f.outputs])
            for f in manifest.functions
        ],
        "states": [(s.name, StateInfo(s.dtype, s.shape, s.grows)) for s in manifest.states],
        "dims": list(manifest.dims.items()),
        "adapters": manifest.adapters,
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
