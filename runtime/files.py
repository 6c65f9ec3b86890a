"""An artifact's files and machine by its manifest."""

from __future__ import annotations

import hashlib
import platform
import stat
from pathlib import Path

from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.manifest import WEIGHTS, FileEntry, Manifest


def difference(path: Path, entry: FileEntry, *, hashed: bool = True) -> str:
    """How a file differs from its entry, in words; empty: it does not.

    Raises:
        OSError: it cannot be read.
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        return "not a file"
    if info.st_size != entry.bytes:
        return f"{info.st_size} bytes, the manifest says {entry.bytes}"
    if not hashed:
        return ""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == entry.sha256:
        return ""
    return f"sha256 {digest[:12]}..., the manifest says {entry.sha256[:12]}..."


def check_files(folder: Path, manifest: Manifest) -> None:
    """Hash every file but the weights, whose blocks the module itself compares.

    Raises:
        LlmcError: a file is missing, damaged or of another build.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            found = difference(path, entry, hashed=name != WEIGHTS)
        except OSError as error:
            raise LlmcError(
                f"cannot read {name}: {error.strerror or error}", at=str(path), hint="copy the whole artifact"
            ) from None
        if found:
            raise LlmcError(
                f"{name} is damaged or of another build",
                at=str(path),
                found=found,
                hint="copy the artifact again, or compile the model again",
            )


def check_machine(manifest: Manifest) -> None:
    """The linker's own words for a module of another architecture are no help."""
    here = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if manifest.machine == here:
        return
    raise native.MachineError(
        f"the artifact is for {manifest.machine} and this machine is {here}",
        at=str(manifest.path.parent),
        found=f"compiled with --target {manifest.target}",
        hint="compile the model for this machine, or run the artifact on the one it is for",
    )
