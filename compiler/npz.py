"""Read an .npz file row by row, in the memory of one row."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, Any]


_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    SyntaxError,  # of a header, which is Python's syntax
    tokenize.TokenError,
)


class NpzError(ValueError):
    """The file is not an .npz file, or is damaged."""


class Rows:
    """An array of which one row after the other is read: index i of axis 0, with that axis kept.

    Args:
        file: a .npy file at its beginning.

    Raises:
        NpzError: it is none, or holds Python objects.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        with as_npz_errors():
            self.shape, columns_first, self.dtype = array_header(file)
        if self.dtype.hasobject:
            raise NpzError("an array holds Python objects, which are not read")
        # Columns first, no row lies in one piece.
        self._whole = self._read(self.shape[::-1]).T if columns_first and len(self.shape) > 1 else None
        self._next = 0

    @property
    def count(self) -> int:
        """Rows; none if the array is a scalar."""
        return int(self.shape[0]) if self.shape else 0

    def take(self) -> Array:
        """The next row, `[1, ...]`."""
        self._next += 1
        if self._whole is not None:
            return self._whole[self._next - 1 : self._next]
        return self._read((1, *self.shape[1:]))

    def _read(self, shape: tuple[int, ...]) -> Array:
        size = math.prod(shape) * self.dtype.itemsize
        with as_npz_errors():
            data = self._file.read(size)
        if len(data) != size:
            raise NpzError("an array ends early")
        return np.frombuffer(data, self.dtype).reshape(shape)


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype of a .npy file, which is left at its data."""
    version = np.lib.format.read_magic(file)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if version[0] not in read:
        raise NpzError(f"the array's format has version {version[0]}")
    shape, columns_first, dtype = read[version[0]](file)
    return shape, columns_first, dtype


@contextmanager
def open_npz(path: Path) -> Iterator[dict[str, Rows]]:
    """The arrays of the file by name.

    Raises:
        NpzError: it is no .npz file.
        OSError: it cannot be read.
    """
    with as_npz_errors():
        archive = zipfile.ZipFile(path)
    with archive, ExitStack() as opened:
        with as_npz_errors():
            files = {name: opened.enter_context(archive.open(name)) for name in archive.namelist()}
        yield {name.removesuffix(".npy"): Rows(file) for name, file in files.items()}


@contextmanager
def as_npz_errors() -> Iterator[None]:
    """zipfile, zlib and NumPy each have errors of their own."""
    try:
        yield
    except _ERRORS as error:
        raise NpzError(str(error)) from None
