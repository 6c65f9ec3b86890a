"""`llmc compile`: a model -> an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from llmc.cli import values
from llmc.cli.fixed_dims import dim_option
from llmc.cli.gained import print_gains
from llmc.cli.output import (
    Progress,
    Seconds,
    add_pass_option,
    base_option,
    extension_option,
    json_option,
    print_json,
    print_table,
    quant_option,
    size_text,
    stats_options,
    time_text,
)
from llmc.cli.verbosity import is_quiet
from llmc.cli.within import budget_options, print_within, run_within, taken
from llmc.compiler.frontends.hub import name_of
from llmc.errors import LlmcError, many

_EPILOG = """\b
Examples:
  llmc compile ./my-model -o my-model.llmc
  llmc compile ./my-model --target x86 --max-seq 256 -o my-model.llmc
  llmc compile model.onnx -o my-model.llmc             also .pt2, written by torch.export.save
  llmc compile ./my-adapter --base ./my-model -o m.llmc  a PEFT adapter, merged into its base
  llmc compile ./my-model --adapter fr=./french --adapter de=./german -o m.llmc  chosen by session
  llmc compile ./seed-1 --member ./seed-2 --member ./seed-3 --ensemble mean -o m.llmc  several as one
  llmc compile ./my-model --quant int8 -o small.llmc
  llmc compile ./my-model --quant w4 --calib texts.txt -o tiny.llmc    rounded by GPTQ
  llmc compile ./my-model --quant w4 --calib texts.txt --calib-stats kept -o tiny.llmc  goes on if stopped
  llmc compile ./my-model -O1 -o exact.llmc            only the rewrites that keep every bit
  llmc compile ./my-model --passes "fold,cse" -o plain.llmc
  llmc compile ./my-model --add-pass "./my_pass.py:MyPass{width=4}@compress" -o m.llmc
  llmc compile ./my-model --prune 0.3 --share 256 -o small.llmc        measure it: llmc eval --help
  llmc compile ./my-model --prune heads:0.25 --prune neurons:0.25 -o fast.llmc
  llmc compile ./my-model --max-drop 0.5% --data test.tsv -o m.llmc    each layer as it bears it
  llmc compile ./my-model --max-size 30MB --max-latency 5ms --data test.tsv --front front.html -o m.llmc
  llmc compile ./my-model --tune -o m.llmc             the fastest kernels for this very machine
  llmc compile ./my-model --target rpi5 --emit executable -o m.llmc
  llmc compile ./my-model --keep build -o m.llmc       leaves graphs and generated code in build/

