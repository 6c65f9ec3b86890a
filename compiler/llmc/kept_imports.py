"""Imports that are kept: a folder that was imported once is not exported again for another `--quant` or target.

What is kept is the graph's text, what else the import found out, the warnings it gave, and those weights that are not
in the checkpoint; the others are read from there. A file is named by a digest of all that lies in the folder, of the
options, of llmc's sources and of the versions of what they import with, so nothing ever needs to be invalidated.
Folders that name what lies outside of them (adapters), models of images or sounds, whose processor is compared with
transformers' own, and all models while an extension is loaded are imported each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmc import compiler
from llmc.compiler import extensions
from llmc.compiler.frontends import dispatch, gguf_file, graph_text, hub, widened
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.stored_floats import StoredFloats
from llmc.compiler.graph import Weight
from llmc.compiler.graph_file import parsed
from llmc.compiler.module_text import text_of
from llmc.compiler.text import weights_of, written_out
from llmc.compiler.verify import verify_module
from llmc.compiler.weight_file import Stored, read_weights, write_weights
from llmc.compiler.whole_file import renamed
from llmc.errors import LlmcError, LlmcWarning
from llmc.targets.store import Store, folder, key

LIMIT = 1 << 30  # bytes of all that is kept
_LARGEST = LIMIT // 4  # of one import
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy", "sympy")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", gguf_file.SUFFIX)
_MOST = 1 << 28  # bytes of any other file
_OUTSIDE = ("adapter_config.json",)
_GRAPH, _KEPT = "graph.json", "kept.json"  # texts are read by this ending
_FOLDER = "\0folder\0"  # in warnings, which may be given of another copy of it


def load(model: str | Path, **options: Any) -> Imported:
    """As `dispatch.load`, which is called for what was not imported before.

    Raises:
        LlmcError: as `dispatch.load`.
    """
    file = _place(Path(model), options)
    if file is None:
        return dispatch.load(model, **options)
    found = _read(file, Path(model))
    if found is not None:
        return found
    imported, told = _told(lambda: dispatch.load(model, **options))
    if imported.processor is None and _place(Path(model), options) == file:  # nobody wrote there meanwhile
        with suppress(OSError):
            _write(file, Path(model), imported, told)
    return imported


def _told(make: Callable[[], Imported]) -> tuple[Imported, list[str]]:
    """What is made, and llmc's warnings on the way, which are given all the same."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LlmcWarning)
        made = make()
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return made, [str(warning.message) for warning in caught if issubclass(warning.category, LlmcWarning)]


# --- by what it is found


def _place(model: Path, options: Mapping[str, Any]) -> Path | None:
    """The file of an import; None for what is not kept."""
    kept = folder("imports")
    if kept is None or not {"base", "adapter", "dims", "fixed"}.isdisjoint(options):
        return None
    if not model.is_dir() and not _is_gguf(model):
        return None
    if extensions.described():  # which may import otherwise
        return None
    try:
        content = _digest(model)
    except OSError:
        return None
    if content is None:
        return None
    asked = json.dumps(dict(sorted(options.items())), default=str)
    return kept / f"{key(content, asked, sources(), *versions())}.npz"


def _is_gguf(model: Path) -> bool:
    return model.suffix.lower() == gguf_file.SUFFIX and model.is_file()


def _files(model: Path) -> list[Path]:
    """Those of a folder, or the file that a model is."""
    return [model] if model.is_file() else sorted(model.rglob("*"))


