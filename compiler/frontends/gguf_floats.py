"""The tensors of a GGUF file as float32, dequantised by the package that transformers does it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.frontends.stored_floats import Floats
from llmc.errors import extras_named

_HALVES = " of halves"  # behind a name: rows as transformers has them


class GgufFloats:
    """As `StoredFloats`, by the file's own names.

    llama.cpp turns pairs of neighbours where transformers turns the two halves of a head, and has the rows of such
    weights in another order: queries and keys of a Llama are there in both, the second under a name of its own.

    Args:
        shapes: by name.

    Raises:
        LlmcError: the package gguf is not installed.
        ValueError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        with extras_named():
            import gguf
        reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._heads = {name + _HALVES: heads for name, heads in self._turned(reader).items()}
        own = {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in self._tensors.items()}
        self.shapes = own | {name: own[name.removesuffix(_HALVES)] for name in self._heads}

    def _turned(self, reader: Any) -> dict[str, int]:
        """How many heads the rows of a weight are, of those in llama.cpp's order."""
        if reader.fields["general.architecture"].contents() != "llama":
            return {}
        counts = {"attn_q": "head_count", "attn_k": "head_count_kv"}
        heads = {part: reader.fields.get(f"llama.attention.{key}") for part, key in counts.items()}
        known = {part: int(field.contents()) for part, field in heads.items() if field is not None}
        parts = {name: name.split(".")[-2] for name in self._tensors if name.endswith(".weight")}
        return {name: known[part] for name, part in parts.items() if part in known}

    def read(self, name: str) -> Floats:
        """The values."""
        from gguf.quants import dequantize

        tensor, shape = self._tensors[name.removesuffix(_HALVES)], self.shapes[name]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        if name in self._heads:
            values = values.reshape(self._heads[name], -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        return np.ascontiguousarray(values, np.float32)
