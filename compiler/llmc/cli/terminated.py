"""SIGTERM and SIGHUP end a command as an interrupt does: what it has begun to write is removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """A signal asked the process to end; `number` is the signal's. No KeyboardInterrupt: click answers that itself."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once
    raise Terminated(number)


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` at such a signal, unless somebody else handles or ignores it."""
    here = threading.current_thread() is threading.main_thread()
    ours = [s for s in _SIGNALS if here and signal.getsignal(s) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
