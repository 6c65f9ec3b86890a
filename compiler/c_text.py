"""C for what a program is made of: strings, sizes, the specs of tensors and states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmc.compiler.dims import Dim, dim, dim_c, dim_text, symbol
from llmc.compiler.graph import TensorType
from llmc.compiler.module import State


@dataclass(frozen=True)
class Tensor:
    """One input or output of the signature."""

    name: str
    type: TensorType
    default: float | None = None
    low: int | None = None
    high: int | None = None


def c_string(text: str) -> str:
    """A C string literal; anything but plain ASCII as octal escapes."""
    plain = {ord(c) for c in " !#$%&'()*+,-./:;<=>@[]^_`{|}~"}
    return (
        '"'
        + "".join(
            chr(b) if chr(b).isascii() and (chr(b).isalnum() or b in plain) else f"\\{b:03o}"
            for b in text.encode()
        )
        + '"'
    )


def c_size(value: Dim) -> str:
    """C for a size; the dim `batch` is the variable `size_batch`, so that no name of a dim is a word of C."""
    value = dim(value)
    return dim_c(
        value if isinstance(value, int) else value.xreplace({s: _variable(s) for s in value.free_symbols})
    )


def _variable(name: Any) -> Dim:
    return symbol(f"size_{name}")


def tensor_spec(tensor: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """An `llmc_tensor_spec`; `names` are the dims of the module."""
    return {
        **_spec(tensor.name, tensor.type, names),
        "default": tensor.default,
        "low": tensor.low,
        "high": tensor.high,
    }


def state_spec(state: State, names: Sequence[str]) -> dict[str, Any]:
    """An `llmc_state_spec`."""
    return {**_spec(state.name, state.type, names), "grows": -1 if state.grows is None else state.grows}


def _spec(name: str, kind: TensorType, names: Sequence[str]) -> dict[str, Any]:
    def code(d: Dim) -> str:
        if isinstance(d, int):
            return str(d)
        return str(-1 - names.index(str(d))) if str(d) in names else "INT64_MIN"

    return {
        "name": c_string(name),
        "dtype": f"LLMC_{kind.dtype.upper()}",
        "rank": kind.rank,
        "dims": [code(d) for d in kind.shape],
        "texts": [c_string(dim_text(d)) for d in kind.shape],
    }
