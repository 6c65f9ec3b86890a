"""llmc: optimise, quantise and compile fine-tuned models into small native artifacts.

`llmc.compile` needs the extra `compile`, `llmc.load` needs numpy only; each is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llmc.compiler.extensions import Extension
    from llmc.compiler.extensions import load as load_extension
    from llmc.compiler.frontends.packed import exportable
    from llmc.driver import compile, compile_graph, compile_module
    from llmc.errors import LlmcError
    from llmc.runtime import Model, Session, Threads, load

__all__ = [
    "Extension",
    "LlmcError",
    "Model",
    "Session",
    "Threads",
    "__version__",
    "compile",
    "compile_graph",
    "compile_module",
    "exportable",
    "load",
    "load_extension",
]

_HOME = {
    "LlmcError": "llmc.errors",
    "Model": "llmc.runtime",
    "Session": "llmc.runtime",
    "Threads": "llmc.runtime",
    "Extension": "llmc.compiler.extensions",
    "compile": "llmc.driver",
    "compile_graph": "llmc.driver",
    "compile_module": "llmc.driver",
    "exportable": "llmc.compiler.frontends.packed",
    "load": "llmc.runtime",
    "load_extension": "llmc.compiler.extensions",
}
_NAMES = {"load_extension": "load"}  # where the home has another name for it


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'llmc' has no attribute {name!r}")
    from importlib import import_module

    from llmc.errors import extras_named

    with extras_named():
        return getattr(import_module(_HOME[name]), _NAMES.get(name, name))


def __dir__() -> list[str]:
    return __all__
