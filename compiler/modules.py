"""Python files of users: run once, and again only when they changed."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from llmc.errors import LlmcError


@dataclass(frozen=True)
class Ran:
    """A file's module and the sha256 of what it said when it ran."""

    module: ModuleType
    sha256: str


_ran: dict[Path, Ran] = {}


def run_file(path: str | Path, what: str) -> Ran:
    """The module that the file `path` makes: code of the user's own, run with the user's rights.

    Args:
        what: the file's purpose, for messages: "pass", "extension".

    Raises:
        LlmcError: there is no such file, or it raises.
    """
    file = Path(path).expanduser()
    try:
        content = file.read_bytes()
    except OSError as error:
        problem = f"no such {what} file" if not file.exists() else f"the {what} file cannot be read"
        raise LlmcError(problem, at=str(path), hint=_hint(what)) from error
    digest, place = hashlib.sha256(content).hexdigest(), file.resolve()
    if place not in _ran or _ran[place].sha256 != digest:
        _ran[place] = Ran(_run(file, content, f"llmc_file_{file.stem}_{digest[:8]}", what), digest)
    return _ran[place]


def forget(path: str | Path) -> None:
    """Run the file anew next time."""
    _ran.pop(Path(path).expanduser().resolve(), None)


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
    except (Exception, SystemExit) as error:
        sys.modules.pop(name)
        if earlier is not None:
            sys.modules[name] = earlier
        problem = f"the {what} file fails: {type(error).__name__}: {error}"
        raise LlmcError(problem, at=f"{file}{_line(error, file)}", found=_own_problem(error)) from error
    return module


def _line(error: BaseException, file: Path) -> str:
    """`:12`, the last line of `file` on the way to `error`."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _own_problem(error: BaseException) -> str | None:
    """What an `LlmcError` says beyond its problem."""
    return error.found if isinstance(error, LlmcError) else None
