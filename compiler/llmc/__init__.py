"""llmc: optimise, quantise and compile fine-tuned models into small native artifacts.

`llmc.compile` needs torch and TVM, `llmc.load` needs numpy only; each is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llmc.driver import compile, compile_module
    from llmc.errors import LlmcError
    from llmc.runtime import Model, Session, Threads, load

__all__ = ["LlmcError", "Model", "Session", "Threads", "__version__", "compile", "compile_module", "load"]

_HOME = {
    "LlmcError": "llmc.errors",
    "Model": "llmc.runtime",
    "Session": "llmc.runtime",
    "Threads": "llmc.runtime",
    "compile": "llmc.driver",
    "compile_module": "llmc.driver",
    "load": "llmc.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'llmc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
