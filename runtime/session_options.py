"""How a session is opened: its options as C wants them, checked."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING

from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.threads import Threads, count

if TYPE_CHECKING:
    from llmc.runtime.model import Model


def opened(
    model: Model,
    threads: int | Threads | None,
    max_memory: int | None,
    pin: bool,
    forked: native.SessionHandle | None = None,
    adapter: str | None = None,
) -> native.SessionHandle:
    handle = model._open_handle() if forked is None else forked.model
    options = native.SessionOptions(
        max_memory=memory_bound(max_memory), pin=bool(pin), adapter=adapter_bytes(adapter)
    )
    shared = threads if isinstance(threads, Threads) else None
    if shared is not None:
        options.shared = shared.opened(handle.library)
    else:
        options.threads = count(None if isinstance(threads, Threads) else threads)
    return native.SessionHandle(handle, options, str(model.path), shared, forked)


def adapter_bytes(name: str | None) -> bytes | None:
    """The name of an adapter as C wants it.

    Raises:
        LlmcError: it is no name.
    """
    if name is not None and (not isinstance(name, str) or not name or "\0" in name):
        raise LlmcError(f"adapter is {name!r:.60}, must be a name or None")
    return None if name is None else name.encode(errors="replace")


def timeout_of(seconds: float | None) -> float:
    """`timeout` as C wants it.

    Raises:
        LlmcError: it is no number of seconds.
    """
    if seconds is None:
        return 0.0
    if isinstance(seconds, bool) or not (isinstance(seconds, Real) and seconds > 0):
        raise LlmcError(f"timeout is {seconds!r}, must be seconds above 0, or None")
    return float(seconds)


def check_fits(name: str, size: int, bounds: tuple[int, int]) -> None:
    """Raise where C, which knows the bounds too, could not even be asked.

    Raises:
        LlmcError: the size is no int64.
    """
    if size >= 2**63:
        raise LlmcError(f"{name} is {size}, must be within {bounds[0]}..{bounds[1]}")


def memory_bound(number: int | None) -> int:
    """`max_memory` as C wants it.

    Raises:
        LlmcError: it is no number of bytes.
    """
    if number is not None and (type(number) is not int or not 1 <= number < 2**63):
        raise LlmcError(f"max_memory is {number!r}, must be a number of bytes, or None")
    return number or 0
