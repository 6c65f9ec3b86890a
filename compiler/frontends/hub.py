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
