"""Arrays that a command reads and writes: .npy in, .npz out."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import click

from llmc.cli.output import print_json
from llmc.errors import LlmcError


def show_arrays(outputs: Any, output: Path | None, as_json: bool) -> None:
    """Print the first numbers of each output, or all as JSON."""
    save(outputs, output)
    if as_json:
        print_json(dict(outputs))
        return
    for name, array in outputs.items():
        flat = array.reshape(-1)
        shape = "x".join(map(str, array.shape))
        click.echo(f"{name} {array.dtype}[{shape}]  {' '.join(f'{v:.5g}' for v in flat[:6])} ...")


def read_input(text: str) -> tuple[str, Any]:
    """`name=file.npy` as the name and the array."""
    import numpy as np

    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise click.UsageError(f"--input {text!r} is not NAME=FILE.npy.")
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise LlmcError("input file was not found", at=f"--input {name}", found=file) from error
    except (ValueError, EOFError, OSError) as error:
        hint = "save it with numpy.save(file, array)"
        raise LlmcError(
            "not a .npy file that can be read", at=f"--input {name}", found=str(error), hint=hint
        ) from error
    if not isinstance(array, np.ndarray):
        raise LlmcError("an input is one array in a .npy file", at=f"--input {name}", found="a .npz archive")
    return name, array


def save(outputs: Any, path: Path | None) -> None:
    """Write the outputs as .npz under a temporary name, then rename."""
    if path is None:
        return
    if path.exists() and not path.is_file():  # a rename would put a file in the place of a device
        raise LlmcError("the output is there, and is no file", at=str(path), hint="choose another name")
    import numpy as np

    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
            for name, array in outputs.items():
                with archive.open(f"{_member(name)}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _member(name: str) -> str:
    """The name of an output as one in an archive: unpacked, it must not lie elsewhere."""
    leads_out = name.startswith("/") or ".." in name.split("/")
    return name.replace("%", "%25").replace("/", "%2F") if leads_out else name
