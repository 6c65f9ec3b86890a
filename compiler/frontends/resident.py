"""Files that are mapped into memory, of which few pages stay there: the others are read again when they are wanted.

The system would take such pages back itself, when it has no more memory. Where a process may have only so much of it,
as in a container, or where others want it, that is late. Linux only (madvise(2), MADV_PAGEOUT); elsewhere nothing is
done. What was written to a mapped page is never lost by it.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST = 640 << 20  # bytes of files in memory from which on pages leave it, libraries' own with them
_STATUS, _MAPS = Path("/proc/self/statm"), Path("/proc/self/maps")
_PAGEOUT = 21
_TICK = 0.05  # seconds
_LOOK = 40  # ticks after which somebody asks whether the files are still mapped


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Within, and after it while files of `folder` are mapped, at most about `MOST` of mapped files is in memory."""
    over = threading.Event()
    if _STATUS.exists():
        place = str(folder.resolve())
        threading.Thread(target=_watch, args=(place, over), name=f"resident {place}", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def trim() -> None:
    """Memory that was freed goes back to the system: glibc keeps what lies below any piece that is still in use."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(ctypes.c_size_t(0))


def _watch(folder: str, over: threading.Event) -> None:
    madvise = ctypes.CDLL(None).madvise
    tick = 0
    while True:
        tick += 1
        if _resident() > MOST:
            for begin, end in _spans(folder):
                madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _PAGEOUT)
        if over.is_set() and tick % _LOOK == 0 and not _spans(folder):
            return
        time.sleep(_TICK)


def _resident() -> int:
    """Bytes of files that are in this process' memory."""
    return int(_STATUS.read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")


def _spans(folder: str) -> list[tuple[int, int]]:
    """Where files of the folder are mapped, those that are deleted too."""
    lines = _MAPS.read_text(errors="replace").splitlines()
    found = [line.partition(" ")[0].split("-") for line in lines if f" {folder}{os.sep}" in line]
    return [(int(begin, 16), int(end, 16)) for begin, end in found]
