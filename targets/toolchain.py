"""C to machine code: the only file that calls a compiler or linker.

The compiler is clang out of the `ziglang` package, which holds the libc of every target, so an artifact built
on a new system runs on an old one; `cc` names another instead.
"""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from llmc.errors import LlmcError
from llmc.targets import store

_ALWAYS = ("-fno-sanitize=undefined", "-g0")  # zig cc checks for undefined behaviour unless told not to

_PATIENCE = 10.0  # seconds of one command before somebody is told
_ROOM = 2_000_000  # bytes: less than what compiling and linking write


def compiler(zig_target: str, cc: str | None) -> list[str]:
    """The command of the C compiler."""
    return shlex.split(cc) if cc else [sys.executable, "-m", "ziglang", "cc", "-target", zig_target, *_ALWAYS]


def want_compiler(cc: str | None) -> None:
    """Refuse a command that names no program, before anything is compiled for it.

    Raises:
        LlmcError: there is none of that name.
    """
    if cc is None:
        return
    try:
        words = shlex.split(cc)
    except ValueError as error:
        raise LlmcError(f"--cc is not a command: {error}", at="--cc", found=cc) from None
    if not words or shutil.which(words[0]) is None:
        name = words[0] if words else ""
        raise LlmcError(f"there is no C compiler {name!r}", at="--cc", hint="give a command, or its path")


_CACHE = "ZIG_GLOBAL_CACHE_DIR"  # where zig keeps what it has compiled of libc


def _environment() -> Mapping[str, str]:
    """The compiler's: its cache lies in llmc's, as the home folder may be missing or not to be written."""
    if os.environ.get(_CACHE):
        return os.environ
    place = str(_cache(store.folder("zig")))
    return {**os.environ, _CACHE: place, "ZIG_LOCAL_CACHE_DIR": place}


@functools.cache
def _cache(wanted: Path | None) -> Path:
    """`wanted` if it can be written, else a folder until this process ends."""
    try:
        if wanted is not None:
            wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=wanted):
                return wanted.absolute()
    except OSError:
        pass
    made = tempfile.mkdtemp(prefix="llmc-zig-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def build(
    output: Path,
    sources: Sequence[Path],
    include: Path,
    flags: Sequence[str],
    libraries: Sequence[str],
    zig_target: str,
    cc: str | None = None,
) -> None:
    """Compile C sources and link them, with objects among them, to `output`.

    Raises:
        LlmcError: the compiler is missing or fails.
    """
    files = [str(path) for path in sources]
    command = [*compiler(zig_target, cc), *flags, f"-I{include}", *files, *libraries, "-o", str(output)]
    first = f"making {output.name}: zig first builds the C library of {zig_target}, once, for minutes"
    _start(command, output, "" if cc else first)


def embed(folder: Path, symbol: str, data: bytes) -> Path:
    """An assembler file in `folder` that defines `symbol` as `data`, read-only and 64-byte aligned."""
    (folder / f"{symbol}.bin").write_bytes(data)
    lines = (
        '.section .rodata,"a",%progbits',
        f".globl {symbol}",
        f".hidden {symbol}",
        ".balign 64",
        f"{symbol}:",
        f'.incbin "{folder / symbol}.bin"',
        '.section .note.GNU-stack,"",%progbits',
    )
    path = folder / f"{symbol}.s"
    path.write_text("\n".join(lines) + "\n")
    return path


def compile_objects(
    folder: Path,
    sources: Sequence[Path],
    include: Path,
    flags: Sequence[str],
    zig_target: str,
    cc: str | None = None,
) -> None:
    """Compile each of the C sources to an object file of its name in `folder`; `flags` hold -c.

    Raises:
        LlmcError: the compiler is missing or fails.
    """
    for source in sources:
        output = folder / f"{source.stem}.o"
        build(output, [source], include, flags, [], zig_target, cc)


def archive(output: Path, objects: Sequence[Path]) -> None:
    """Make a static library.

    Raises:
        LlmcError: the archiver is missing or fails.
    """
    _start([sys.executable, "-m", "ziglang", "ar", "rcsD", str(output), *map(str, objects)], output)


_tell: ContextVar[Callable[[str], None] | None] = ContextVar("tell", default=None)


@contextmanager
def telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Inside the block `tell` gets a sentence where a compiler takes long, and another each minute."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


def _finished(command: Sequence[str], told: str) -> tuple[int, str]:
    """Run it: exit code and stderr; `told` is what takes so long, if it does."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        try:
            return _waited(process, told)
        except BaseException:
            process.kill()
            raise


def _waited(process: subprocess.Popen[str], told: str) -> tuple[int, str]:
    tell, minutes = _tell.get(), 0
    while True:
        limit = None if tell is None or not told else 60.0 if minutes else _PATIENCE
        try:
            _, said = process.communicate(timeout=limit)
            return process.returncode, said
        except subprocess.TimeoutExpired:
            assert tell is not None
            tell(told + (f": {minutes} min so far" if minutes else ""))
            minutes += 1


def _start(command: Sequence[str], output: Path, told: str = "") -> None:
    try:
        code, said = _finished(command, told)
    except OSError as error:
        raise LlmcError(
            f"cannot start the C compiler: {error.strerror or error}",
            at=command[0],
            hint="check the --cc option",
        ) from None
    if code:
        _check_space(output.parent, Path(tempfile.gettempdir()))
        lines = [line for line in said.splitlines() if line.strip()]
        raise LlmcError(
            f"the C compiler failed on {output.name}",
            at=shlex.join(command[:6]) + " ...",
            found="\n         ".join(lines[:5]) or f"exit code {code}",
            hint="is the disk full, or does --cc name a compiler for another machine?",
        )


def _check_space(*folders: Path) -> None:
    """A compiler on a full disk says anything but that."""
    for folder in folders:
        if shutil.disk_usage(folder).free < _ROOM:
            raise LlmcError(
                "no space left on the disk", at=str(folder), hint="free some space, or set TMPDIR"
            )