def _digest(model: Path) -> str | None:
    """Of the names and contents of all files of a folder; None if something there is neither file nor folder, or so
    large that an import refuses it: it is not read first."""
    made = hashlib.blake2b()
    for path in _files(model):
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file() or path.name in _OUTSIDE:
            return None
        if path.suffix not in _WEIGHTS and path.stat().st_size > _MOST:
            return None
        made.update(f"{path.relative_to(model)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            made.update(hashlib.file_digest(file, "blake2b").digest())
    return made.hexdigest()


def sources() -> str:
    """Of llmc's own code that imports, and of the interpreter."""
    made = hashlib.blake2b()
    for path in sorted(Path(compiler.__path__[0]).rglob("*.py")):
        made.update(path.read_bytes())
    return made.hexdigest()


def versions() -> Iterator[str]:
    """Of Python, and of what an import is made with."""
    yield platform.python_version()
    for name in _LIBRARIES:
        try:
            yield version(name)
        except PackageNotFoundError:
            yield ""


# --- the file


def _write(file: Path, model: Path, imported: Imported, told: list[str]) -> None:
    weights = _weights(imported)
    there = _in_checkpoint(model, weights)
    own = [weight for digest, weight in weights.items() if digest not in there]
    if sum(weight.array.nbytes for weight in own) > _LARGEST:
        return
    texts = {**graph_text.texts_of(imported), _GRAPH: text_of(imported.module)}
    kept = {
        "weights": there,
        "warnings": [line.replace(str(model), _FOLDER) for line in told],
        "tokenizer": _tokenizer_of(imported, model),
        "texts": _digest_of(texts),
    }
    texts[_KEPT] = json.dumps(kept)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with renamed(file) as archive:
        write_weights(archive, own, texts)
    Store(file.parent).trim(LIMIT)


def _digest_of(texts: Mapping[str, str]) -> str:
    """An archive has no checksum of the names in it: a text under another name would be missed by nobody."""
    return key(*(part for name in sorted(texts) if name != _KEPT for part in (name, texts[name])))


def _tokenizer_of(imported: Imported, model: Path) -> str:
    """The tokenizer's file, which messages name, as it is called in the folder."""
    file = imported.tokenizer.file if imported.tokenizer else model
    return str(file.relative_to(model)) if file.is_relative_to(model) else file.name


def _weights(imported: Imported) -> dict[str, Weight]:
    """digest -> Weight, of those that the text does not write out."""
    graphs = imported.module.functions.values()
    return {d: w for graph in graphs for d, w in weights_of(graph).items() if not written_out(w)}


def _in_checkpoint(model: Path, weights: Mapping[str, Weight]) -> dict[str, tuple[str, str, str]]:
    """digest -> (name, file, tensor) of weights whose values a checkpoint holds, widened to float32."""
    shapes = {weight.array.shape for weight in weights.values() if weight.array.dtype == "float32"}
    found: dict[str, tuple[str, str, str]] = {}
    for path in filter(_holds_floats, _files(model)):
        tensors = _opened(path)
        for name in (name for name, shape in tensors.shapes.items() if shape in shapes):
            digest = Weight(tensors.read(name)).digest
            if digest in weights:
                found.setdefault(digest, (weights[digest].name, str(path.relative_to(model)), name))
    return found


def _holds_floats(path: Path) -> bool:
    return path.suffix == ".safetensors" or _is_gguf(path)


def _opened(path: Path) -> StoredFloats | gguf_file.GgufFloats:
    return gguf_file.GgufFloats(path) if _is_gguf(path) else StoredFloats(path)


def _read(file: Path, model: Path) -> Imported | None:
    """What was kept; None if there is nothing, or nothing that can be read."""
    if not os.path.isfile(file):  # Path.is_file() raises where a folder may not be looked into
        return None
    try:
        stored = read_weights(file)
        kept = json.loads(stored.texts[_KEPT])
        imported = _imported(model, stored, kept)
        told = [LlmcWarning(line.replace(_FOLDER, str(model))) for line in kept["warnings"]]
    except (LlmcError, OSError, ValueError, KeyError, TypeError):
        with suppress(OSError):  # of another user, or on a disk that is read only
            file.unlink(missing_ok=True)  # damaged: made again
        return None
    with suppress(OSError):
        os.utime(file)
    for line in told:
        warnings.warn(line, stacklevel=4)
    return imported


def _imported(model: Path, stored: Stored, kept: Mapping[str, Any]) -> Imported:
    if _digest_of(stored.texts) != kept["texts"]:
        raise ValueError("other texts than were kept")
    known = {weight.digest: weight for weight in stored.weights.values()}
    names = sorted({within for _, within, _ in kept["weights"].values()})
    with widened.mapped([model / name for name in names]) as files:
        opened = {name: _opened(file) for name, file in zip(names, files, strict=True)}
        for digest, (name, within, tensor) in kept["weights"].items():
            known[digest] = Weight(opened[within].read(tensor), name, digest)
    module = parsed(stored.texts[_GRAPH], known)
    verify_module(module)
    beside = model / kept["tokenizer"]
    name = model.stem if _is_gguf(model) else hub.name_of(model)
    return replace(graph_text.of_module(module, stored.texts, model, beside), name=name)
