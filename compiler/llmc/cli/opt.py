"""`llmc opt`: run passes on a model and look at the graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import click

from llmc.cli import values
from llmc.cli.output import (
    add_pass_option,
    extension_option,
    is_artifact,
    json_option,
    print_json,
    require_folder,
)
from llmc.compiler.frontends.dispatch import is_model_file
from llmc.errors import LlmcError

_EPILOG = """\b
Examples:
  llmc opt ./my-model                                   the imported graph after -O3
  llmc opt ./my-model -O0                               as imported
  llmc opt ./my-model --passes "fold,cse" --time-passes
  llmc opt ./my-model --passes "./my_pass.py:MyPass" --print-after all
  llmc opt ./my-model --add-pass "./my_pass.py:MyPass@compress"
  llmc opt ./my-model --passes "fuse" -o fused.txt      the graph's text goes to a file
  llmc opt fused.txt --weights ./my-model --passes "cse"   and can be read again with the model's weights

\b
The manager checks the graph after every pass. With --verify-each a pass that breaks its promise is traced to
a rewrite and a node, and a file is written that `llmc opt FILE --verify-each` runs again. Graphs print to
stdout, everything else to stderr.
"""


@click.command("opt", epilog=_EPILOG, short_help="Run passes on a model and print the graph.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--passes", metavar="PIPELINE", help="Passes to run instead of the level's, joined by commas.")
@add_pass_option
@click.option("--only-passes", metavar="PIPELINE", help="Passes to run, and nothing else.")
@click.option("--calib", metavar="FILE|auto", help="Samples of inputs, for passes that want some.")
@click.option(
    "-O", "level", type=click.IntRange(0, 3), default=3, show_default=True, help="A level's pipeline."
)
@click.option(
    "--task",
    default="auto",
    show_default=True,
    shell_complete=values.tasks,
    help="What to compute, such as text-classification.",
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="The model that a graph's text was made from."
)
@click.option(
    "--print-after", metavar="NAME|all", help="Print the graph after the pass NAME, or after every pass."
)
@click.option(
    "--verify-each", is_flag=True, help="Hold each pass to its promise by running the graph before and after."
)
@click.option("--time-passes", is_flag=True, help="Print each pass's time and what it changed.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the final graph there.")
@click.option("--ignore-unused-weights", is_flag=True, help="Leave out heads that the task has no use for.")
@extension_option
@json_option
def command(
    model: Path,
    passes: str | None,
    add_passes: tuple[str, ...],
    only_passes: str | None,
    calib: str | None,
    level: int,
    task: str,
    weights: Path | None,
    print_after: str | None,
    verify_each: bool,
    time_passes: bool,
    output: Path | None,
    ignore_unused_weights: bool,
    as_json: bool,
) -> None:
    """Import MODEL (a folder, an .onnx or .pt2 file, or a graph's text file), run passes, and print the graph."""
    if not model.is_file():
        require_folder(model, "a model")
    asked = {"level": level, "passes": passes, "add_passes": add_passes, "only_passes": only_passes}
    pipeline = _pipeline(asked)  # a slip shows before the import
    given = _samples(pipeline, calib)
    graph, own, tokenizer = read_graph(model, task, weights, ignore_unused_weights)
    if passes is None and only_passes is None and own is not None:  # a reproducer names its pipeline
        pipeline = _pipeline({**asked, "passes": own})
    shown = [print_after] if print_after else []
    with given(tokenizer):
        graph, report = _run(pipeline, graph, shown, verify_each)
    if time_passes and not as_json:
        click.echo(str(report), err=True)
    if output is not None:
        write_text(output, str(graph))
    if as_json:
        print_json(_as_dict(str(pipeline), graph, report))
    elif output is None:
        click.echo(str(graph), nl=False)


def _pipeline(asked: dict[str, Any]) -> Any:
    from llmc.options import Options, placed_passes

    return placed_passes(cast(Options, asked)).pipeline


def _samples(pipeline: Any, calib: str | None) -> Any:
    """Tokenizer -> a context in which passes may ask for the samples of `calib`."""
    from llmc.compiler.given import Given, giving
    from llmc.quantisation import Quantisation

    wanted = any(step.change.wants_samples for step in pipeline.steps)
    data = Quantisation(calib=calib, wanted=wanted)
    return lambda tokenizer: giving(
        Given(partial(data.samples, tokenizer=tokenizer) if calib else None, tokenizer)
    )


def _run(pipeline: Any, graph: Any, shown: list[str], verify_each: bool) -> Any:
    from llmc.compiler.promises import run_verified

    if not verify_each:
        return pipeline.run(graph, print_after=shown)
    return run_verified(pipeline, graph, print_after=shown, say=partial(click.echo, err=True))


def read_graph(
    model: Path, task: str, weights: Path | None = None, ignore_unused: bool = False
) -> tuple[Any, str | None, Any]:
    """The graph of a model folder or file, or of a text that `llmc opt -o` or a test wrote.

    With it its own pipeline, if the text names one, and the model's tokenizer, if it has one.

    Small constants are written out in the text; `weights` is the model folder that holds the others.

    Raises:
        LlmcError: nothing there, it is neither, or a weight of the text is not in `weights`.
    """
    if model.is_file() and not is_model_file(model):
        return _read_text(model, task, weights, ignore_unused)
    if is_artifact(model):
        raise LlmcError(
            "this is an artifact; its graph is gone", at=str(model), hint="give the model's own folder"
        )
    from llmc.compiler.frontends import dispatch

    imported = dispatch.load(model, task=task, ignore_unused=ignore_unused)
    return imported.graph, None, imported.tokenizer


def _read_text(
    file: Path, task: str, weights: Path | None, ignore_unused: bool
) -> tuple[Any, str | None, Any]:
    from llmc.compiler.reproducer import read_text
    from llmc.compiler.text import weights_of

    known, tokenizer = {}, None
    if weights is not None:
        folder = require_folder(weights, "a model")
        whole, _, tokenizer = read_graph(folder, task, ignore_unused=ignore_unused)
        known = weights_of(whole)
    try:
        return (*read_text(file, known), tokenizer)
    except UnicodeDecodeError:
        hint = "give a model folder, an .onnx or .pt2 file, or a graph written by `llmc opt -o`"
        raise LlmcError("not a graph's text", at=str(file), hint=hint) from None
    except LlmcError as error:
        if not error.problem.startswith("no weight"):
            raise
        hint = "--weights FOLDER names the model it was made from; weights made by passes are not in there"
        raise LlmcError(error.problem, at=error.at, found=error.found, hint=hint) from None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _as_dict(pipeline: str, graph: Any, report: Any) -> dict[str, Any]:
    runs = [
        {
            "pass": run.name,
            "seconds": run.seconds,
            "nodes_before": run.nodes_before,
            "nodes_after": run.nodes_after,
            "applied": dict(run.applied),
            "effects": [
                {"of": e.what, "changed": e.changed, "share": e.share, "left": dict(e.left)}
                for e in run.effects
            ],
            "declined": [{"rule": e.rule, "at": str(e.source), "reason": e.reason} for e in run.declined],
        }
        for run in report.runs
    ]
    return {"pipeline": pipeline, "passes": runs, "graph": str(graph)}
