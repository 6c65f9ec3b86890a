"""`llmc targets`: where an artifact can run."""

from __future__ import annotations

import inspect
from typing import Any

import click

from llmc.compiler.cli.output import json_option, print_json, print_table

_EPILOG = """\b
Examples:
  llmc targets
  llmc compile ./my-model --target x86 -o m.llmc      any x86-64 CPU from AVX2 on; picks code when opened
  llmc compile ./my-model --target native -o m.llmc   this machine's CPU
"""


@click.command("targets", epilog=_EPILOG, short_help="List the targets an artifact can be compiled for.")
@json_option
def command(as_json: bool) -> None:
    """List the targets: name, CPU features needed, and what each is for."""
    from llmc.targets import TARGETS

    rows = [describe(name, target) for name, target in TARGETS.items()]
    if as_json:
        print_json({"targets": rows})
        return
    cells = [(r["name"], " ".join(r["features"]), r["summary"]) for r in rows]
    print_table("", ["target", "needs", "what it is"], cells)


def describe(name: str, target: Any) -> dict[str, Any]:
    """Name, features and one line of description of a target."""
    summary = getattr(target, "summary", "") or getattr(target, "doc", "") or inspect.getdoc(target) or ""
    return {
        "name": name,
        "features": [str(feature) for feature in getattr(target, "features", ())],
        "summary": str(summary).split("\n\n")[0].replace("\n", " "),
    }
