"""`llmc calibrate`: what calibration wants to know of a part of the data, for a compile that merges the parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from llmc.cli.compile import adapters_of
from llmc.cli.compile import command as compiling
from llmc.cli.output import Progress, print_json, print_table
from llmc.cli.verbosity import is_quiet
from llmc.errors import LlmcError

_EPILOG = """\b
Examples:
  llmc calibrate ./my-model --quant w4 --calib part1.txt --calib-stats part1
  llmc calibrate ./my-model --quant w4 --calib part2.txt --calib-stats part2
  llmc compile ./my-model --quant w4 --calib-merge part1 --calib-merge part2 -o m.llmc
  llmc calibrate ./my-model --quant int8-static --calib part1.txt --calib-stats part1 --parts 2
  llmc calibrate ./my-model --quant int8-static --calib part1.txt --calib-stats part1 --calib-merge part2

\b
Give the options that the compile is to have; --target too, where machines differ. A run that was stopped goes
on where it was. int8-static walks over the samples three times, each time by what the last one found in all
parts: with --parts it stops until the folders of the others are given as --calib-merge.
"""

# Options of `llmc compile` that say what becomes of a graph that is calibrated.
_NOT = {"output", "verify_each", "tune", "tune_time", "keep", "emit", "prefix", "cc", "name"} | {
    *("max_drop", "max_size", "max_latency", "data", "minimise", "time_budget", "latency_at", "best_effort"),
    *("front", "rows", "text_column", "pair_column", "label_column"),
}


def _as_compile(command: click.Command) -> click.Command:
    """With what is the same there."""
    command.params = [p for p in compiling.params if p.name not in _NOT] + command.params
    return command


@_as_compile
@click.command("calibrate", epilog=_EPILOG, short_help="Gather what calibration needs of a part of the data.")
@click.option(
    "--parts",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many there are in all: what depends on them waits for the others.",
)
def command(
    model: Path,
    members: Sequence[Path],
    adapters: Sequence[str],
    calib_stats: Path | None,
    as_json: bool,
    parts: int,
    **options: Any,
) -> None:
    """Run MODEL on samples and keep what `llmc compile` wants to know of them in a folder."""
    if calib_stats is None:
        raise LlmcError(
            "there is no folder for what is gathered", at="--calib-stats", hint="--calib-stats DIR"
        )
    options |= adapters_of(adapters)
    with Progress("calibrate") as progress:
        progress("loading the compiler", 0.0)
        from llmc import driver

        asked: dict[str, Any] = {"progress": progress, "say": progress.say, "parts": parts, **options}
        found = driver.calibrate([model, *members] if members else model, calib_stats, **asked)
    if as_json:
        print_json({"folder": str(calib_stats), "walks": found.walks, "waits": found.waits})
    elif not is_quiet():
        _show(calib_stats, options["calib_merge"], found)


def _show(folder: Path, others: Sequence[Path], found: Any) -> None:
    columns = ["walk", "of", ">samples", ">were there", ">of other parts"]
    rows = [(w["walk"], w["kind"], w["there"] + w["added"], w["there"], w["merged"]) for w in found.walks]
    print_table("", columns, rows)
    click.echo(f"{found.waits}\n" if found.waits else "", nl=False)
    click.echo(f"wrote {folder}\n")
    if not found.waits:
        click.echo(
            f"next:  llmc compile, with the same options, and --calib-merge {folder} instead of --calib"
        )
