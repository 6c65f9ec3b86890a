"""Large checkpoints of 16-bit floats, written as float32 into files that are mapped while a model is compiled.

A model of 3 billion parameters takes 12 GB in float32. Mapped, that is disk, and memory only for what is being read:
`resident` gives the rest back. The files leave their folder when an import is over, and the disk when nobody has them
mapped any more. What a process leaves that is killed meanwhile, the next import removes (`scratch`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmc.compiler.frontends import scratch
from llmc.compiler.frontends.resident import watched
from llmc.compiler.frontends.safetensors_file import ITEM_SIZE, Tensor, read_header
from llmc.compiler.frontends.stored_floats import StoredFloats

LARGE = 1 << 30  # bytes in float32 from which on files are widened
_HALVES = ("BF16", "F16")
_DISK = Path("/var/tmp")  # /tmp may lie in memory
_ALIGNMENT = 8  # of the data, as the format's own library writes it


def place() -> Path:
    """Where large temporary files go: $TMPDIR, else a folder that lies on a disk."""
    if "TMPDIR" not in os.environ and os.access(_DISK, os.W_OK):
        return _DISK
    return Path(tempfile.gettempdir())


def wants(files: Iterable[Path]) -> bool:
    """Whether they hold so many 16-bit floats that memory would tell, and the disk has room for them."""
    tensors = [t for file in files if file.suffix == ".safetensors" for t in read_header(file).values()]
    large = sum(_size(t) for t in tensors if t.dtype in _HALVES) >= LARGE
    return large and shutil.disk_usage(place()).free > 2 * sum(map(_size, tensors))


@contextmanager
def mapped(files: Sequence[Path]) -> Iterator[list[Path]]:
    """The files, or if they are large, widened ones for the time of the block; what was mapped stays so.

    Raises:
        LlmcError, OSError: as `write`.
    """
    if not wants(files):
        yield list(files)
        return
    with scratch.folder(place()) as folder, watched(folder):
        made = [folder / f"{i}.safetensors" for i in range(len(files))]
        for file, to in zip(files, made, strict=True):
            write(file, to)
        yield made


def write(file: Path, to: Path) -> None:
    """A safetensors file again, its 16-bit floats as float32, tensor by tensor.

    Raises:
        LlmcError: as `read_header`.
        OSError: it cannot be written.
    """
    tensors, stored = read_header(file), StoredFloats(file)
    with file.open("rb") as source, to.open("wb") as out:
        data = 8 + int.from_bytes(source.read(8), "little")
        _write_header(out, tensors)
        for name, tensor in tensors.items():
            if tensor.dtype in _HALVES:
                out.write(stored.read(name).reshape(-1).view("u1").data)
            else:
                source.seek(data + tensor.first)
                out.write(source.read(_size(tensor)))


def _write_header(out: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """u64 length, then JSON: where each tensor's bytes are, one behind the other."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        first, end = end, end + _size(tensor)
        dtype = "F32" if tensor.dtype in _HALVES else tensor.dtype
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [first, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    out.write(len(text).to_bytes(8, "little") + text)


def _size(tensor: Tensor) -> int:
    """Bytes after widening."""
    return math.prod(tensor.shape) * (4 if tensor.dtype in _HALVES else ITEM_SIZE[tensor.dtype])
