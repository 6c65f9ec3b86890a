"""Arrays in and out: what a caller gives becomes a dense array of the right dtype."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.signature import TensorInfo

Array = np.ndarray[Any, np.dtype[Any]]
_CODES = {name: code for code, name in enumerate(native.DTYPE_NAMES)}


def input_array(name: str, info: TensorInfo, value: Any) -> Array:
    """`value` as a C-contiguous array of the input's dtype: the same memory if it is one already.

    Takes NumPy arrays, anything with `__dlpack__` on the CPU, numbers, and lists of ints or bools. Integers
    are widened (i32 to i64, bool to any), floats too (f16 to f32); nothing is narrowed.

    Raises:
        LlmcError: the value is no array, on another device, or of a dtype that would lose something.
    """
    array = value if isinstance(value, np.ndarray) else _foreign_array(name, info, value)
    wanted = info.numpy_dtype
    if array.dtype != wanted and not _widens(array.dtype, wanted, info.dtype):
        bits = " (the bits of bf16)" if info.dtype == "bf16" else ""
        raise LlmcError(
            f"input {name} is {array.dtype}, must be {wanted}{bits}",
            hint=f"convert it: np.asarray({name}, np.{wanted}), or .to(torch.{wanted}) for a torch tensor",
        )
    return np.require(array, wanted, ["C", "A"])


def output_array(name: str, shape: tuple[int, ...], info: TensorInfo, given: Array | None) -> Array:
    """Memory for an output: the caller's if given, else new.

    Raises:
        LlmcError: the caller's array cannot hold the output as it is.
    """
    if given is None:
        return np.empty(shape, info.numpy_dtype)
    if not isinstance(given, np.ndarray):
        raise LlmcError(f"out[{name!r}] is {type(given).__name__}, must be a NumPy array")
    if given.dtype != info.numpy_dtype or given.shape != shape:
        raise LlmcError(
            f"out[{name!r}] is {given.dtype}{list(given.shape)}, must be {info.numpy_dtype}{list(shape)}",
            hint=f"np.empty({shape}, np.{info.numpy_dtype})",
        )
    if not (given.flags.c_contiguous and given.flags.aligned and given.flags.writeable):
        raise LlmcError(f"out[{name!r}] must be writeable, aligned and C-contiguous")
    return given


def tensor_of(array: Array, dtype: str) -> native.Tensor:
    """The llmc_tensor of an array, which must outlive it."""
    shape = native.Shape(*array.shape[: native.MAX_RANK])
    return native.Tensor(array.ctypes.data, _CODES[dtype], array.ndim, shape)


def check_names(kind: str, given: Iterable[str], known: Mapping[str, Any]) -> None:
    """Raise if a name is not one of `known`.

    Raises:
        LlmcError: with the nearest known name as a hint.
    """
    for name in given:
        if not isinstance(name, str) or name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise LlmcError(
                f"the model has no {kind} {name!r}", hint=f"{guess}it has {', '.join(known) or 'none'}"
            )


def _foreign_array(name: str, info: TensorInfo, value: Any) -> Array:
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(name, value)
    if value is None:
        raise LlmcError(f"input {name} is None", hint="leave it out, or give an array")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise LlmcError(
            f"input {name} is no array: {error}", hint="pad lists to equal length; move tensors to the CPU"
        ) from None
    if array.dtype.kind == "f" and info.dtype != "f64" and not hasattr(value, "__array__"):
        raise LlmcError(
            f"input {name} is a list or number of Python floats, which have 64 bits",
            hint=f"say what is wanted: np.asarray({name}, np.{info.numpy_dtype})",
        )
    return array


def _from_dlpack(name: str, value: Any) -> Array:
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise LlmcError(
            f"input {name} cannot be read: {first}", hint="for a torch tensor: .detach().cpu()"
        ) from None


def _widens(have: np.dtype[Any], want: np.dtype[Any], dtype: str) -> bool:
    """Whether every value of `have` is one of `want`, within integers or within floats."""
    if dtype == "bf16":
        return False
    kinds = {"f": "f", "i": "biu", "u": "bu", "b": "b"}[want.kind]
    return have.kind in kinds and np.can_cast(have, want, "safe")
