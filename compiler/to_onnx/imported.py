"""A model, as imported or after passes -> an ONNX file, which says what it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from llmc.compiler.frontends.imported import Imported
from llmc.compiler.module import Module
from llmc.compiler.spec import near
from llmc.compiler.to_onnx.file import write
from llmc.errors import LlmcError


def write_imported(
    path: Path,
    imported: Imported,
    module: Module,
    pipeline: str = "",
    function: str | None = None,
    external: bool = False,
) -> None:
    """Write one function of a model.

    Args:
        module: what passes have made of the import.
        pipeline: these passes.
        function: which; may be left out where there is but one.
        external: put weights into a file beside though one file would hold them.

    Raises:
        LlmcError: there is no such function, it was not said which, or as `to_onnx.file.write`.
    """
    name = chosen(module, function)
    write(path, module.functions[name], _facts(imported, pipeline), external)


def chosen(module: Module, function: str | None) -> str:
    """The function that a file is to hold.

    Raises:
        LlmcError: there is none of that name, or there are several and none was named.
    """
    names = list(module.functions)
    if function is None and len(names) > 1:
        raise LlmcError(
            f"the model has {len(names)} functions, an ONNX file holds one",
            found=", ".join(names),
            hint=f"choose one: --function {names[0]}",
        )
    if function is not None and function not in names:
        raise LlmcError(f"the model has no function {function!r}", hint=near(function, names))
    return function or names[0]


def _facts(imported: Imported, pipeline: str) -> Mapping[str, str]:
    """What the model is and how it was made; an import takes the graph alone."""
    found = {
        "source": imported.name,
        "task": imported.task,
        "model_type": imported.model_type,
        "architecture": imported.architecture,
        "labels": json.dumps(list(imported.labels)) if imported.labels else "",
        "pipeline": pipeline,
    }
    return {f"llmc.{name}": text for name, text in found.items() if text}
