"""What tests make once and keep, from test to test, for all workers of a run, and from run to run.

What is kept is named by all that it depends on, the sources that made it among them, so that none is ever stale. A
folder that is empty, as in a fresh checkout, makes a run slower and changes nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

from llmc.targets import store

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LIMIT = 512 << 20  # bytes
_PLACE: list[Path] = []  # empty until `use`: nothing is kept


def use(folder: Path) -> None:
    """Keep in this folder."""
    _PLACE[:] = [folder]


@cache
def sources(*places: str) -> str:
    """A digest of the files and of all sources in the folders of the checkout that these texts name."""
    digest = hashlib.sha256()
    for place in places:
        found = ROOT / place
        assert found.exists(), place
        files = [found] if found.is_file() else sorted(p for p in found.rglob("*") if p.suffix in _SOURCES)
        for file in files:
            digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


_SOURCES = (".py", ".c", ".h", ".jinja", ".map")


@cache
def versions(*packages: str) -> str:
    """The Python, the processor's kind and the releases of these packages."""
    named = " ".join(f"{package} {version(package)}" for package in packages)
    return f"{sys.version} {platform.machine()} {named}"


def made(kind: str, parts: tuple[str, ...], make: Callable[[], bytes]) -> bytes:
    """What is kept of this kind under these texts, else what `make` returns; who wants it too waits meanwhile."""
    if not _PLACE:
        return make()
    name, folder = store.key(kind, *parts), _PLACE[0] / kind
    with locked(folder / "locks" / name[:8]):
        kept = store.Store(folder)
        content = kept.get(name)
        if content is None:
            content = make()
            kept.put(name, content)
            kept.trim(LIMIT)
    return content


def folder_made(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, written by `make(a path beside it)` unless it is there; who wants it too waits meanwhile."""
    with locked(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
                own = Path(folder) / path.name
                make(own)
                own.replace(path)
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock of one that dies is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
