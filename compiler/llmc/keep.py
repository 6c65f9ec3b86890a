"""What `llmc compile --keep` leaves to read: the graphs, as text and as ONNX, and the generated code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from llmc.compiler.frontends import graph_text
from llmc.compiler.frontends.imported import Imported
from llmc.errors import LlmcError
from llmc.optimise import Optimised


def keep(
    folder: Path,
    imported: Imported,
    optimised: Optimised,
    sources: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """Write them into `folder`.

    Args:
        sources: file -> generated code.
        say: is told of a function that cannot be written as ONNX.

    Raises:
        LlmcError: files cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        graph_text.write(folder / "imported.txt", imported)
        graph_text.write(folder / "optimised.txt", imported, optimised.module)
        for name, text in sources.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise LlmcError(f"cannot keep files: {error.strerror or error}", at=str(folder)) from None
    _keep_onnx(folder, imported, optimised, say)


def _keep_onnx(folder: Path, imported: Imported, optimised: Optimised, say: Callable[[str], None]) -> None:
    """An ONNX file of each function; of none that has an op without a form in ONNX."""
    from llmc.compiler.to_onnx.imported import write_imported

    module = optimised.module
    for name in module.functions:
        file = folder / ("optimised.onnx" if len(module.functions) == 1 else f"optimised.{name}.onnx")
        try:
            write_imported(file, imported, module, optimised.pipeline, name)
        except LlmcError as error:
            say(f"compile: no {file.name}: {error.problem}")
