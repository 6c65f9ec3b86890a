"""Converters register themselves when their file is imported: a new file is found by its name, and listed nowhere."""

from __future__ import annotations

import pkgutil
from importlib import import_module


def load(prefix: str) -> None:
    """Import every file here whose name begins so, such as `aten_`."""
    package = import_module("llmc.compiler.frontends")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith(prefix):
            import_module(f"{package.__name__}.{module.name}")
