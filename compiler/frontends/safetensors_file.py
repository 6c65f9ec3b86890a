"""Header of a safetensors file (github.com/huggingface/safetensors), checked against its size.

A u64 has its length, JSON is next, then the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.regular_file import want_regular
from llmc.errors import LlmcError

MAX_HEADER = 100_000_000  # bytes, the limit of the format's own library
ITEM_SIZE = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_BELOW_BYTES = ("F4", "F6_E2M3", "F6_E3M2")  # what the format has beside them


@dataclass(frozen=True)
class Tensor:
    """dtype as safetensors names it, shape, and where its bytes begin in the file's data."""

    dtype: str
    shape: tuple[int, ...]
    first: int = field(default=0, compare=False)


def read_header(file: Path) -> Mapping[str, Tensor]:
    """Names, dtypes and shapes of the tensors in a file.

    Raises:
        LlmcError: the file is truncated, corrupt or not safetensors.
    """
    want_regular(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise _damaged(file, f"a header of {length:,} bytes in a file of {size:,}")
            text = stream.read(length)
    except OSError as error:
        raise LlmcError(f"cannot read {file.name}: {error.strerror}", at=str(file)) from None
    return _tensors(file, _parsed(file, text), size - 8 - length)


def _damaged(file: Path, found: str) -> LlmcError:
    return LlmcError(
        f"{file.name} is corrupt or truncated",
        at=str(file),
        found=found,
        hint="download or save the weights again",
    )


def _parsed(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(file, "a header that is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(file, "a header that is not a JSON object")
    header.pop("__metadata__", None)
    return header


def _tensors(file: Path, header: Mapping[str, Any], room: int) -> Mapping[str, Tensor]:
    """Every tensor's bytes must lie in the data, fit its shape, and leave no gap."""
    tensors, spans = {}, []
    for name, entry in header.items():
        tensors[name], span = _tensor(file, name, entry)
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise _damaged(file, f"a gap or overlap at byte {min(first, end):,} of the data")
        end = last
    if end != room:
        raise _damaged(file, f"{room:,} bytes of data where the header says {end:,}")
    return tensors


def _tensor(file: Path, name: str, entry: Any) -> tuple[Tensor, tuple[int, int]]:
    if isinstance(entry, dict) and entry.get("dtype") in _BELOW_BYTES:
        raise LlmcError(
            f"{file.name} has weights of {entry['dtype']}, which are not supported",
            at=str(file),
            found=name[:60],
            hint="save the model in F32, F16 or BF16",
        )
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = [*shape, first, last]
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or dtype not in ITEM_SIZE:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _damaged(file, f"a malformed entry for {name!r}") from None
    if last - first != math.prod(shape) * ITEM_SIZE[dtype]:
        raise _damaged(file, f"{last - first:,} bytes for {name!r} of {dtype} {list(shape)}")
    return Tensor(dtype, shape, first), (first, last)