\b
MODEL is a Hugging Face folder (config.json, *.safetensors, tokenizer.json), an .onnx, .pt2 or .gguf file.
Nothing is downloaded and no code of the model is run. One artifact serves every batch size and sequence
length up to the bounds. The output appears under its name only when it is whole: a failed compile leaves an
older artifact as it was.
"""


Choices = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@click.command("compile", epilog=_EPILOG, short_help="Compile a model into a native artifact.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Artifact to write.  [default: NAME.llmc]"
)
@click.option(
    "--target",
    default="native",
    show_default=True,
    shell_complete=values.targets,
    help="Where it will run; `llmc targets` lists them.",
)
@click.option(
    "--task",
    default="auto",
    show_default=True,
    shell_complete=values.tasks,
    help="What to compute, such as text-classification.",
)
@click.option(
    "-O", "level", type=click.IntRange(0, 3), default=3, show_default=True, help="Optimisation level."
)
@click.option(
    "--passes",
    metavar="PIPELINE",
    help="A pipeline instead of the level's; what the target needs and ragged execution stay.",
)
@add_pass_option
@click.option("--only-passes", metavar="PIPELINE", help="Run these passes and nothing else.")
@click.option(
    "--prune",
    metavar="SPEC",
    multiple=True,
    help="Zeros, or less: 0.3, 2:4, 4x1:0.8, 16x4:0.8, heads:0.25, neurons:0.25, channels:0.3, options; repeatable.",
)
@click.option("--share", metavar="SPEC", help="Cluster weights to 16 or 256 values, or options of the pass.")
@click.option("--factorize", metavar="SPEC", help="Two thin products for one: a rank, or energy=0.9.")
@click.option(
    "--allow-noop",
    is_flag=True,
    help="Compile though an option changes nothing, which is an error otherwise.",
)
@click.option("--verify-each", is_flag=True, help="Hold each pass to its promise by the interpreter; slow.")
@quant_option("int8: products and tables; int8-static: with calibrated ranges; fp16: weights and tables.")
@click.option(
    "--attention",
    type=click.Choice(["int8", "float"]),
    default="int8",
    show_default=True,
    help="What int8 does with attention, on CPUs.",
)
@click.option(
    "--group",
    type=click.IntRange(min=0),
    metavar="COLUMNS",
    help="Of w8, w4 and w4a8: how many share a scale; 0: a row.  [default: w8 128, w4 32]",
)
@click.option("--zero-points", is_flag=True, help="Of w8, w4 and w4a8: which level is 0, for each group.")
@click.option(
    "--calib",
    metavar="FILE|FOLDER|auto",
    help="Samples (a folder: of images), for int8-static, for better rounding of w8 and w4, and passes that want some.",
)
@click.option(
    "--calib-method",
    type=click.Choice(["minmax", "percentile", "entropy"]),
    default="percentile",
    show_default=True,
    help="How int8-static chooses ranges.",
)
@stats_options
@click.option(
    "--state-dtype",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="How sessions keep keys and values; measure it: llmc eval --help.",
)
@budget_options
@click.option("--max-batch", type=click.IntRange(min=1), help="Largest batch.  [default: the compiler's]")
@click.option("--max-seq", type=click.IntRange(min=1), help="Longest sequence.  [default: the model's]")
@dim_option
@click.option(
    "--padding",
    type=click.Choice(["zero", "computed"]),
    default="zero",
    show_default=True,
    help="What outputs by token hold at padding: zeros cost nothing.",
)
@click.option(
    "--matmul",
    type=click.Choice(["fma", "int8x3"]),
    default="fma",
    show_default=True,
    help="int8x3: float32 products in three parts of 8 bits, faster on processors with AMX.",
)
@click.option("--tune", is_flag=True, help="Search for the fastest tiles of each product on this machine.")
@click.option(
    "--tune-time",
    type=Seconds(zero=True),
    default="60s",
    show_default=True,
    help="For all searches; 0 takes what earlier ones found.",
)
@click.option("--keep", metavar="DIR", type=click.Path(path_type=Path), help="Keep intermediate files there.")
@click.option(
    "--emit",
    type=click.Choice(["shared", "static", "executable"]),
    default="shared",
    show_default=True,
    help="Beside module.so: libmodel.a, or a program `run`.",
)
@click.option("--prefix", default="", metavar="NAME", help="Before every symbol of libmodel.a.")
@click.option("--cc", metavar="COMMAND", help="C compiler.  [default: the ziglang package's]")
@click.option(
    "--ignore-unused-weights",
    is_flag=True,
    help="Leave out heads that the task has no use for; they are an error otherwise.",
)
@base_option
@click.option(
    "--adapter",
    "adapters",
    metavar="[NAME=]DIR",
    multiple=True,
    help="A PEFT adapter to merge into MODEL, its base; with a NAME it stays beside it, for sessions to choose, and is "
    "repeatable.",
)
@click.option(
    "--member",
    "members",
    metavar="MODEL",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Another model of the same inputs, tokenizer and labels, to run together with the first; repeatable.",
)
@click.option(
    "--ensemble",
    metavar="mean|vote|FILE.json|stack:FILE",
    help="How members' answers become one; FILE.json has their weights.  [default: mean]",
)
@click.option("--name", help="Name in the manifest.  [default: the folder's]")
@extension_option
@json_option
def command(
    model: Path,
    output: Path | None,
    as_json: bool,
    adapters: Sequence[str],
    members: Sequence[Path],
    **options: Any,
) -> None:
    """Compile MODEL into an artifact: native code, weights, a C header, a benchmarker, no other library."""
    options |= adapters_of(adapters)
    if options["ensemble"] and not members:
        raise click.UsageError("--ensemble is of several models: give the others by --member MODEL.")
    several = "-ensemble" if members else ""
    output = output or Path(f"{model.resolve().stem if model.is_file() else name_of(model)}{several}.llmc")
    if (within := taken(options)) is not None:
        if members or options["adapters"]:
            raise LlmcError("a budget is for one model without adapters beside it", at="--member, --adapter")
        found = run_within(model, output, within, options)
        if as_json:
            print_json(found.to_dict())
        elif not is_quiet():
            print_within(found)
            print_report(found.compiled)
        return
    report = run_compile([model, *members] if members else model, output, **options)
    if as_json:
        print_json(report.to_dict())
        return
    if is_quiet():
        return
    if options["tune"]:
        print_tuning(report.products, report.target)
    print_effects(report.effects)
    print_gains(report.gains, report.target)
    print_report(report)


def adapters_of(given: Sequence[str]) -> dict[str, Any]:
    """The adapter to merge, and those that stay beside the model by name."""
    merged, beside = [], {}
    for text in given:
        name, found, folder = text.partition("=")
        if not found or Path(text).exists():
            merged.append(Path(text))
        elif name in beside:
            raise click.UsageError(f"--adapter {name}= is given twice.")
        else:
            beside[name] = folder
    if len(merged) > 1:
        raise click.UsageError("one adapter is merged; give the others a name: --adapter NAME=DIR")
    return {"adapter": merged[0] if merged else None, "adapters": beside}


def run_compile(model: Path | Sequence[Path], output: Path, **options: Any) -> Any:
    """`llmc.driver.compile` with progress on stderr; returns its report."""
    with Progress("compile") as progress:
        progress("loading the compiler", 0.0)
        from llmc import driver

        return driver.compile(model, output, progress=progress, say=progress.say, **options)


def print_effects(effects: Sequence[Mapping[str, Any]]) -> None:
    """What each option did, and what it left for which reason."""
    if not effects:
        return
    columns = ["option", "pass", ">changed", "of", ">values", "left"]
    print_table("", columns, map(_effect_row, effects))


def _effect_row(effect: Mapping[str, Any]) -> tuple[object, ...]:
    left = effect["left"]
    kept = ", ".join(f"{count} {reason}" for reason, count in left.items())
    things = many(effect["changed"] + sum(left.values()), effect["of"])
    return effect["option"], effect["pass"], effect["changed"], things, f"{effect['share']:.1%}", kept


def print_tuning(products: Sequence[Mapping[str, Any]], target: str) -> None:
    """What was found for each product by the backend of the target of that name."""
    if not products:
        click.echo("nothing was tuned: the model has no float product with a weight of its own")
        return
    columns = ["product", ">calls", ">tried", ">time of the default's", "schedule"]
    from llmc.targets.backends import backend_of
    from llmc.targets.host import find_target

    choices = backend_of(find_target(target)).choices
    print_table("", columns, [_tuning_row(product, choices) for product in products])


_DEFAULT = {True: "default: nothing was faster", False: "default: nothing was faster in the time given"}


def _tuning_row(product: Mapping[str, Any], choices: Choices) -> tuple[object, ...]:
    found = product.get("tuned")
    if found is None:
        return product["name"], product["calls"], 0, "", "default: there was no time to search"
    if found["ratio"] == 1:
        return product["name"], product["calls"], found["tried"], "1", _DEFAULT[found["complete"]]
    low, high = found["interval"]
    schedule = ", ".join(f"{name} {value}" for name, value in choices(product["schedule"]).items())
    return (
        product["name"],
        product["calls"],
        found["tried"],
        f"{found['ratio']:.3f} ({low:.3f}-{high:.3f})",
        schedule,
    )


def print_report(report: Any) -> None:
    """Times by stage, sizes by file, and what to type next."""
    print_table("", ["stage", ">time"], [(k, time_text(v)) for k, v in dict(report.seconds).items()])
    print_table("", ["file", ">size"], [(k, size_text(v)) for k, v in dict(report.sizes).items()])
    for loss in report.losses:
        click.echo(
            f"{loss['pass']} moves {loss['output']} by {loss['difference']:.1e} of its scale on random inputs"
        )
    if report.losses:
        click.echo("what that does to answers: llmc eval\n")
    click.echo(f"wrote {report.path}\n\nnext:  {_next(report)}\n       llmc inspect {report.path}")


def _next(report: Any) -> str:
    """What measures it, where it runs."""
    if report.runs_here:
        return f"llmc bench {report.path}"
    return f"copy {report.path} to a machine for which {report.target} is, and run {report.path.name}/bench there"
