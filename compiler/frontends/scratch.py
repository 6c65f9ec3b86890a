"""Folders for large temporary files: what a process leaves there that was killed, the next one removes.

A folder is its process' as long as a lock in it is held, and locks end with their process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "llmc-large-"
_LOCK, _NEW = "lock", "lock.new"


@contextmanager
def folder(within: Path) -> Iterator[Path]:
    """An empty folder in `within` for the time of the block, but for a lock.

    Raises:
        OSError: it cannot be made.
    """
    sweep(within)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=within) as place, _held(Path(place)):
        yield Path(place)


def sweep(within: Path) -> None:
    """Remove the folders of this user whose processes are gone."""
    for place in within.glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody else's, or removed by somebody else meanwhile
            _remove_if_left(place)


def _remove_if_left(place: Path) -> None:
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        return
    handle = os.open(place / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(handle)


@contextmanager
def _held(place: Path) -> Iterator[None]:
    """With the folder's lock; on disks that know no locks without one, and the folder is never swept."""
    handle = os.open(place / _NEW, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(place / _NEW, place / _LOCK)  # nobody sees a lock that is not held
        yield
    finally:
        os.close(handle)
