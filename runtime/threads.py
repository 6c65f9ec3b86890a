"""Threads that several models work with."""

from __future__ import annotations

import os
from ctypes import byref, c_void_p
from threading import Lock
from typing import Any, NoReturn

from llmc.errors import LlmcError
from llmc.runtime import native

MOST = 1024


class Threads:
    """Threads to give to `load` for several models, so that they do not ask for more cores than there are.

    The models' runs take turns. The threads start with the first model and end after the last one and this object
    are gone. A model that is given these after `fork()` does not find them: make others there.
    """

    def __init__(self, number: int | None = None, *, pin: bool = False) -> None:
        """
        Args:
            number: that work on one run, the caller's included; None: one for each usable core.
            pin: bind each worker to a core of its own.

        Raises:
            LlmcError: the number is not within 1..1024.
        """
        self._options = native.Options(threads=count(number), pin=bool(pin))
        self._pointer, self._close, self._owner = c_void_p(), None, os.getpid()
        self._lock = Lock()

    def opened(self, library: native.Library) -> Any:
        """The llmc_threads, opened by the module of the first model.

        Raises:
            LlmcError: the system has no more threads, or this is another process than the first model's.
        """
        with self._lock:
            if not self._pointer:
                error = native.Error()
                status = library.threads_open(byref(self._options), byref(self._pointer), byref(error))
                library.check(status, error, "threads")
                self._close, self._owner = library.threads_close, os.getpid()
            if self._owner != os.getpid():
                raise LlmcError("the threads are of the parent process", hint="make others after fork()")
            return self._pointer

    def __reduce__(self) -> NoReturn:
        raise LlmcError(
            "threads cannot be pickled or copied", hint="make others: llmc.runtime.Threads(number)"
        )

    def __del__(self) -> None:
        close = getattr(self, "_close", None)
        if close is not None and self._owner == os.getpid():
            close(self._pointer)


def count(number: int | None) -> int:
    """`number` as llmc_options wants it.

    Raises:
        LlmcError: it is not within 1..1024.
    """
    if number is not None and (type(number) is not int or not 1 <= number <= MOST):
        raise LlmcError(f"threads is {number!r}, must be an int within 1..{MOST}, or None")
    return number or 0
