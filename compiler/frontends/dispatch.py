"""Which frontend reads a path: a model folder, an .onnx file, a .pt2 file or a graph's text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.axes import Asked
from llmc.compiler.frontends.graph_text import is_graph_text
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.regular_file import want_regular
from llmc.errors import LlmcError

SUFFIXES = (".onnx", ".pt2", ".gguf", ".txt")


def is_model_file(path: str | Path) -> bool:
    """Whether a path names a model file, by its ending; a graph's text may have any."""
    path = Path(path)
    return not path.is_dir() and (path.suffix.lower() in SUFFIXES or is_graph_text(path))


def weights_for(path: Path, task: str = "auto", ignore_unused: bool = False) -> dict[str, Any]:
    """digest -> Weight of a model, or of an .npz file, for a text that has no weights beside it.

    Of an .onnx file its initialisers as they are, too.

    Raises:
        LlmcError: as `load`.
    """
    from llmc.compiler.text import weights_of

    if path.suffix.lower() == ".npz":
        from llmc.compiler.weight_file import read_weights

        return {weight.digest: weight for weight in read_weights(path).weights.values()}
    found: dict[str, Any] = {}
    if path.suffix.lower() == ".onnx" and path.is_file():
        from llmc.compiler.frontends import onnx

        found |= onnx.weights(path)
    for graph in load(path, task=task, ignore_unused=ignore_unused).module.functions.values():
        found |= weights_of(graph)
    return found


def load(
    path: str | Path,
    task: str = "auto",
    *,
    ignore_unused: bool = False,
    base: str | Path | None = None,
    adapter: str | Path | None = None,
    dims: Mapping[str, Asked] | None = None,
    fixed: Mapping[str, float] | None = None,
    **bounds: Any,
) -> Imported:
    """Import a model of any kind.

    Args:
        path: a folder, an .onnx, .pt2 or .gguf file, or a graph's text.
        task: see the frontends' `load`.
        ignore_unused: leave out weights of a folder that the task has no use for.
        base: of a folder that is an adapter, its base model.
        adapter: merged into the model in the folder.
        dims: of an .onnx file, dynamic axes that always have one size, or the bounds of others.
        fixed: of an .onnx file, inputs that always have one value.
        bounds: `max_batch` and `max_seq`.

    Raises:
        LlmcError: the path is none of these, or its frontend refuses it.
    """
    path = Path(path)
    if path.is_file() and not is_model_file(path):
        raise LlmcError(
            f"{path.name} is no kind of model llmc reads",
            at=str(path),
            hint=f"give a Hugging Face folder, or a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}",
        )
    want_onnx(path, dims, fixed)
    if not is_model_file(path) or path.suffix.lower() == ".gguf":
        return _of_folder(path, base, adapter, task=task, ignore_unused=ignore_unused, **bounds)
    if base is not None or adapter is not None:
        raise LlmcError("--base and --adapter are for model folders", at=str(path))
    if not path.exists():
        raise LlmcError("no such model file", at=str(path), hint="is the path right?")
    want_regular(path)
    if path.suffix.lower() not in (".onnx", ".pt2"):
        from llmc.compiler.frontends import graph_text

        return graph_text.load(path, task=task, **bounds)
    if path.suffix.lower() == ".onnx":
        from llmc.compiler.frontends import onnx

        return onnx.load(path, task=task, dims=dims or {}, fixed=fixed or {}, **bounds)
    from llmc.compiler.frontends import pt2

    return pt2.load(path, task=task, **bounds)


def want_onnx(path: Path, dims: Mapping[str, Any] | None, fixed: Mapping[str, Any] | None) -> None:
    """What is said of axes and inputs by name is said of an ONNX file.

    Raises:
        LlmcError: it is another kind of model.
    """
    if (dims or fixed) and path.suffix.lower() != ".onnx":
        option = "--dim" if dims else "--fix"
        raise LlmcError(
            f"{option} is for ONNX files", at=str(path), hint="--max-batch and --max-seq bound other models"
        )


def _of_folder(path: Path, base: str | Path | None, adapter: str | Path | None, **options: Any) -> Imported:
    from llmc.compiler.frontends import hub, huggingface, overlay, plain_folder
    from llmc.compiler.frontends.uncollected import uncollected_if_small

    given = plain_folder.origin(path, base, adapter)
    with uncollected_if_small(given.path, given.base, given.adapter), plain_folder.plain(given) as plain:
        imported = huggingface.load(plain.path, **options)
        imported = replace(imported, name=path.stem if path.is_file() else hub.name_of(path))
        return replace(imported, tokenizer=overlay.lasting(imported.tokenizer, plain.path, path))
