"""A call like the one before: where shapes are the same, what C is given is there already, but for addresses.

For a model of some microseconds the way to C and back is most of a call.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Set
from ctypes import addressof, byref, c_char
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from llmc.runtime import native
from llmc.runtime.arrays import Array, tensor_of
from llmc.runtime.signature import Function, TensorInfo

_Arrays = Mapping[str, tuple[TensorInfo, Any]]
_Tensor = tuple[str, Any, tuple[int, ...], native.Tensor]


_KEPT = 4  # as many threads may call at once


class Way(NamedTuple):
    """How C is called: its function, the arguments before the tensors, and where errors are said to be."""

    run: Any
    who: tuple[Any, ...]
    at: str


class ReadyCalls:
    """What is ready for the next call of a function without states."""

    def __init__(self, library: native.Library, way: Way) -> None:
        self.way, self._library = way, library
        self._ready: deque[_Ready] = deque(maxlen=_KEPT)

    def call(self, inputs: Mapping[str, Any]) -> dict[str, Array] | None:
        """The outputs, if a call with such inputs is ready.

        Raises:
            LlmcError: as of `Model.run`.
        """
        try:
            ready = self._ready.pop()  # nobody else has it meanwhile
        except IndexError:
            return None
        results = ready.call(inputs)
        if results is not None:
            self._ready.append(ready)
        return results

    def note(self, function: Function, inputs: Mapping[str, Any], outputs: Mapping[str, Array]) -> None:
        """Be ready for calls like this one, if it is plain: none of its arrays is empty, or was converted."""
        given = {name: (info, inputs.get(name)) for name, info in function.inputs.items()}
        dims = {str(d) for name, (info, _) in given.items() if name in inputs for d in info.shape}
        if not all(
            _is_plain(a) and a.dtype == info.numpy_dtype for n, (info, a) in given.items() if n in inputs
        ):
            return
        if not all(_follows(d, dims) for info in function.outputs.values() for d in info.shape):
            return
        if inputs and all(array.size for array in outputs.values()):
            taken = {name: (info, outputs[name]) for name, info in function.outputs.items()}
            self._ready.append(_Ready(self._library, self.way, given, taken))


class _Ready:
    """Calls with arrays of the same shapes. One thread at a time may use it."""

    def __init__(self, library: native.Library, way: Way, inputs: _Arrays, outputs: _Arrays) -> None:
        self._library, self._at, self._error = library, way.at, native.Error()
        self._given, self._inputs = _described(inputs)
        self._taken, self._outputs = _described(outputs)
        self._run, self._arguments = way.run, (*way.who, self._given, self._taken, byref(self._error))

    def call(self, inputs: Mapping[str, Any]) -> dict[str, Array] | None:
        """The outputs; None if the inputs are others, or there is no memory, which the usual way says better.

        Raises:
            LlmcError: as of `Model.run`.
        """
        if type(inputs) is not dict or len(inputs) != len(self._inputs):
            return None
        held = inputs.copy()  # another thread may put other arrays there while C reads these
        for name, dtype, shape, tensor in self._inputs:
            array = held.get(name)
            if not _is_plain(array) or array.dtype != dtype or array.shape != shape:
                return None
            tensor.data = _address(array)
        try:
            results = {name: np.empty(shape, dtype) for name, dtype, shape, _ in self._outputs}
        except MemoryError:
            return None
        for name, _, _, tensor in self._outputs:
            tensor.data = _address(results[name])
        if status := self._run(*self._arguments):
            self._library.check(status, self._error, self._at)
        return results


def _described(arrays: _Arrays) -> tuple[Any, list[_Tensor]]:
    """The tensors as C takes them, and what is said of each; one that is None is left out."""
    none = native.Tensor()
    tensors = (none if a is None else tensor_of(a, info.dtype) for info, a in arrays.values())
    made = (native.Tensor * (len(arrays) + 1))(*tensors)
    named = zip(arrays.items(), made, strict=False)
    return made, [(name, a.dtype, a.shape, tensor) for (name, (_, a)), tensor in named if a is not None]


def _follows(dim: int | str, dims: Set[str]) -> bool:
    """Whether a size, such as `2*seq + 1`, is the same wherever these are."""
    return isinstance(dim, int) or dim in dims or set(re.findall(r"[A-Za-z_]\w*", dim)) <= dims


def _is_plain(array: Any) -> TypeGuard[Array]:
    """Whether C can read it where it lies."""
    if type(array) is not np.ndarray or not array.size:
        return False
    return bool(array.flags.c_contiguous and array.flags.aligned)


def _address(array: Any) -> int:
    """`array.ctypes.data` makes an object for it, which costs more than all the rest."""
    return addressof(c_char.from_buffer(array)) if array.flags.writeable else int(array.ctypes.data)
