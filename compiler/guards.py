"""Functions of extensions, wrapped: what they raise names the extension and the place in its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np

from llmc.compiler.calls import Call
from llmc.compiler.dims import dim
from llmc.compiler.ops.faults import Fault, fault_place
from llmc.errors import LlmcError, in_a_line


def told(function: Callable[..., Any], what: str, origin: str) -> Callable[..., Any]:
    """`function`, whose faults name the extension."""

    @wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except Fault as error:
            problem = f"{origin}: {error.problem}"
            raise Fault(problem, at=error.at, found=error.found, hint=error.hint) from error.__cause__
        except LlmcError:
            raise
        except (Exception, SystemExit) as error:
            problem = f"{what} fails: {in_a_line(error)}"
            found = ", ".join(_shown(a) for a in arguments) or None
            raise Fault(f"{origin}: {problem}", at=fault_place(function, error), found=found) from error

    return run


def _shown(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)[:100]


def lowering(lower: Callable[..., Any], what: str, origin: str) -> Callable[..., Any]:
    """A lowering whose faults, and those of the code it writes, name the extension."""
    guarded = told(_sized(lower), what, origin)

    @wraps(lower)
    def run(node: Any, *arguments: Any) -> Any:
        call = guarded(node, *arguments)
        if call is None:
            return None  # it declines
        if not isinstance(call, Call):
            raise LlmcError(f"{origin}: {what} gives {call!r}, not a Call", at=fault_place(lower))
        emit = told(call.kernel.emit, what, origin)
        return replace(call, kernel=replace(call.kernel, emit=emit))

    return run


def _sized(lower: Callable[..., Any]) -> Callable[..., Any]:
    """`lower`, which fails itself where a call's sizes are none, not what counts with them later."""

    @wraps(lower)
    def run(*arguments: Any) -> Any:
        call = lower(*arguments)
        if isinstance(call, Call):
            for size in (call.items, call.cost, call.flops, call.bytes, *call.scalars):
                dim(size)
        return call

    return run


def reading(read: Callable[..., Any], what: str, origin: str) -> Callable[..., Any]:
    """A reader of stored weights whose faults, and those of the code it writes, name the extension."""
    guarded = told(read, what, origin)

    @wraps(read)
    def run(node: Any, *arguments: Any) -> Any:
        stored = guarded(node, *arguments)
        try:
            return replace(stored, decode=told(stored.decode, what, origin))
        except (AttributeError, TypeError):
            problem = f"{origin}: {what} gives {stored!r}, which says not how to decode"
            raise LlmcError(problem, at=fault_place(read)) from None

    return run
