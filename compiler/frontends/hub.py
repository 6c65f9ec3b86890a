"""What to say to a name of a model on a hub, where a folder is meant: llmc downloads nothing."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def download_hint(path: str | Path) -> str | None:
    """How to get the folder, if `path` is none and may be a model's name such as `owner/model`."""
    name = str(path)
    if (
        Path(path).exists()
        or not _NAME.fullmatch(name)
        or (Path(name).parent != Path() and Path(name).parent.exists())
    ):
        return None
    folder = name.rpartition("/")[2]
    return (
        f"llmc downloads nothing: if it is a model on the Hugging Face hub, "
        f"`hf download {name} --local-dir {folder}` first, then give ./{folder}"
    )


def snapshot(path: Path) -> Path:
    """The folder with the files of a model in a hub's cache, as in `models--owner--name`; other paths as they are."""
    reference = path / "refs" / "main"
    if not path.name.startswith("models--") or not reference.is_file() or reference.stat().st_size > 100:
        return path
    found = path / "snapshots" / reference.read_text(encoding="utf-8", errors="replace").strip()
    return found if found.is_dir() and found.parent == path / "snapshots" else path


def name_of(path: Path) -> str:
    """What a model's folder is called; in a hub's cache that is not the folder's name, but that of the model."""
    path = path.resolve()
    for place in (path, path.parent.parent if path.parent.name == "snapshots" else path):
        if place.name.startswith("models--"):
            return place.name.rpartition("--")[2]
    return path.name
