"""The C interface of an artifact (llmc.h) as ctypes sees it."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError
from llmc.runtime.generation_structs import ChoiceOptions, GenerateOptions, GenerateReport, Token
from llmc.runtime.structs import (
    DTYPE_NAMES,
    ERROR_CPU,
    ERROR_DEVICE,
    ERROR_RANGE,
    EXPRESSION,
    MAX_DIMS,
    MAX_RANK,
    VERSION,
    BenchmarkOptions,
    DimInfo,
    Error,
    FunctionInfo,
    Info,
    Member,
    Memory,
    Options,
    Ratio,
    Report,
    RunOptions,
    SessionOptions,
    SessionReport,
    Shape,
    StateSpec,
    StepReport,
    Summary,
    Tensor,
    TensorSpec,
)

__all__ = [
    "DTYPE_NAMES",
    "ERROR_CPU",
    "ERROR_DEVICE",
    "ERROR_RANGE",
    "EXPRESSION",
    "MAX_DIMS",
    "MAX_RANK",
    "VERSION",
    "BenchmarkOptions",
    "DimInfo",
    "Error",
    "FunctionInfo",
    "Handle",
    "Info",
    "Library",
    "MachineError",
    "Member",
    "Memory",
    "Options",
    "Ratio",
    "Report",
    "RunOptions",
    "SessionHandle",
    "SessionOptions",
    "SessionReport",
    "Shape",
    "StateSpec",
    "StepReport",
    "Summary",
    "Tensor",
    "TensorSpec",
]

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llmc_open": (c_int, [c_char_p, POINTER(Options), POINTER(c_void_p), POINTER(Error)]),
    "llmc_close": (None, [c_void_p]),
    "llmc_threads_open": (c_int, [POINTER(Options), POINTER(c_void_p), POINTER(Error)]),
    "llmc_threads_close": (None, [c_void_p]),
    "llmc_describe": (POINTER(Info), [c_void_p]),
    "llmc_status_text": (c_char_p, [c_int]),
    "llmc_output_shapes": (c_int, [c_void_p, POINTER(Tensor), POINTER(Tensor), POINTER(Error)]),
    "llmc_run": (c_int, [c_void_p, POINTER(Tensor), POINTER(Tensor), POINTER(Error)]),
    "llmc_summarise": (c_int, [POINTER(c_double), c_int64, POINTER(Summary), POINTER(Error)]),
    "llmc_compare_samples": (
        c_int,
        [POINTER(c_double), POINTER(c_double), c_int64, POINTER(Ratio), POINTER(Error)],
    ),
    "llmc_benchmark": (
        c_int,
        [
            c_void_p,
            POINTER(c_int64),
            POINTER(BenchmarkOptions),
            POINTER(Report),
            POINTER(StepReport),
            POINTER(Error),
        ],
    ),
    "llmc_memory_needed": (c_int, [c_void_p, c_int, POINTER(c_int64), POINTER(Memory), POINTER(Error)]),
    "llmc_session_open": (c_int, [c_void_p, POINTER(SessionOptions), POINTER(c_void_p), POINTER(Error)]),
    "llmc_session_close": (None, [c_void_p]),
    "llmc_session_choose_adapter": (c_int, [c_void_p, c_char_p, POINTER(Error)]),
    "llmc_session_reset": (c_int, [c_void_p, POINTER(Error)]),
    "llmc_session_output_shapes": (
        c_int,
        [c_void_p, c_int, POINTER(Tensor), POINTER(Tensor), POINTER(Error)],
    ),
    "llmc_session_run": (
        c_int,
        [c_void_p, c_int, POINTER(Tensor), POINTER(Tensor), POINTER(RunOptions), POINTER(Error)],
    ),
    "llmc_sessions_run": (
        c_int,
        [
            POINTER(Member),
            c_int,
            c_int,
            POINTER(Tensor),
            POINTER(Tensor),
            POINTER(RunOptions),
            POINTER(Error),
        ],
    ),
    "llmc_session_cancel": (None, [c_void_p]),
    "llmc_session_resize": (c_int, [c_void_p, POINTER(c_int64), POINTER(Error)]),
    "llmc_session_info": (c_int, [c_void_p, POINTER(SessionReport), POINTER(Error)]),
    "llmc_session_rewind": (c_int, [c_void_p, c_int64, POINTER(Error)]),
    "llmc_session_fork": (c_int, [c_void_p, POINTER(SessionOptions), POINTER(c_void_p), POINTER(Error)]),
    "llmc_session_save": (c_int, [c_void_p, c_char_p, POINTER(Error)]),
    "llmc_session_load": (c_int, [c_void_p, c_char_p, POINTER(Error)]),
    "llmc_choose": (
        c_int,
        [
            POINTER(ChoiceOptions),
            POINTER(c_float),
            c_int64,
            POINTER(c_int64),
            c_int64,
            c_int64,
            POINTER(c_int64),
            POINTER(c_double),
            POINTER(Error),
        ],
    ),
    "llmc_generation_open": (
        c_int,
        [
            c_void_p,
            POINTER(GenerateOptions),
            POINTER(c_int64),
            c_int64,
            POINTER(c_void_p),
            POINTER(Error),
        ],
    ),
    "llmc_generation_next": (c_int, [c_void_p, POINTER(Token), POINTER(c_int), POINTER(Error)]),
    "llmc_generations_next": (
        c_int,
        [POINTER(c_void_p), c_int, POINTER(Token), POINTER(c_int), POINTER(Error)],
    ),
    "llmc_generation_report": (None, [c_void_p, POINTER(GenerateReport)]),
    "llmc_generation_close": (None, [c_void_p]),
    "llmc_get_api": (c_void_p, []),
    "llmc_compare": (
        c_int,
        [c_void_p, c_void_p, POINTER(c_int64)] * 2
        + [POINTER(BenchmarkOptions), POINTER(Summary), POINTER(Summary), POINTER(Ratio), POINTER(Error)],
    ),
}


_SEEN: dict[str, list[tuple[int, int]]] = {}  # path -> device and inode of each file that was loaded from it


def _spelling(path: Path) -> str:
    """`path` as written for this file alone: dlopen takes the same text for the library it has already.

    An artifact replaced by a new one keeps its path. Loaded files stay mapped, so no inode comes back.
    """
    info = path.stat()
    seen = _SEEN.setdefault(os.fspath(path), [])
    if (key := (info.st_dev, info.st_ino)) not in seen:
        seen.append(key)
    return f"{path.parent}{'/.' * seen.index(key)}/{path.name}"


def _checked_api(library: ctypes.CDLL, path: Path) -> int:
    """The address of its llmc_api; every version of llmc has the function, and a version where it begins.

    Raises:
        LlmcError: it is of another version, whose functions may have other arguments.
    """
    get_api = library.llmc_get_api
    get_api.restype, get_api.argtypes = c_void_p, []
    api: int = get_api()
    version = c_int.from_address(api).value
    if version != VERSION:
        raise LlmcError(
            f"the module speaks version {version} of llmc.h, this runtime version {VERSION}",
            at=str(path),
            hint="compile the model again, or install the llmc that compiled it",
        )
    return api


class MachineError(LlmcError):
    """The artifact is whole, but this machine cannot run it."""


class Library:
    """A loaded module.so. It stays loaded until the process ends, so no model can outlive its code."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(_spelling(path.resolve()))
            self.api = _checked_api(self._library, path)
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(self._library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise LlmcError(
                f"cannot load the module: {error}",
                at=str(path),
                hint="was it compiled for this system? `llmc inspect` shows the target",
            ) from None

    def __getattr__(self, name: str) -> Any:
        """The C function llmc_`name`."""
        return getattr(self._library, f"llmc_{name}")

    def check(self, status: int, error: Error, at: str) -> None:
        """Raise the C side's error, if there is one."""
        if status:
            message = error.message.decode(errors="replace") or self.status_text(status).decode()
            kind = MachineError if status in (ERROR_CPU, ERROR_DEVICE) else LlmcError
            raise kind(message, at=at, hint=error.hint.decode(errors="replace") or None)


class Handle:
    """An open llmc_model, closed when the last reference goes: a call in progress holds one.

    `keeps` lives at least as long: the threads that the model shares.
    """

    def __init__(self, library: Library, folder: Path, options: Options, keeps: object = None) -> None:
        self.pointer = c_void_p()
        self.keeps = keeps
        self.library = library
        self._close = library.close
        error = Error()
        status = library.open(os.fsencode(folder), byref(options), byref(self.pointer), byref(error))
        library.check(status, error, str(folder))
        self.info: Info = library.describe(self.pointer).contents

    def __del__(self) -> None:
        close, pointer = getattr(self, "_close", None), self.pointer
        self.pointer = c_void_p()  # in a cycle of garbage what is finalised later may still ask
        if close is not None and pointer:
            close(pointer)


class SessionHandle:
    """An open llmc_session, closed when the last reference goes; `model` and `keeps` live at least as long."""

    def __init__(
        self,
        model: Handle,
        options: SessionOptions,
        at: str,
        keeps: object = None,
        forked: SessionHandle | None = None,
    ) -> None:
        self.pointer = c_void_p()
        self.model, self.keeps, self.library = model, keeps, model.library
        self._close = model.library.session_close
        error, begin = Error(), self.library.session_open if forked is None else self.library.session_fork
        source = model.pointer if forked is None else forked.pointer
        self.library.check(begin(source, byref(options), byref(self.pointer), byref(error)), error, at)

    def __del__(self) -> None:
        close, pointer = getattr(self, "_close", None), self.pointer
        self.pointer = c_void_p()  # in a cycle of garbage what is finalised later may still ask
        if close is not None and pointer:
            close(pointer)
