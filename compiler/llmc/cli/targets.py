"""`llmc targets`: where an artifact can run."""

from __future__ import annotations

from typing import Any

import click

from llmc.cli.output import json_option, print_json, print_table
from llmc.errors import LlmcError

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
    from llmc.targets.host import all_targets

    rows = [_native(), *map(describe, all_targets().values())]
    if as_json:
        print_json({"targets": rows})
        return
    cells = [(r["name"], r["description"], "; ".join(r["needs"])) for r in rows]
    print_table("", ["target", "what it is", "needs one of, best first"], cells)


def describe(target: Any) -> dict[str, Any]:
    """Name, description, LLVM triple and what a machine must have for each variant of the code."""
    from llmc.targets.backends import backend_of

    return {
        "name": target.name,
        "description": target.description,
        "triple": target.triple,
        "needs": [variant.needs for variant in backend_of(target).variants(target)],
    }


def _native() -> dict[str, Any]:
    """What `native` means here; on a machine that llmc cannot compile for, why not."""
    from llmc.targets import host

    try:
        return describe(host.find_target("native"))
    except LlmcError as error:
        return {"name": "native", "description": f"this machine: {error.problem}", "triple": "", "needs": []}
