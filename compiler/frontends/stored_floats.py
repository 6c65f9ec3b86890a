"""Floats of a safetensors file as float32; the library's NumPy interface has no bfloat16."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.frontends.safetensors_file import read_header

Floats = np.ndarray[Any, np.dtype[np.float32]]
_STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class StoredFloats:
    """The tensors of a file that are floats of at most 32 bits, mapped into memory where they are float32.

    Args:
        shapes: by name.

    Raises:
        LlmcError: as `read_header`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors = {name: t for name, t in read_header(path).items() if t.dtype in _STORED}
        with path.open("rb") as file:
            self._data = 8 + int.from_bytes(file.read(8), "little")
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Floats:
        """The values: a bfloat16 is the upper half of a float32."""
        tensor = self._tensors[name]
        if math.prod(tensor.shape) == 0:
            return np.zeros(tensor.shape, np.float32)
        kind = np.dtype(_STORED[tensor.dtype])
        stored = np.memmap(self._path, kind, "r", self._data + tensor.first, tensor.shape)
        if tensor.dtype == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(stored, np.float32)
