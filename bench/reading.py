"""How fast this machine reads memory, by the loop of reading.c, as one more racer."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
from models import cache_folder
from peaks import HERE, build

from llmc.errors import LlmcError

BYTES = 1 << 30  # read in a turn: more than caches hold


class Memory:
    """BYTES of memory, read by as many threads as race."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.library: Any = build(HERE / "reading.c", cache_folder() / "peers")
        self.data = np.frombuffer(mmap.mmap(-1, BYTES), np.uint8)  # begins at a page
        self.data[:] = 1  # real pages

    def seconds(self, clock: Callable[[], float]) -> float:
        """Seconds of a clock in which every byte is read once."""
        at, bytes_ = ctypes.c_void_p(self.data.ctypes.data), ctypes.c_long(BYTES)
        begun = clock()
        if self.library.read_all(at, bytes_, ctypes.c_int(self.threads)):
            raise LlmcError("cannot start a thread", at="the loop that reads memory")
        return clock() - begun
