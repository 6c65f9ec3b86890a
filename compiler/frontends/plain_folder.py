"""A model as users have it -> the plain folder of transformers that the importer reads.

Adapters are merged into their base. What has to be changed is written into a folder for the time of the import
(`overlay`); a folder that is plain already is read where it lies.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmc.compiler.frontends import adapters, checkpoints, gguf_file, merging, overlay, resident, widened
from llmc.compiler.frontends.adapters import Adapter
from llmc.compiler.frontends.folder import Summary, inspect
from llmc.compiler.frontends.hub import download_hint, snapshot
from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.quiet import quiet
from llmc.compiler.frontends.regular_file import want_all_regular
from llmc.compiler.frontends.sentence import transformer_folder
from llmc.errors import LlmcError, LlmcWarning

_LARGE = 1 << 28  # bytes of weights, of which it is worth a look how many are in memory


@dataclass(frozen=True)
class Origin:
    """What a user names as a model.

    Args:
        path: a folder.
        base: the base model, where `path` is an adapter.
        adapter: the adapter to merge, where `path` is its base.
    """

    path: Path
    base: Path | None = None
    adapter: Path | None = None


def origin(path: str | Path, base: str | Path | None = None, adapter: str | Path | None = None) -> Origin:
    """An `Origin` of paths as users give them."""
    return Origin(
        Path(path), None if base is None else Path(base), None if adapter is None else Path(adapter)
    )


@dataclass(frozen=True)
class Plain:
    """A folder to import, and the parts that it was made of, if it was made."""

    path: Path
    parts: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def plain(given: Origin, weights: bool = True, speaks: bool = True) -> Iterator[Plain]:
    """The folder to import.

    Args:
        weights: False: only to look at, so weights of the base stand for merged ones.
        speaks: False: of the base of an adapter that has a tokenizer of its own.

    Raises:
        LlmcError: a part is missing, damaged, or does not fit the others.
    """
    _want_folders(given)
    pair = _pair(given)
    if pair is None:
        with _whole(snapshot(given.path), weights, speaks) as found:
            yield found
        return
    with overlay.temporary(given.path) as folder:
        adapter = adapters.read(pair[1])
        _merge(pair[0], adapter, folder, weights, speaks)
        yield Plain(folder, {"base": str(pair[0]), "adapter": f"{adapter.path} ({adapter.kind})"})


@contextmanager
def _whole(path: Path, weights: bool, speaks: bool) -> Iterator[Plain]:
    """A model without an adapter."""
    if file := gguf_file.find(path):
        with overlay.temporary(path, widened.place()) as folder, resident.watched(folder.parent):
            with quiet():
                kinds = gguf_file.write(file, folder, beside=path != file)
            _say(f"{file}: weights in {kinds} become f32 numbers; llmc's own quantisation is --quant")
            yield Plain(folder, {"gguf": f"{file} ({kinds})"})
        return
    root = transformer_folder(path)
    found = _changes(root, speaks) if weights and (root / "config.json").is_file() else None
    if not found:
        with _mapped(path, root) if weights else nullcontext(path) as folder:
            yield Plain(folder)
        return
    _tell(path, found)
    with overlay.temporary(path) as folder:
        checkpoints.write(root, _made(folder / root.relative_to(path)), found)
        overlay.link(path, folder)
        yield Plain(folder, {"checkpoint": str(path)})


def _changes(root: Path, speaks: bool) -> checkpoints.Changes:
    with quiet():
        return checkpoints.changes(root, speaks)


@contextmanager
def _mapped(path: Path, root: Path) -> Iterator[Path]:
    """The folder, or one with large weights in float32, which are mapped and need little memory."""
    files = checkpoints.files(root)
    if not widened.wants(files):
        large = sum(file.stat().st_size for file in files if file.is_file()) >= _LARGE
        with resident.watched(root) if large else nullcontext():
            yield path
        return
    with overlay.temporary(path, widened.place()) as folder, resident.watched(folder.parent):
        _widen(root, _made(folder / root.relative_to(path)))
        overlay.link(path, folder)  # what else there is, as the weights of a Dense behind it
        yield folder


def _widen(root: Path, folder: Path) -> None:
    for file in checkpoints.files(root):
        try:
            widened.write(file, folder / file.name)
        except OSError as error:
            raise LlmcError(
                f"cannot write the weights as float32: {error.strerror}",
                at=str(folder),
                hint="TMPDIR names another folder for temporary files",
            ) from None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tell(path: Path, found: checkpoints.Changes) -> None:
    """What is taken otherwise than it is written."""
    told = {
        found.prefix: f"names of weights are read without {found.prefix!r}",
        found.nested: f"the weights are read from {found.nested!r} in the checkpoint",
        found.architecture: f"config.json names no architectures; the weights are those of {found.architecture}",
        found.file: f"the weights are read from {found.file}",
    }
    for line in (line for key, line in told.items() if key):
        _say(f"{path}: {line}")


def _say(line: str) -> None:
    warnings.warn(LlmcWarning(line), stacklevel=2)


def look(given: Origin) -> tuple[Summary, Mapping[str, str]]:
    """What the folder holds, and the parts that it is made of; nothing is merged.

    Raises:
        LlmcError: as `plain`, or as `folder.inspect`.
    """
    with plain(given, weights=False) as found:
        summary = inspect(found.path)
        if not found.parts:
            return summary, {}
        tokenizer = overlay.lasting(summary.tokenizer, found.path, given.path)
        return replace(summary, path=given.path, root=given.path, tokenizer=tokenizer), found.parts


def _want_folders(given: Origin) -> None:
    for flag, path in (("--base", given.base), ("--adapter", given.adapter)):
        if path is not None and not path.is_dir():
            hint = download_hint(path) or "give a folder"
            raise LlmcError(f"no model folder {str(path)!r}", at=flag, hint=hint)


def _pair(given: Origin) -> tuple[Path, Path] | None:
    """Base and adapter, None for a model that is whole.

    Raises:
        LlmcError: the options do not fit what the folders hold, or there is no base.
    """
    alone = adapters.is_adapter(given.path) and not _has_weights(given.path)
    if given.adapter is not None:
        if alone or not adapters.is_adapter(given.adapter):
            which = "MODEL is an adapter itself" if alone else "--adapter names no adapter"
            found = None if alone else f"no {adapters.CONFIG} in {given.adapter}"
            raise LlmcError(which, at=str(given.path), found=found, hint=_OPTIONS)
        return given.path, given.adapter
    if given.base is not None and not adapters.is_adapter(given.path):
        raise LlmcError("--base is for an adapter, and MODEL is none", at=str(given.path), hint=_OPTIONS)
    if given.base is not None:
        return given.base, given.path
    if not alone:
        return None
    found_base = adapters.find_base(adapters.read(given.path))
    _say(f"the adapter's base model is taken from {found_base}")
    return found_base, given.path


_OPTIONS = "llmc compile ADAPTER --base DIR, or llmc compile BASE --adapter DIR"


def _has_weights(path: Path) -> bool:
    return any(overlay.is_weights(entry.name) for entry in path.iterdir())


def _merge(base: Path, adapter: Adapter, folder: Path, weights: bool, speaks: bool) -> None:
    """Fill `folder`: files of the adapter's before those of its base, and the weights of both in one."""
    alone = not any(_speaks(entry.name) for entry in adapter.path.iterdir())
    with plain(Origin(base), weights, speaks and alone) as found:
        source = found.path
        want_all_regular(source)

        def wanted(name: str) -> bool:
            lies_elsewhere = weights and overlay.is_weights(name)
            return not (adapters.is_file_of(name) or lies_elsewhere or (not alone and _speaks(name)))

        overlay.link(
            adapter.path, folder, lambda name: not adapters.is_file_of(name) and name != "config.json"
        )
        overlay.link(source, folder, wanted)
        root = transformer_folder(folder)
        if weights:
            _write_merged(transformer_folder(source), adapter, root)
        else:
            _write_config(transformer_folder(source), adapter, root)


