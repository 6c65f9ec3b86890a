"""The C interface of an artifact (llmc.h) as ctypes sees it."""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char,
    c_char_p,
    c_double,
    c_int,
    c_int64,
    c_ubyte,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError

VERSION = 3
MAX_RANK = 8
MAX_DIMS = 16
EXPRESSION = -(2**63)  # a size in TensorSpec.dims that the program computes
DTYPE_NAMES = ("?", "f32", "f16", "bf16", "i8", "u8", "i32", "i64", "bool")


class Error(Structure):
    """llmc_error"""

    _fields_ = (("status", c_int), ("message", c_char * 512), ("hint", c_char * 256))


class Options(Structure):
    """llmc_options"""

    _fields_ = (
        ("threads", c_int),
        ("pin", c_int),
        ("spin_us", c_int),
        ("check_weights", c_int),
        ("variant", c_char_p),
        ("shared", c_void_p),
        ("max_memory", c_uint64),
    )


class DimInfo(Structure):
    """llmc_dim_info"""

    _fields_ = (("name", c_char_p), ("low", c_int64), ("high", c_int64))


class TensorSpec(Structure):
    """llmc_tensor_spec"""

    _fields_ = (
        ("name", c_char_p),
        ("dtype", c_int),
        ("rank", c_int),
        ("dims", c_int64 * MAX_RANK),
        ("dims_text", c_char_p * MAX_RANK),
        ("has_default", c_int),
        ("default_value", c_double),
        ("has_range", c_int),
        ("low", c_int64),
        ("high", c_int64),
    )


class StateSpec(Structure):
    """llmc_state_spec"""

    _fields_ = (
        ("name", c_char_p),
        ("dtype", c_int),
        ("rank", c_int),
        ("dims", c_int64 * MAX_RANK),
        ("dims_text", c_char_p * MAX_RANK),
        ("grows", c_int),
    )


class FunctionInfo(Structure):
    """llmc_function_info"""

    _fields_ = (
        ("name", c_char_p),
        ("n_inputs", c_int),
        ("n_outputs", c_int),
        ("n_steps", c_int),
        ("inputs", POINTER(TensorSpec)),
        ("outputs", POINTER(TensorSpec)),
        ("dims_used", POINTER(c_ubyte)),
        ("state_use", POINTER(c_ubyte)),
    )


class Info(Structure):
    """llmc_info"""

    _fields_ = (
        ("name", c_char_p),
        ("build_id", c_char_p),
        ("variant", c_char_p),
        ("threads", c_int),
        ("n_dims", c_int),
        ("n_inputs", c_int),
        ("n_outputs", c_int),
        ("n_steps", c_int),
        ("dims", POINTER(DimInfo)),
        ("inputs", POINTER(TensorSpec)),
        ("outputs", POINTER(TensorSpec)),
        ("load_seconds", c_double),
        ("weights_bytes", c_uint64),
        ("n_functions", c_int),
        ("n_states", c_int),
        ("functions", POINTER(FunctionInfo)),
        ("states", POINTER(StateSpec)),
    )


Shape = c_int64 * MAX_RANK


class Tensor(Structure):
    """llmc_tensor"""

    _fields_ = (("data", c_void_p), ("dtype", c_int), ("rank", c_int), ("shape", Shape))


class SessionOptions(Structure):
    """llmc_session_options"""

    _fields_ = (
        ("threads", c_int),
        ("pin", c_int),
        ("spin_us", c_int),
        ("shared", c_void_p),
        ("max_memory", c_uint64),
    )


class RunOptions(Structure):
    """llmc_run_options"""

    _fields_ = (("timeout", c_double), ("discard", c_int))


class SessionReport(Structure):
    """llmc_session_report"""

    _fields_ = (
        ("threads", c_int),
        ("sizes", c_int64 * MAX_DIMS),
        ("arena_bytes", c_uint64),
        ("state_bytes", c_uint64),
    )


class Memory(Structure):
    """llmc_memory"""

    _fields_ = (("weights", c_uint64), ("arena", c_uint64), ("states", c_uint64))


class Summary(Structure):
    """llmc_summary; seconds"""

    _fields_ = (
        ("n", c_int64),
        ("mean", c_double),
        ("mean_low", c_double),
        ("mean_high", c_double),
        ("p50", c_double),
        ("p90", c_double),
        ("p95", c_double),
        ("p99", c_double),
        ("min", c_double),
        ("max", c_double),
    )


class Ratio(Structure):
    """llmc_ratio"""

    _fields_ = (("n", c_int64), ("ratio", c_double), ("low", c_double), ("high", c_double))


class BenchmarkOptions(Structure):
    """llmc_benchmark_options"""

    _fields_ = (
        ("seconds", c_double),
        ("max_runs", c_int64),
        ("warmup", c_int64),
        ("seed", c_uint64),
        ("shortest", c_int64),
        ("function", c_int),
    )


class StepReport(Structure):
    """llmc_step_report"""

    _fields_ = (
        ("kernel", c_char_p),
        ("source", c_char_p),
        ("seconds", c_double),
        ("flops", c_double),
        ("bytes", c_double),
    )


class Report(Structure):
    """llmc_benchmark_report"""

    _fields_ = (
        ("sizes", c_int64 * MAX_DIMS),
        ("warmup_runs", c_int64),
        ("latency", Summary),
        ("runs_per_second", c_double),
        ("load_seconds", c_double),
        ("peak_memory_bytes", c_uint64),
        ("flops", c_double),
        ("bytes", c_double),
        ("peak_flops_per_second", c_double),
        ("peak_bytes_per_second", c_double),
    )


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
    "llmc_session_reset": (c_int, [c_void_p, POINTER(Error)]),
    "llmc_session_output_shapes": (
        c_int,
        [c_void_p, c_int, POINTER(Tensor), POINTER(Tensor), POINTER(Error)],
    ),
    "llmc_session_run": (
        c_int,
        [c_void_p, c_int, POINTER(Tensor), POINTER(Tensor), POINTER(RunOptions), POINTER(Error)],
    ),
    "llmc_session_cancel": (None, [c_void_p]),
    "llmc_session_resize": (c_int, [c_void_p, POINTER(c_int64), POINTER(Error)]),
    "llmc_session_info": (c_int, [c_void_p, POINTER(SessionReport), POINTER(Error)]),
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
            raise LlmcError(message, at=at, hint=error.hint.decode(errors="replace") or None)


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
        close = getattr(self, "_close", None)
        if close is not None and self.pointer:
            close(self.pointer)


class SessionHandle:
    """An open llmc_session, closed when the last reference goes; `model` and `keeps` live at least as long."""

    def __init__(self, model: Handle, options: SessionOptions, at: str, keeps: object = None) -> None:
        self.pointer = c_void_p()
        self.model, self.keeps, self.library = model, keeps, model.library
        self._close = model.library.session_close
        error = Error()
        status = self.library.session_open(model.pointer, byref(options), byref(self.pointer), byref(error))
        self.library.check(status, error, at)

    def __del__(self) -> None:
        close = getattr(self, "_close", None)
        if close is not None and self.pointer:
            close(self.pointer)
