"""TVM's TIR by its name, imported when a kernel is first written.

Choosing kernels for a graph writes none, and importing TVM takes as long as importing torch: `llmc check` does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Later:
    """A module that is imported when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self._name), name)
        setattr(self, name, value)  # found without this function from now on
        return value


tirx: Any = _Later("tvm.tirx")
ir: Any = _Later("tvm.ir")
