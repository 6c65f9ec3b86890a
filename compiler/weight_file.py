"""Weights beside a graph's text: an .npz file of one array for each weight, and of texts that go with the model.

`np.load` reads it too. Arrays are called `NAME.DIGEST`, the digest by its first 16 digits; they are not compressed and
begin at multiples of 64 bytes, so that reading maps them into memory. Nothing is unpickled.
"""

from __future__ import annotations

import io
import math
import mmap
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmc.compiler.graph import Weight
from llmc.compiler.npz import NpzError, array_header, as_npz_errors
from llmc.compiler.text import DIGITS
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]

_ALIGNMENT = 64
_LOCAL = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field
_PADDING = struct.Struct("<HH")  # id and length of an extra field
_PADDING_ID = 0xD935  # "alignment" in the list of known extra fields
_LONGEST = 200  # characters of a name: file names have limits
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Stored:
    """What a file holds: arrays and texts by name."""

    path: Path
    weights: Mapping[str, Weight]
    texts: Mapping[str, str]


def key_of(weight: Weight) -> str:
    """What an array is called: a weight's name may hold anything, the digest tells equal names apart."""
    return f"{plain_name(weight.name)}.{weight.digest[:DIGITS]}"


def plain_name(name: str) -> str:
    """A name as an archive may have it."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:_LONGEST]


def write_weights(file: BinaryIO, weights: Iterable[Weight], texts: Mapping[str, str]) -> None:
    """Write both to a file that was opened for it; equal contents give equal bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name), text)
        for weight in weights:
            _write_array(archive, file.tell(), key_of(weight), weight.array)


def _write_array(archive: zipfile.ZipFile, place: int, name: str, array: Array) -> None:
    info = zipfile.ZipInfo(f"{name}.npy")
    large = array.nbytes >= zipfile.ZIP64_LIMIT - (1 << 20)
    head = place + _LOCAL.size + len(info.filename) + _PADDING.size + (20 if large else 0)
    fill = -head % _ALIGNMENT
    info.extra = _PADDING.pack(_PADDING_ID, fill) + bytes(fill)
    with archive.open(info, "w", force_zip64=large) as member:
        flat = np.ascontiguousarray(array)
        np.lib.format.write_array_header_1_0(
            member, {"descr": flat.dtype.str, "fortran_order": False, "shape": array.shape}
        )
        view = flat.reshape(-1).view(np.uint8)
        for first in range(0, view.size, _CHUNK):
            member.write(view[first : first + _CHUNK].data)


def read_weights(path: Path) -> Stored:
    """What `write_weights` or `np.savez` wrote; arrays are mapped into memory where the file allows it.

    Raises:
        LlmcError: the file cannot be read, is damaged, or holds what is no tensor.
    """
    try:
        with path.open("rb") as file, as_npz_errors(), zipfile.ZipFile(file) as archive:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            members = archive.infolist()
            arrays = [m for m in members if m.filename.endswith(".npy")]
            weights = {_stem(m): _weight(archive, m, whole, path) for m in arrays}
            texts = {m.filename: archive.read(m).decode() for m in members if m.filename.endswith(".json")}
    except (OSError, NpzError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "write the graph again, or copy both of its files again"
        raise LlmcError(f"not weights that can be read: {reason}", at=str(path), hint=hint) from None
    return Stored(path, weights, texts)


def _stem(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _weight(archive: zipfile.ZipFile, member: zipfile.ZipInfo, whole: mmap.mmap, path: Path) -> Weight:
    array = _mapped(member, whole) if member.compress_type == zipfile.ZIP_STORED else None
    if array is None:
        data = archive.read(member)
        array = _array(io.BytesIO(data), data, 0, len(data))
    name, _, digest = _stem(member).rpartition(".")
    named = re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}", digest)
    weight = Weight(array, name if named or not digest else _stem(member))
    if not named:
        archive.read(member)  # nothing else tells damage: this compares with the archive's own checksum
    try:
        _ = weight.digest
    except LlmcError as error:
        raise LlmcError(error.problem, at=f"{path}, {_stem(member)}", hint=error.hint) from None
    return weight


def _mapped(member: zipfile.ZipInfo, whole: mmap.mmap) -> Array | None:
    """A view of the file; None where the array does not lie as NumPy wants it."""
    signature, name, extra = _LOCAL.unpack_from(whole, member.header_offset)
    start = member.header_offset + _LOCAL.size + name + extra
    if signature != b"PK\x03\x04" or start + member.file_size > len(whole):
        raise NpzError(f"{member.filename} does not lie in the file")
    head = io.BytesIO(whole[start : start + min(member.file_size, 1 << 16)])
    array = _array(head, whole, start, member.file_size)
    return array if array.flags.aligned else None


def _array(head: io.BytesIO, data: bytes | mmap.mmap, start: int, size: int) -> Array:
    shape, columns_first, dtype = array_header(head)
    if dtype.hasobject:
        raise NpzError("an array holds Python objects, which are not read")
    count, first = math.prod(shape), head.tell()
    if first + count * dtype.itemsize != size:
        raise NpzError(f"an array of shape {shape} in {size - first} bytes")
    if count == 0:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(data, dtype, count, start + first)
    return flat.reshape(shape[::-1]).T if columns_first else flat.reshape(shape)
