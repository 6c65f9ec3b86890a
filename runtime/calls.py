"""One call of a function: arrays to the C interface and back, for models and sessions alike."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import byref
from typing import Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.arrays import Array, check_names, input_array, output_array, tensor_of
from llmc.runtime.signature import Function


class Caller:
    """Calls one function of an open model or session: `who` is how C names it, its pointer and perhaps a number."""

    def __init__(self, library: native.Library, shapes: Any, run: Any, who: tuple[Any, ...], at: str) -> None:
        self.library, self.shapes, self.run, self.who, self.at = library, shapes, run, who, at

    def __call__(
        self,
        function: Function,
        inputs: Mapping[str, Any],
        out: Mapping[str, Array] | None,
        options: tuple[Any, ...] = (),
    ) -> dict[str, Array]:
        """Run once; see `Model.run`. `options` go to C after the tensors."""
        out = out or {}
        check_names("input", inputs, function.inputs)
        check_names("output", out, function.outputs)
        arrays = {n: input_array(n, function.inputs[n], v) for n, v in inputs.items()}
        given = (native.Tensor * (len(function.inputs) + 1))()
        for i, (name, info) in enumerate(function.inputs.items()):
            if name in arrays:
                given[i] = tensor_of(arrays[name], info.dtype)
        results = self._outputs(function, given, out)
        _check_apart(arrays, out)
        taken = (native.Tensor * (len(results) + 1))()
        for i, (name, info) in enumerate(function.outputs.items()):
            taken[i] = tensor_of(results[name], info.dtype)
        error = native.Error()
        status = self.run(*self.who, given, taken, *options, byref(error))
        self.library.check(status, error, self.at)
        return results

    def _outputs(self, function: Function, given: Any, out: Mapping[str, Array]) -> dict[str, Array]:
        tensors, error = (native.Tensor * (len(function.outputs) + 1))(), native.Error()
        self.library.check(self.shapes(*self.who, given, tensors, byref(error)), error, self.at)
        results = {}
        for tensor, (name, info) in zip(tensors, function.outputs.items(), strict=False):
            try:
                results[name] = output_array(name, tuple(tensor.shape[: tensor.rank]), info, out.get(name))
            except MemoryError:
                raise LlmcError(f"no memory for output {name}", hint="use a smaller batch") from None
        return results


def _check_apart(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """An output that overlaps an input or another output would be read after it is written."""
    arrays = [(f"input {n}", a) for n, a in inputs.items()] + [(f"out[{n!r}]", a) for n, a in outputs.items()]
    for i in range(len(inputs), len(arrays)):
        name, array = arrays[i]
        for other, earlier in arrays[:i]:
            if np.may_share_memory(earlier, array):
                raise LlmcError(f"{name} overlaps {other}", hint="give it memory of its own")
