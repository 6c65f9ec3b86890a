"""Everything that can be checked of an artifact: every file against the manifest, then the self-test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError
from llmc.runtime.files import difference
from llmc.runtime.manifest import MANIFEST, FileEntry, read_manifest


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        files: name of every file in the manifest -> how it differs; empty: it does not.
        extra: what lies in the folder and is not in the manifest. Nothing uses it.
        ran: whether the self-test was run. It is not where a file differs, or this machine cannot run the artifact.
        selftest: what came of it in words, or why it was not run.
        passed: no file differs, and the self-test did not fail.
    """

    files: Mapping[str, str]
    extra: tuple[str, ...]
    ran: bool
    selftest: str
    passed: bool

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the files that differ."""
        return tuple(name for name, found in self.files.items() if found)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "passed": self.passed,
            "files": dict(self.files),
            "extra": list(self.extra),
            "selftest": {"ran": self.ran, "result": self.selftest},
        }


def verify(path: str | os.PathLike[str], *, selftest: bool = True) -> Verification:
    """Check every file of an artifact, then load it and run its self-test.

    Args:
        selftest: False: only the files are read, and no code of the artifact is loaded.

    Raises:
        LlmcError: there is no manifest, or it is damaged or of another format.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    files = {name: _difference(folder / name, entry) for name, entry in manifest.files.items()}
    extra = tuple(sorted({p.name for p in folder.iterdir()} - {*files, MANIFEST}))
    if any(files.values()):
        return Verification(files, extra, False, "not run: a file differs", False)
    if not selftest:
        return Verification(files, extra, False, "not run: not asked for", True)
    return Verification(files, extra, *_selftest(folder))


def _difference(path: Path, entry: FileEntry) -> str:
    try:
        return difference(path, entry)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _selftest(folder: Path) -> tuple[bool, str, bool]:
    """Whether it was run, what came of it, and whether that is well."""
    from llmc.runtime.model import load
    from llmc.runtime.native import MachineError

    try:
        with load(folder) as model:
            if model.manifest.selftest is None:
                return False, "not run: the artifact has none", True
            result = model.selftest()
    except MachineError as error:
        return False, f"not run: {error.problem}", True
    except LlmcError as error:
        return False, f"failed: {error.problem}", False
    if not result.passed:
        return True, f"failed: {'; '.join(result.failures)}", False
    return True, f"passed: {result.cases} cases, largest difference {result.largest_error:.1e}", True
