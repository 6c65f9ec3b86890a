"""`llmc passes`: the passes and the optimisation levels."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any

import click

from llmc.cli.output import extension_option, json_option, print_json, print_table

_EPILOG = """\b
Examples:
  llmc passes
  llmc compile ./my-model --passes "fold,simplify,fuse" -o m.llmc
  llmc opt ./my-model --passes "./my_pass.py:MyPass,fuse"
  llmc compile ./my-model --add-pass "./my_pass.py:MyPass@compress" -o m.llmc

\b
A pass's options go in braces: name{option=value,other=1}. A pipeline has places, in order; -O0 to -O3 have passes
at some of them, a target, --quant and --add-pass add theirs.
"""


@click.command("passes", epilog=_EPILOG, short_help="List the passes and the optimisation levels.")
@extension_option
@json_option
def command(as_json: bool) -> None:
    """List every pass with its options and what it keeps, and the places of a pipeline with what runs there."""
    from llmc.compiler import extensions
    from llmc.compiler.places import PLACES
    from llmc.passes import LEVELS, PASSES

    rows = [describe(name, kind) for name, kind in {**PASSES, **extensions.passes()}.items()]
    if as_json:
        levels = {str(level): text for level, text in enumerate(LEVELS)}
        print_json({"passes": rows, "levels": levels, "places": {name: _place(name) for name in PLACES}})
        return
    cells = [(r["name"], _options_text(r["options"]), r["keeps"], r["summary"]) for r in rows]
    print_table("", ["pass", "options", "keeps", "what it does"], cells)
    for level, text in enumerate(LEVELS):
        click.echo(f"-O{level}  {text or '(none)'}")
    print_table("", ["place, in order", "what is there", "at -O3"], [_row(name) for name in PLACES])
    click.echo("--add-pass SPEC@PLACE adds a pass; `llmc inspect` shows what an artifact was made by.")


def _place(name: str) -> dict[str, Any]:
    """What runs at a place: by level, and for the targets of each backend."""
    from llmc.compiler.places import PLACES
    from llmc.passes import LEVEL_PARTS
    from llmc.targets.backends import backend_of
    from llmc.targets.host import all_targets

    levels = {str(level): parts[name] for level, parts in enumerate(LEVEL_PARTS) if name in parts}
    backends: dict[str, str] = {}
    for target in all_targets().values():
        backend = backend_of(target)
        if text := backend.passes(target).get(name, ""):
            backends[backend.name] = text
        if name == "fuse" and backend.channels_last:
            backends[backend.name] = "channels-last,simplify,fold,cse where they apply"
        if name == "layout" and backend.winograd:
            backends[backend.name] = "winograd where it applies"
        if name == "compress" and backend.ragged:
            backends[backend.name] = "blank,ragged where they apply"
    return {"summary": PLACES[name], "levels": levels, "backends": backends}


def _row(name: str) -> tuple[str, str, str]:
    found = _place(name)
    backends = (f"{backend}: {text}" for backend, text in found["backends"].items())
    return name, found["summary"], "; ".join(filter(None, (found["levels"].get("3", ""), *backends)))


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
