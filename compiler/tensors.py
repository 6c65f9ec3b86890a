"""What nodes are of: dtypes, types of tensors, sources and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim, dim, dim_text
from llmc.errors import LlmcError

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "f32": np.dtype(np.float32),
        "f16": np.dtype(np.float16),
        "i8": np.dtype(np.int8),
        "u8": np.dtype(np.uint8),
        "i32": np.dtype(np.int32),
        "i64": np.dtype(np.int64),
        "bool": np.dtype(np.bool_),
        "f64": np.dtype(np.float64),  # for sums and products of such files only: no other op has it
    }
)
_NAMES = {v: k for k, v in DTYPES.items()}


def dtype_name(dtype: Any) -> str:
    """llmc's short name of a NumPy dtype.

    Raises:
        LlmcError: llmc has no such dtype.
    """
    try:
        return _NAMES[np.dtype(dtype)]
    except (KeyError, TypeError) as error:
        raise LlmcError(f"dtype {dtype} is not supported", hint=f"use one of {', '.join(DTYPES)}") from error


@dataclass(frozen=True)
class TensorType:
    """dtype name and shape; a dim is an int or a sympy expression."""

    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise LlmcError(f"dtype {self.dtype!r} is not supported", hint=f"use one of {', '.join(DTYPES)}")
        object.__setattr__(self, "shape", tuple(dim(d) for d in self.shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(dim_text(d) for d in self.shape)}]"

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True, init=False)
class Results(TensorType):
    """What a node with several results gives: their types. Only the op `result` reads such a node."""

    types: tuple[TensorType, ...]

    def __init__(self, types: Iterable[TensorType]) -> None:
        object.__setattr__(self, "dtype", "results")  # no dtype of a tensor, so nobody takes it for one
        object.__setattr__(self, "shape", ())
        object.__setattr__(self, "types", tuple(types))

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.types))})"


def results_of(kind: TensorType) -> tuple[TensorType, ...]:
    """The types of all that a node of this type gives."""
    return kind.types if isinstance(kind, Results) else (kind,)


@dataclass(frozen=True)
class Source:
    """Where a node came from: module path (`encoder.layer.3.attention`) and `file:line`, either may be empty."""

    path: str = ""
    line: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.line})" if self.line else self.path


class Weight:
    """A constant's values and name. Equal contents have equal digests; the array is read-only.

    Graphs share weights, so a pass that wrote into one would change the graph it was given, and the answers that its
    own is compared with.
    """

    __slots__ = ("_digest", "array", "name")

    def __init__(self, array: np.ndarray[Any, Any], name: str = "", digest: str | None = None) -> None:
        self.array = array.view()
        self.array.setflags(write=False)
        self.name = name
        self._digest = digest  # where it is known already

    @property
    def digest(self) -> str:
        """sha256 over dtype, shape and little-endian bytes, in hex."""
        if self._digest is None:
            head = f"{dtype_name(self.array.dtype)}{self.array.shape}".encode()
            made = hashlib.sha256(head)
            made.update(np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data)
            self._digest = made.hexdigest()
        return self._digest

    def named(self, name: str) -> Weight:
        """The same values under another name."""
        return Weight(self.array, name, self._digest)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Weight) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Weight({self.name or self.digest[:12]})"
