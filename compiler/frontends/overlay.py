"""A folder made for one import: links to a user's files, beside what was changed. Nothing of the user's is written."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmc.compiler.frontends import scratch
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.errors import LlmcError

_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+|\.\w+)?\.(safetensors|bin)(\.index\.json)?")


def is_weights(name: str) -> bool:
    """Whether a file of this name holds the model's weights, a part of them or their index."""
    return _WEIGHTS.fullmatch(name) is not None


@contextmanager
def temporary(path: Path, within: Path | None = None) -> Iterator[Path]:
    """An empty folder called as the model at `path` is; errors within it name `path` instead.

    Args:
        within: where it is made if it is to hold large files (`scratch`); by default where temporary files go.

    Raises:
        LlmcError: what is raised within, of places that the user knows.
    """
    with _place(within) as place:
        folder = Path(place) / (path.resolve().stem if path.is_file() else path.resolve().name or "model")
        folder.mkdir()
        try:
            yield folder
        except LlmcError as error:
            raise _named(error, str(folder), str(path)) from error.__cause__


def _place(within: Path | None) -> AbstractContextManager[str | Path]:
    return tempfile.TemporaryDirectory(prefix="llmc-") if within is None else scratch.folder(within)


def _named(error: LlmcError, mine: str, theirs: str) -> LlmcError:
    def said(text: str | None) -> str | None:
        return None if text is None else text.replace(mine, theirs)

    return LlmcError(
        str(said(error.problem)), at=said(error.at), found=said(error.found), hint=said(error.hint)
    )


def link(source: Path, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Links to the files of `source`, in folders of their own; what is there already stays.

    Args:
        wanted: whether a file of that name is linked.
    """
    for entry in sorted(source.iterdir()):
        place = folder / entry.name
        if entry.is_dir() and not entry.is_symlink():
            place.mkdir(exist_ok=True)
            link(entry, place, wanted)
        elif wanted(entry.name) and not os.path.lexists(place):
            place.symlink_to(entry.absolute())


def link_as(file: Path, place: Path) -> None:
    """A link to one file, under another name."""
    place.symlink_to(file.absolute())


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in the place of what has its name, which may be a link to a user's."""
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def move(source: Path, folder: Path) -> None:
    """All files of `source` into `folder`, in the place of links of their names."""
    for entry in source.iterdir():
        os.replace(entry, folder / entry.name)


def lasting(tokenizer: Tokenizer | None, folder: Path, path: Path) -> Tokenizer | None:
    """The tokenizer without what goes with `folder`, which stands for `path`."""
    if tokenizer is None or not tokenizer.file.is_relative_to(folder):
        return tokenizer
    if tokenizer.file.is_symlink():
        return replace(tokenizer, file=tokenizer.file.readlink())
    made = tokenizer.text if tokenizer.file.name == "tokenizer.json" else tokenizer.made
    return replace(tokenizer, file=path / tokenizer.file.name, made=made)