_TOKENS = (
    "tokenizer",
    "vocab",
    "spiece",
    "sentencepiece",
    "spm.",
    "merges",
    "special_tokens",
    "added_tokens",
)


def _speaks(name: str) -> bool:
    """Whether a file of this name is a part of a tokenizer: all of them come from one place."""
    return name.startswith(_TOKENS)


def _write_merged(base: Path, adapter: Adapter, root: Path) -> None:
    with quiet(), overlay.temporary(root) as place, overlay.temporary(base) as alone:
        # where an adapter lies beside the weights transformers would load it as well
        overlay.link(base, alone, lambda name: not adapters.is_file_of(name))
        merging.merged(alone, adapter).save_pretrained(place)
        overlay.move(place, root)
    _name_labels(adapter, root)


def _name_labels(adapter: Adapter, root: Path) -> None:
    """The names of the classes, where the adapter's folder has the model's config.json."""
    file = adapter.path / "config.json"
    stated = read_object(file) if file.exists() else {}
    config = read_object(root / "config.json")
    names = stated.get("id2label")
    if isinstance(names, dict) and len(names) == len(config.get("id2label") or ()):
        overlay.write_json(root / "config.json", {**config, "id2label": names})


def _write_config(base: Path, adapter: Adapter, root: Path) -> None:
    """config.json as the merged model's will be, to look at."""
    config = read_object(base / "config.json")
    config |= adapters.head(adapter, config)
    overlay.write_json(root / "config.json", config)
