"""`llmc bench`: the latency of an artifact, alone or beside another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmc.cli.fixed_dims import Sized, as_dict
from llmc.cli.output import (
    Counts,
    Seconds,
    json_option,
    lengths_of,
    no_check_option,
    print_json,
    require_artifact,
)
from llmc.compiler.frontends.axes import Asked

_EPILOG = """\b
Examples:
  llmc bench my-model.llmc
  llmc bench my-model.llmc --batch 8 --seq 128 --threads 2
  llmc bench detector.llmc --dim height=640 --dim width=480
  llmc bench my-model.llmc --batch 32 --shortest 5     a batch of texts of different length
  llmc bench decoder.llmc --function step --seq 1 --past 500
  llmc bench my-model.llmc --profile                   time, bytes and FLOP of every kernel
  llmc bench new.llmc --vs old.llmc                    runs both in turns, prints the ratio
  llmc bench my-model.llmc --json > result.json
  llmc bench writer.llmc -p 128,512 -n 128 -d 0,512    tokens a second, of prompts and new ones
  llmc bench writer.llmc -n 128 -b 1,8                 of one text, and of eight at once

\b
Quote ratios measured with --vs rather than two times from two runs: the machine changes between runs more
than most improvements do. The artifact's own `bench` executable measures the same without Python.
"""


@click.command("bench", epilog=_EPILOG, short_help="Measure an artifact's latency, per kernel if asked.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--batch", type=click.IntRange(min=1), help="Rows in a call.  [default: 1]")
@click.option("--seq", type=click.IntRange(min=1), help="Tokens in a row.  [default: 128, or the bound]")
@click.option(
    "--dim",
    "dims",
    type=Sized(),
    multiple=True,
    callback=as_dict,
    metavar="NAME=SIZE",
    help="Another size, such as height=640.  [default: 128, or the bound]",
)
@click.option(
    "--shortest",
    type=click.IntRange(min=1),
    help="Rows of so many tokens to all, evenly.  [default: no padding]",
)
@click.option("--function", metavar="NAME", help="Of the model's functions this one.  [default: the first]")
@click.option(
    "--past", type=click.IntRange(min=0), help="Positions that the states hold before each run.  [default: 0]"
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads.  [default: the runtime's]")
@click.option("--duration", type=Seconds(), default="3s", show_default=True, help="How long to measure.")
@click.option("--variant", help="Use this code variant rather than the best for the CPU.")
@click.option("--profile", is_flag=True, help="Time every kernel and compare it with the machine's peak.")
@click.option(
    "--vs", metavar="OTHER", type=click.Path(path_type=Path), help="A second artifact, run in turns."
)
@click.option(
    "-p",
    "--prompt-tokens",
    type=Counts(),
    metavar="N,N",
    help="Of prompts, where text is generated.  [default: 512]",
)
@click.option("-n", "--new-tokens", type=Counts(), metavar="N,N", help="New ones.  [default: 128]")
@click.option("-d", "--depth", type=Counts(), metavar="N,N", help="Tokens held before.  [default: 0]")
@click.option("-b", "--texts", type=Counts(), metavar="N,N", help="Texts at once.  [default: 1]")
@click.option("-r", "--repetitions", type=click.IntRange(min=1), help="Of each.  [default: 5]")
@no_check_option
@json_option
def command(
    artifact: Path,
    batch: int | None,
    seq: int | None,
    dims: dict[str, Asked] | None,
    shortest: int | None,
    function: str | None,
    past: int | None,
    threads: int | None,
    duration: float,
    variant: str | None,
    profile: bool,
    vs: Path | None,
    no_check: bool,
    as_json: bool,
    **generation: Any,
) -> None:
    """Measure the latency of ARTIFACT on random input of one shape, or how fast it generates text."""
    asked = {name: value for name, value in generation.items() if value is not None}
    if vs is not None and profile:
        raise click.UsageError("--profile measures one artifact; use it without --vs.")
    given = (("batch", batch), ("seq", seq), ("shortest", shortest), ("function", function))
    options: dict[str, Any] = {name: size for name, size in given if size is not None}
    if ranges := [name for name, size in (dims or {}).items() if not isinstance(size, int)]:
        raise click.UsageError(f"--dim {ranges[0]} is one size here.")
    paths = [require_artifact(path) for path in (artifact, vs) if path is not None]

    import llmc
    from llmc.runtime.arrays import check_names

    models = [llmc.load(path, threads=threads, variant=variant, check_weights=not no_check) for path in paths]
    check_names("dim", dims or {}, models[0].dims)
    options |= dims or {}
    whole = not (options or profile or vs is not None or past is not None)
    if asked or (whole and models[0].generates):
        if not whole:
            raise click.UsageError(
                "A test of generation takes -p, -n, -d, -b and -r, and no sizes, --profile or --vs."
            )
        _tell(_generation(models[0], asked), as_json)
        return
    if past is not None:
        options |= dict.fromkeys(lengths_of(models[0]), past)
    report: Any
    if vs is None:
        report = models[0].benchmark(**options, duration=duration, profile=profile)
    else:
        from llmc.runtime import compare

        report = compare(models[0], models[1], **options, duration=duration)
    _tell(report, as_json)


def _tell(report: Any, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(str(report))


def _generation(model: Any, asked: dict[str, Any]) -> Any:
    """The tests asked for; those of the defaults that the model has room for."""
    from llmc.runtime.prompts import generation_of
    from llmc.runtime.source_benchmark import Sources

    entry, depths = generation_of(model), asked.pop("depth", [0])
    room = entry.max_length - max(depths) - 1
    usual = {"prompt_tokens": [min(512, room)], "new_tokens": [min(128, room)]}
    if entry.encoder is not None:
        longest = Sources.of(model, entry.encoder).longest
        usual = {"prompt_tokens": [min(512, longest)], "new_tokens": [min(128, entry.max_length - 1)]}
    if set(asked) & set(usual):
        usual = {name: [] for name in usual}
    return model.benchmark_generation(**{**usual, **asked}, depths=depths)
