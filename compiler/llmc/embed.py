"""The forms of a model for programs that want no module.so: a static library, and a program of its own.

Both go into the artifact beside module.so and use its weights.bin.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmc.errors import LlmcError
from llmc.runtime import sources as c
from llmc.targets import Target, elf, toolchain
from llmc.targets.backend import Code

FORMS = ("shared", "static", "executable")
LIBRARY, PROGRAM = "libmodel.a", "run"


@dataclass(frozen=True)
class Form:
    """What goes into an artifact beside module.so: a name of `FORMS`; "shared" is nothing more.

    `prefix` goes before every symbol of a static library.
    """

    name: str
    prefix: str


def form(name: str, prefix: str) -> Form:
    """The form that `--emit` and `--prefix` ask for.

    Raises:
        LlmcError: they make no sense.
    """
    if name not in FORMS:
        raise LlmcError(f"there is no form {name!r}", at="--emit", hint=f"known: {', '.join(FORMS)}")
    if prefix and name != "static":
        raise LlmcError("a prefix is for static libraries only", at="--prefix", hint="add --emit static")
    if prefix and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", prefix):
        raise LlmcError("the prefix is not the beginning of a C name", at="--prefix", found=repr(prefix))
    return Form(name, prefix)


def write_form(
    form: Form,
    folder: Path,
    program: str,
    code: Code,
    target: Target,
    cc: str | None = None,
) -> None:
    """Add a form to an artifact that is being written.

    Args:
        folder: the artifact.
        program: text of module.c.
        code: of its kernels.
        cc: C compiler command instead of the `ziglang` package's.

    Raises:
        LlmcError: the compiler is missing or fails.
    """
    if form.name == "shared":
        return
    with tempfile.TemporaryDirectory(prefix="llmc-") as made:
        place = Path(made)
        (place / "module.c").write_text(program)
        objects = []
        for name, data in code.objects.items():
            objects.append(place / f"kernels_{name}.o")
            objects[-1].write_bytes(data)
        if form.name == "static":
            _static(folder, place, objects, target, form.prefix, cc)
        else:
            _executable(folder, place, objects, target, cc)


def _static(
    folder: Path, place: Path, objects: list[Path], target: Target, prefix: str, cc: str | None
) -> None:
    """libmodel.a, and with a prefix the header that declares its one entrance."""
    sources = [place / "module.c", *c.MODULE_SOURCES]
    toolchain.compile_objects(place, sources, c.FOLDER, c.OBJECT_FLAGS, target.zig, cc)
    objects = [*objects, *(place / f"{s.stem}.o" for s in sources)]
    if prefix:
        for path, code in zip(
            objects, elf.add_prefix([p.read_bytes() for p in objects], prefix), strict=True
        ):
            path.write_bytes(code)
        (folder / f"{prefix}.h").write_text(_header(prefix))
    toolchain.archive(folder / LIBRARY, objects)


def _header(prefix: str) -> str:
    """What a program includes to use a library whose names have a prefix."""
    return (
        f"/* {prefix}.h - the functions of llmc.h for the model in this libmodel.a, as a table. */\n"
        f'#include "llmc.h"\n\nconst llmc_api *{prefix}llmc_get_api(void);\n'
    )


def _executable(folder: Path, place: Path, objects: list[Path], target: Target, cc: str | None) -> None:
    """`run`, linked with musl's libc and all: it needs a kernel of Linux and weights.bin."""
    sources = [place / "module.c", *c.RUN_SOURCES, *objects]
    musl = f"{target.machine}-linux-musl"
    toolchain.build(folder / PROGRAM, sources, c.FOLDER, c.RUN_FLAGS, c.MODULE_LIBRARIES, musl, cc)
