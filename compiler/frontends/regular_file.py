"""Whether what a model's folder holds are files: a pipe never ends, and a device may be read for ever."""

from __future__ import annotations

import stat
from pathlib import Path

from llmc.errors import LlmcError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def want_regular(file: Path, most: int | None = None) -> None:
    """Refuse to open what is not a file, or one of more than `most` bytes. One that is missing is not refused here."""
    try:
        found = file.stat()
    except OSError:
        return
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise LlmcError(f"{file.name} is not a file", at=str(file), found=kind)
    if most is not None and found.st_size > most:
        raise LlmcError(
            f"{file.name} is too large",
            at=str(file),
            found=f"{found.st_size:,} bytes, more than the {most:,} that such a file may have",
        )


def want_all_regular(folder: Path) -> None:
    """Refuse a folder that holds anything but files and folders: libraries open more of it than llmc does."""
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            want_regular(entry)
