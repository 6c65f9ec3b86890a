"""Imports without searches for garbage: what is imported and traced stays, and they take a fifth of the time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from llmc.compiler.frontends.hub import snapshot
from llmc.compiler.frontends.overlay import is_weights

SMALL = 256 << 20  # the garbage of an import takes about a third of what its weights take in f32


@contextmanager
def uncollected() -> Iterator[None]:
    """Without searches for garbage; the process' setting is put back."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def uncollected_if_small(*paths: Path | None) -> AbstractContextManager[None]:
    """`uncollected`, unless the weights in these files and folders are so many that their garbage would tell."""
    size = sum(file.stat().st_size for path in paths if path is not None for file in _weights(path))
    return uncollected() if size <= SMALL else nullcontext()


def _weights(path: Path) -> list[Path]:
    """A file, or those of a folder and of the folders in it; of a hub's cache those of the folder that is read."""
    if path.is_file():
        return [path]
    path = snapshot(path)
    return [f for p in ("*", "*/*") for f in path.glob(p) if is_weights(f.name) and f.is_file()]
