"""The initialisers of a file: weights and small constants, each content once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from onnx import TensorProto

from llmc.compiler.frontends.onnx_kinds import natural
from llmc.compiler.graph import Weight, dtype_name

Array = np.ndarray[Any, Any]
_HALVES = {TensorProto.INT4, TensorProto.UINT4}  # two numbers in a byte, the first in the low half


def kind_of(dtype: str) -> int:
    """ONNX's element type of a dtype of the IR."""
    return int(TensorProto.FLOAT16) if dtype == "f16" else natural(dtype)


@dataclass(frozen=True)
class Tensor:
    """What an initialiser holds.

    Args:
        weight: its values; of numbers of 4 bits one in each byte.
        kind: ONNX's element type.
        change: what is done to the values when they are written, so that no second copy is held until then.
    """

    weight: Weight
    kind: int
    change: Callable[[Array], Array] | None = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the values as they are written."""
        array: Array = np.broadcast_to(np.int8(0), self.weight.array.shape)
        return tuple((array if self.change is None else self.change(array)).shape)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        count = int(np.prod(self.shape, dtype=np.int64))
        return -(-count // 2) if self.kind in _HALVES else count * self.weight.array.itemsize

    def bytes(self) -> Array:
        """u8 [size], as ONNX lays them out."""
        array = self.weight.array if self.change is None else self.change(self.weight.array)
        flat = np.ascontiguousarray(array).reshape(-1)
        if self.kind not in _HALVES:
            return flat.view(np.uint8)
        low = flat.view(np.uint8) & 15
        low = np.append(low, np.uint8(0)) if low.size % 2 else low
        return np.asarray(low[::2] | (low[1::2] << 4))


class Tensors:
    """Initialisers by name."""

    def __init__(self, free_name: Callable[[str], str]) -> None:
        self._free, self._names = free_name, dict[Any, str]()
        self.held: dict[str, Tensor] = {}

    def add(
        self,
        weight: Weight,
        kind: int | None = None,
        change: Callable[[Array], Array] | None = None,
        name: str = "",
    ) -> str:
        """The name of an initialiser; equal contents have one.

        Args:
            kind: ONNX's element type; that of the weight's dtype if not given.
            change: what is done to the values; of equal functions equal weights are written once.
        """
        kind = kind_of(dtype_name(weight.array.dtype)) if kind is None else kind
        key = (weight.digest, kind, change)
        if key not in self._names:
            self._names[key] = self._free(name or weight.name or "constant")
            self.held[self._names[key]] = Tensor(weight, kind, change)
        return self._names[key]

    def rename(self, names: Mapping[str, str]) -> None:
        """Call initialisers otherwise."""
        self.held = {names.get(name, name): tensor for name, tensor in self.held.items()}
