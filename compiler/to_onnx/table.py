"""Which function writes which op: exporters register themselves when their file is imported."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from llmc.compiler.graph import Node
from llmc.compiler.registry import into

if TYPE_CHECKING:
    from llmc.compiler.to_onnx.emitter import Emitter

# The name of a value in the file, or a node that says the same in other ops; one for each result.
Written = str | Node
Exporter = Callable[["Emitter", Node], Written | Sequence[Written]]
_TABLE: dict[str, Exporter] = {}


def exports(*ops: str) -> Callable[[Exporter], Exporter]:
    """Register the decorated exporter for these ops of the IR."""
    return into(_TABLE, ops, "exporters for ")


def exporters() -> Mapping[str, Exporter]:
    """op -> exporter; a new file here is found by being here."""
    package = import_module("llmc.compiler.to_onnx")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return _TABLE
