"""C to machine code: the only file that calls a compiler or linker.

The compiler is clang out of the `ziglang` package, which holds the libc of every target, so an artifact built
on a new system runs on an old one; `cc` names another instead.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmc.errors import LlmcError

_ALWAYS = ("-fno-sanitize=undefined", "-g0")  # zig cc checks for undefined behaviour unless told not to

_ROOM = 2_000_000  # bytes: less than what compiling and linking write


def compiler(zig_target: str, cc: str | None) -> list[str]:
    """The command of the C compiler."""
    return shlex.split(cc) if cc else [sys.executable, "-m", "ziglang", "cc", "-target", zig_target, *_ALWAYS]


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
    _run([*compiler(zig_target, cc), *flags, f"-I{include}", *files, *libraries], output)


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


def _run(command: Sequence[str], output: Path) -> None:
    _start([*command, "-o", str(output)], output)


def _start(command: Sequence[str], output: Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise LlmcError(
            f"cannot start the C compiler: {error.strerror or error}",
            at=command[0],
            hint="check the --cc option",
        ) from None
    if done.returncode:
        _check_space(output.parent, Path(tempfile.gettempdir()))
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise LlmcError(
            f"the C compiler failed on {output.name}",
            at=shlex.join(command[:6]) + " ...",
            found="\n         ".join(lines[:5]) or f"exit code {done.returncode}",
            hint="is the disk full, or does --cc name a compiler for another machine?",
        )


def _check_space(*folders: Path) -> None:
    """A compiler on a full disk says anything but that."""
    for folder in folders:
        if shutil.disk_usage(folder).free < _ROOM:
            raise LlmcError(
                "no space left on the disk", at=str(folder), hint="free some space, or set TMPDIR"
            )
