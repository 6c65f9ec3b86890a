"""Which frontend reads a path: a model folder, an .onnx file or a .pt2 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.regular_file import want_regular
from llmc.errors import LlmcError

SUFFIXES = (".onnx", ".pt2")


def is_model_file(path: str | Path) -> bool:
    """Whether a path names a model file, by its ending."""
    return Path(path).suffix.lower() in SUFFIXES and not Path(path).is_dir()


def load(path: str | Path, task: str = "auto", *, ignore_unused: bool = False, **bounds: Any) -> Imported:
    """Import a model of any kind.

    Args:
        path: a folder, an .onnx file or a .pt2 file.
        task: see the frontends' `load`.
        ignore_unused: leave out weights of a folder that the task has no use for.
        bounds: `max_batch` and `max_seq`.

    Raises:
        LlmcError: the path is none of these, or its frontend refuses it.
    """
    path = Path(path)
    if path.is_file() and not is_model_file(path):
        raise LlmcError(
            f"{path.name} is no kind of model llmc reads",
            at=str(path),
            hint=f"give a Hugging Face folder, or a file that ends in {' or '.join(SUFFIXES)}",
        )
    if not is_model_file(path):
        from llmc.compiler.frontends import huggingface

        return huggingface.load(path, task=task, ignore_unused=ignore_unused, **bounds)
    if not path.exists():
        raise LlmcError("no such model file", at=str(path), hint="is the path right?")
    want_regular(path)
    if path.suffix.lower() == ".onnx":
        from llmc.compiler.frontends import onnx

        return onnx.load(path, task=task, **bounds)
    from llmc.compiler.frontends import pt2

    return pt2.load(path, task=task, **bounds)
