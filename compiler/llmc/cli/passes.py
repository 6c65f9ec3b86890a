"""`llmc passes`: the passes and the optimisation levels."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any

import click

from llmc.cli.output import json_option, print_json, print_table

_EPILOG = """\b
Examples:
  llmc passes
  llmc compile ./my-model --passes "fold,simplify,fuse" -o m.llmc
  llmc opt ./my-model --passes "./my_pass.py:MyPass,fuse"

\b
A pass's options go in braces: name{option=value,other=1}. -O0 to -O3 are pipelines, shown below the table.
"""


@click.command("passes", epilog=_EPILOG, short_help="List the passes and the optimisation levels.")
@json_option
def command(as_json: bool) -> None:
    """List every pass with its options and what it keeps, and the pipelines behind -O0 to -O3."""
    from llmc.passes import LEVELS, PASSES

    rows = [describe(name, kind) for name, kind in PASSES.items()]
    levels = {str(k): str(v) for k, v in (LEVELS.items() if hasattr(LEVELS, "items") else enumerate(LEVELS))}
    if as_json:
        print_json({"passes": rows, "levels": levels})
        return
    cells = [(r["name"], _options_text(r["options"]), r["keeps"], r["summary"]) for r in rows]
    print_table("", ["pass", "options", "keeps", "what it does"], cells)
    for level, pipeline in levels.items():
        click.echo(f"-O{level.lstrip('O')}  {pipeline or '(none)'}")
    click.echo("To -O3 `compile` adds what the target wants: blank,ragged for CPUs, unpack for GPUs.")


def describe(name: str, kind: type[Any]) -> dict[str, Any]:
    """Name, options with defaults, what it keeps and the first line of the docstring of a pass class."""
    options = {}
    for option in fields(kind):
        default = option.default_factory() if option.default_factory is not MISSING else option.default
        options[option.name] = None if default is MISSING else default
    summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
    return {
        "name": name,
        "options": options,
        "keeps": str(getattr(kind, "keeps", "exact")),
        "summary": summary,
    }


def _options_text(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())
