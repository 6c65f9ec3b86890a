"""`llmc verify`: whether an artifact is what was compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmc.cli.output import json_option, print_json, print_table, require_artifact, size_text
from llmc.errors import LlmcError

_EPILOG = """\b
Examples:
  llmc verify my-model.llmc             every file against the manifest, then the self-test
  llmc verify my-model.llmc --files     no code of the artifact is loaded
  llmc verify my-model.llmc --json

\b
Files are compared by size and SHA-256, which takes seconds for large weights; `llmc run` and `llmc bench` compare
weights by checksums, at the speed of memory. Exit codes: 0 nothing differs, 1 a file differs or the self-test failed.
An artifact that this machine cannot run has its files checked, and the reason is said.
"""


@click.command("verify", epilog=_EPILOG, short_help="Check an artifact: every file, then the self-test.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--files", "only_files", is_flag=True, help="Do not load the artifact for its self-test.")
@json_option
def command(artifact: Path, only_files: bool, as_json: bool) -> None:
    """Check every file of ARTIFACT against its manifest, then run the self-test."""
    require_artifact(artifact)

    from llmc.runtime import verify

    result = verify(artifact, selftest=not only_files)
    if as_json:
        print_json(result.to_dict())
    else:
        _show(artifact, result)
    if not result.passed:
        raise _failure(artifact, result)


def _show(artifact: Path, result: Any) -> None:
    rows = [(name, _size(artifact / name), found or "as compiled") for name, found in result.files.items()]
    rows += [(name, _size(artifact / name), "not in the manifest, unused") for name in result.extra]
    print_table("", ["file", ">size", ""], rows)
    click.echo(f"self-test {result.selftest}")


def _size(path: Path) -> str:
    return size_text(path.stat().st_size) if path.is_file() else ""


def _failure(artifact: Path, result: Any) -> LlmcError:
    if not result.differing:
        return LlmcError(
            "the self-test failed",
            at=str(artifact),
            found=result.selftest,
            hint="compile the model again; if it fails again, this is a bug in llmc",
        )
    count = len(result.differing)
    return LlmcError(
        f"{count} of {len(result.files)} files {'differs' if count == 1 else 'differ'} from what was compiled",
        at=str(artifact),
        found="; ".join(f"{name}: {result.files[name]}" for name in result.differing),
        hint="copy the artifact again, or compile the model again",
    )
