"""Writing an artifact: a folder that appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.checksums import Checksums
from llmc.compiler.plan import ALIGNMENT, Plan
from llmc.errors import LlmcError

_FRESH = 60.0  # seconds
_ROOM = 2_000_000  # bytes: a disk with less is full


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`, renamed to it when the block ends well and removed when it does not.

    An artifact that was there before is replaced in the last step only; where `output` is a link to one, the one
    it points to. What a process left that was killed is removed, an artifact that it had moved aside put back.

    Raises:
        LlmcError: the place cannot be written, or holds something that is not an artifact.
    """
    try:
        _check_replaceable(output)
        output = output.resolve() if output.is_symlink() else output
        _sweep(output)
        _restore(output)
        part = output.parent / f".{output.name}.{secrets.token_hex(4)}.part"
        part.mkdir()
        lock = _locked(part)
    except OSError as error:
        raise _os_error("cannot write the artifact", output, error) from None
    try:
        yield part
        _replace(output, part)
    except OSError as error:
        raise _os_error("cannot write the artifact", output, error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock, as long as this process lives and it is open.

    Raises:
        OSError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep(output: Path) -> None:
    """Remove temporary folders of this output whose process is gone; one just made may not be locked yet."""
    ours = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{8}}\.part")
    for path in output.parent.iterdir():
        if not ours.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < _FRESH:
                continue
            lock = _locked(path)
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _restore(output: Path) -> None:
    """The artifact that a process moved aside, back in its place if it was killed before the new one was there."""
    ours = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{8}}\.old")
    for path in output.parent.iterdir():
        if not ours.fullmatch(path.name) or path.is_symlink() or not (path / "manifest.json").is_file():
            continue
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_ctime < _FRESH:  # of the renaming
                continue
            if output.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(output)


def _check_replaceable(output: Path) -> None:
    if not output.parent.is_dir():
        raise LlmcError("the output's folder does not exist", at=str(output.parent), hint="make it first")
    if output.is_symlink() or output.exists():
        ours = output.is_dir() and ((output / "manifest.json").is_file() or not any(output.iterdir()))
        if not ours:
            raise LlmcError(
                "the output exists and is not an artifact",
                at=str(output),
                hint="choose another name, or remove it",
            )


def _replace(output: Path, part: Path) -> None:
    """Rename, the old artifact moved aside and put back should anything come between, an interrupt too."""
    if not output.exists():
        part.rename(output)
        return
    old = output.parent / f".{output.name}.{secrets.token_hex(4)}.old"
    try:
        output.rename(old)
        part.rename(output)
    except BaseException:
        if old.exists() and not output.exists():
            old.rename(output)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _os_error(problem: str, path: Path, error: OSError) -> LlmcError:
    if error.errno == errno.ENOSPC and shutil.disk_usage(path.parent).free > _ROOM:
        path = Path(tempfile.gettempdir())  # the other place that is written to
    hints = {
        errno.ENOSPC: "free some space",
        errno.EACCES: "choose a folder you may write to",
        errno.EROFS: "choose a folder you may write to",
    }
    return LlmcError(f"{problem}: {error.strerror or error}", at=str(path), hint=hints.get(error.errno or 0))


@dataclass(frozen=True)
class Written:
    """What was written: its sha256 in hex, and the checksum of every block (checksums.py)."""

    sha256: str
    checksums: tuple[int, ...]


def write_weights(path: Path, plan: Plan, header_bytes: int) -> Written:
    """Write the weights after an empty header (`stamp_weights` fills it)."""
    digest, checksums = hashlib.sha256(), Checksums()
    with path.open("wb") as file:
        file.write(bytes(header_bytes))
        for stored in plan.weights:
            data = stored.array().tobytes()
            data += bytes(-len(data) % ALIGNMENT)
            digest.update(data)
            checksums.add(data)
            file.write(data)
    return Written(digest.hexdigest(), checksums.finish())


def stamp_weights(path: Path, header: bytes) -> None:
    """Write the header that ties the weights to their module."""
    with path.open("r+b") as file:
        file.write(header)
        file.flush()
        os.fsync(file.fileno())


def file_entries(folder: Path) -> dict[str, dict[str, object]]:
    """Size and sha256 of every file, for the manifest."""
    entries: dict[str, dict[str, object]] = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            entries[path.name] = {
                "bytes": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    return entries
