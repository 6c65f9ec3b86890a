"""Object code kept between compiles, by what it was made from.

A file is named by a digest of the kernel's TIR, the instruction set and the versions of what made it, so nothing
ever needs to be invalidated; it begins with the digest of its content, so a damaged one is made again. The least
recently used go when the folder outgrows its limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "LLMC_CACHE"  # a folder, or "off"
LIMIT = 256 << 20  # bytes
_DIGEST = 32


def home() -> Path | None:
    """The folder of all that llmc keeps: `$LLMC_CACHE`, else `llmc` in the user's cache folder; None if "off"."""
    named = os.environ.get(VARIABLE, "")
    if named:
        return None if named == "off" else Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    with contextlib.suppress(RuntimeError):  # no home folder
        return (Path(base) if base else Path.home() / ".cache") / "llmc"
    return None


def folder(name: str = "kernels") -> Path | None:
    """The folder of what is kept of one kind; None if nothing is kept."""
    place = home()
    return None if place is None else place / name


def key(*parts: str) -> str:
    """The name of what these texts determine."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; its folder is made. That it cannot be written is no error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)


@dataclass
class Store:
    """Content by key in a folder; without a folder it keeps nothing. A folder that cannot be used is no error.

    Args:
        place: the folder, made when first written to.
        found: how often `get` found what it was asked for.
    """

    place: Path | None
    found: int = 0

    def get(self, name: str) -> bytes | None:
        """What is kept under `name`, whole and undamaged."""
        if self.place is None:
            return None
        path = self.place / name
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return None
        self.found += 1
        return data[_DIGEST:]

    def put(self, name: str, content: bytes) -> None:
        """Keep `content`: written under another name first, so that nobody ever reads half of it."""
        if self.place is not None:
            write(self.place / name, hashlib.sha256(content).digest() + content)

    def made(self, name: str, make: Callable[[], bytes]) -> bytes:
        """What is kept under `name`, else what `make` returns, which is kept then."""
        content = self.get(name)
        if content is None:
            content = make()
            self.put(name, content)
        return content

    def trim(self, limit: int = LIMIT) -> None:
        """Remove the least recently used until `limit` bytes are left."""
        if self.place is None:
            return
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= limit:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size

    def _entries(self) -> Iterator[tuple[float, int, str]]:
        """Age, bytes and path of each file; another process may be removing them at the same time."""
        with contextlib.suppress(OSError), os.scandir(self.place) as files:
            for file in files:
                with contextlib.suppress(OSError):
                    found = file.stat()
                    yield found.st_mtime, found.st_size, file.path
