"""Python files of users: run once, and again only when they changed."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint
from pathlib import Path
from threading import get_ident
from types import CodeType, ModuleType
from typing import Any

from llmc.errors import LlmcError, in_a_line


@dataclass(frozen=True)
class Ran:
    """A file's module and the sha256 of what it said when it ran."""

    module: ModuleType
    sha256: str


_ran: dict[Path, Ran] = {}
_running: dict[Path, int] = {}  # files that are being run, and by which thread


def run_file(path: str | Path, what: str) -> Ran:
    """The module that the file `path` makes: code of the user's own, run with the user's rights.

    Args:
        what: the file's purpose, for messages: "pass", "extension".

    Raises:
        LlmcError: there is no such file, or it raises.
    """
    file, content = _read(path, what)
    digest, place = hashlib.sha256(content).hexdigest(), file.resolve()
    if place in _ran and _ran[place].sha256 == digest:
        return _ran[place]
    if _running.get(place) == get_ident():
        raise LlmcError(f"the {what} file loads itself", at=str(file), hint="leave that to llmc")
    _running[place] = get_ident()
    try:
        _ran[place] = Ran(_run(file, content, _name(place, digest), what), digest)
    finally:
        _running.pop(place, None)
    return _ran[place]


def load_point(point: EntryPoint, what: str, at: str) -> Any:
    """What an entry point of an installed package names.

    Raises:
        LlmcError: the package fails while it is imported.
    """
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        problem = f"{what} fails: {in_a_line(error)}"
        raise LlmcError(problem, at=at, hint="mend or uninstall its package") from error


def forget(path: str | Path) -> None:
    """Run the file anew next time."""
    _ran.pop(Path(path).expanduser().resolve(), None)


def _read(path: str | Path, what: str) -> tuple[Path, bytes]:
    try:
        file = Path(path).expanduser()
        if file.is_fifo():  # to read it waits for somebody who writes
            raise LlmcError(f"the {what} file is a pipe", at=str(path), hint=_hint(what))
        return file, file.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:  # the latter: no such user's home, a zero byte in it
        lacks = isinstance(error, (FileNotFoundError, NotADirectoryError, RuntimeError))
        lacks = lacks or getattr(error, "errno", None) == errno.ELOOP
        problem = f"no such {what} file" if lacks else f"the {what} file cannot be read"
        raise LlmcError(problem, at=str(path), hint=_hint(what)) from error


def _name(place: Path, digest: str) -> str:
    """Of the module: another for a file of the same name and content elsewhere, which may find others beside it."""
    where = hashlib.sha256(os.fsencode(place)).hexdigest()
    return f"llmc_file_{place.stem}_{where[:8]}_{digest[:8]}"


def _hint(what: str) -> str:
    return "write path/to/file.py:ClassName" if what == "pass" else "write path/to/file.py"


class _AsRead(SourceFileLoader):
    """Compiles what was read.

    The bytecode that Python keeps belongs to a file of the same size that was written in the same second: an edit
    within one would not be seen.
    """

    def __init__(self, name: str, file: Path, content: bytes) -> None:
        super().__init__(name, str(file))
        self._content = content

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self._content, self.path)
        return code


def _run(file: Path, content: bytes, name: str, what: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, loader=_AsRead(name, file, content))
    if spec is None or spec.loader is None or file.suffix != ".py":
        raise LlmcError(f"the {what} file is not Python", at=str(file), hint="its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    earlier = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses look their module up while they are being made
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        _leave(name)
        if earlier is not None:
            sys.modules[name] = earlier
        if not _is_of(file, error):
            raise
        problem = f"the {what} file fails: {in_a_line(error)}"
        own = error if isinstance(error, LlmcError) else None
        at = f"{file}{_line(error, file)}"
        if own is None:
            raise LlmcError(problem, at=at) from error
        at = f"{at}, {own.at}" if own.at else at
        raise LlmcError(problem, at=at, found=own.found, hint=own.hint) from error
    return module


def _leave(name: str) -> None:
    """The table of modules without that one, and without what it holds if it is a package."""
    for known in list(sys.modules):
        if f"{known}.".startswith(f"{name}."):
            sys.modules.pop(known, None)


def _is_of(file: Path, error: BaseException) -> bool:
    """Whether it is the file's fault: what a handler of signals raises is not."""
    if isinstance(error, (Exception, SystemExit)):
        return True
    return not isinstance(error, KeyboardInterrupt) and [*_places(error)][-1][0] == str(file)


def _line(error: BaseException, file: Path) -> str:
    """`:12`, the last line of `file` on the way to `error`."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f":{error.lineno}" if error.lineno else ""
    lines = [line for name, line in _places(error) if name == str(file)]
    return f":{lines[-1]}" if lines else ""


def _places(error: BaseException) -> Iterator[tuple[str, int]]:
    """File and line of each call on the way to `error`."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
