"""`llmc opt`: run passes on a model and look at the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import click

from llmc.cli import values
from llmc.cli.fixed_dims import dim_option
from llmc.cli.output import (
    adapter_options,
    add_pass_option,
    extension_option,
    is_artifact,
    json_option,
    print_json,
    require_folder,
    stats_options,
)
from llmc.cli.verbosity import is_quiet
from llmc.compiler.frontends.axes import Asked
from llmc.compiler.frontends.dispatch import is_model_file
from llmc.errors import LlmcError

_EPILOG = """\b
Examples:
  llmc opt ./my-model                                   the imported graph after -O3
  llmc opt ./my-model -O0                               as imported
  llmc opt ./my-model --passes "fold,cse" --time-passes
  llmc opt ./my-model --passes "./my_pass.py:MyPass" --print-after all
  llmc opt ./my-model --add-pass "./my_pass.py:MyPass@compress"
  llmc opt ./my-model --passes "fuse" -o fused.txt      the graph goes to fused.txt, its weights to fused.npz
  llmc opt fused.txt --passes "cse"                     and is a model for every command that takes one
  llmc opt ./my-model -o model.onnx                     an ONNX file, for ONNX Runtime and others
  llmc opt plain.txt --weights plain.onnx               a text alone, and the model that has its weights

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
@stats_options
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
    "--weights", type=click.Path(path_type=Path), help="The model of a text that has no weights beside it."
)
@click.option(
    "--print-after", metavar="NAME|all", help="Print the graph after the pass NAME, or after every pass."
)
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write the graphs of --print-after there, with their weights, instead of printing them.",
)
@click.option(
    "--verify-each", is_flag=True, help="Hold each pass to its promise by running the graph before and after."
)
@click.option("--time-passes", is_flag=True, help="Print each pass's time and what it changed.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write the final graph there: FILE.txt and FILE.npz, or FILE.onnx.",
)
@click.option("--function", metavar="NAME", help="Of several functions the one that FILE.onnx is to hold.")
@click.option("--external-data", is_flag=True, help="Put the weights of FILE.onnx into FILE.onnx.data.")
@click.option("--ignore-unused-weights", is_flag=True, help="Leave out heads that the task has no use for.")
@adapter_options
@dim_option
@extension_option
@json_option
def command(
    model: Path,
    passes: str | None,
    add_passes: tuple[str, ...],
    only_passes: str | None,
    calib: str | None,
    calib_stats: Path | None,
    calib_merge: tuple[Path, ...],
    level: int,
    task: str,
    weights: Path | None,
    print_after: str | None,
    keep: Path | None,
    verify_each: bool,
    time_passes: bool,
    output: Path | None,
    function: str | None,
    external_data: bool,
    ignore_unused_weights: bool,
    base: Path | None,
    adapter: Path | None,
    dims: dict[str, Asked] | None,
    fixed: dict[str, float] | None,
    as_json: bool,
) -> None:
    """Import MODEL (a folder, an .onnx or .pt2 file, or a graph's text file), run passes, and print the graph."""
    from llmc.compiler.module_text import text_of

    write = _writer(output, function, external_data)
    asked = {"level": level, "passes": passes, "add_passes": add_passes, "only_passes": only_passes}
    pipeline = _pipeline(asked)  # a slip shows before the import
    given = _samples(pipeline, calib, calib_stats, calib_merge)
    imported = read_model(model, task, weights, ignore_unused_weights, base, adapter, dims, fixed)
    if passes is None and only_passes is None and imported.pipeline is not None:  # of a reproducer
        pipeline = _pipeline({**asked, "passes": imported.pipeline})
    with given(imported.tokenizer):
        module, reports = _run(pipeline, imported.module, print_after, keep, verify_each)
    if time_passes and not as_json:
        click.echo(_times(reports), err=True)
    write(imported, module, str(pipeline))
    if as_json:
        print_json(_as_dict(str(pipeline), module, reports))
    elif output is None:
        click.echo(text_of(module), nl=False)


def _writer(output: Path | None, function: str | None, external: bool) -> Any:
    """(imported, module, pipeline) -> None, which writes what `-o` asks for; slips show before the import."""
    is_onnx = output is not None and output.suffix.lower() == ".onnx"
    for option, given in (("--function", function is not None), ("--external-data", external)):
        if given and not is_onnx:
            raise LlmcError(f"{option} is for ONNX files", hint="-o FILE.onnx writes one")
    if output is None:
        return lambda imported, module, pipeline: None
    if is_onnx:
        from llmc.compiler.to_onnx import file
        from llmc.compiler.to_onnx.imported import write_imported

        file.want_place(output)
        return partial(write_imported, output, function=function, external=external)
    from llmc.compiler.frontends import graph_text
    from llmc.compiler.graph_file import want_place

    want_place(output)
    return lambda imported, module, pipeline: graph_text.write(output, imported, module)


def _pipeline(asked: dict[str, Any]) -> Any:
    from llmc.options import Options, placed_passes

    return placed_passes(cast(Options, asked)).pipeline


def _samples(pipeline: Any, calib: str | None, stats: Path | None, merged: tuple[Path, ...]) -> Any:
    """Tokenizer -> a context in which passes may ask for the samples of `calib`, and what is known of others."""
    from llmc.compiler.given import Given, giving
    from llmc.compiler.kept_statistics import Statistics
    from llmc.quantisation import Quantisation

    wanted = any(step.change.wants_samples for step in pipeline.steps)
    data = Quantisation(calib=calib, wanted=wanted, stats=stats, merged=merged)

    @contextmanager
    def known(tokenizer: Any) -> Iterator[None]:
        read = partial(data.samples, tokenizer=tokenizer) if calib else None
        kept = Statistics(stats, merged, say=lambda line: None if is_quiet() else click.echo(line, err=True))
        with kept.opened(), giving(Given(read, tokenizer, kept=kept if stats or merged else None)):
            yield

    return known


def _run(pipeline: Any, module: Any, print_after: str | None, keep: Path | None, verify_each: bool) -> Any:
    """The module after the passes, and a report for each function."""
    from llmc.compiler.module import Module
    from llmc.compiler.observers import Dump, want_passes
    from llmc.compiler.promises import run_verified
    from llmc.compiler.verify import verify_module

    names = [print_after] if print_after else []
    want_passes(names, pipeline)
    said: dict[str, Any] = {"print_after": () if keep else names}
    run = pipeline.run
    if verify_each:
        run, said["say"] = partial(run_verified, pipeline), partial(click.echo, err=True)
    observers = () if keep is None else (Dump(keep, weights=True, names=names or ["all"]),)
    found = {name: run(graph, *observers, **said) for name, graph in module.functions.items()}
    after = Module({name: graph for name, (graph, _) in found.items()})
    verify_module(after)
    return after, {name: report for name, (_, report) in found.items()}


def _times(reports: Mapping[str, Any]) -> str:
    if len(reports) == 1:
        return str(*reports.values())
    return "\n".join(f"function {name}\n{report}" for name, report in reports.items())


def read_model(
    model: Path,
    task: str,
    weights: Path | None = None,
    ignore_unused: bool = False,
    base: Path | None = None,
    adapter: Path | None = None,
    dims: Mapping[str, Asked] | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Any:
    """What a model folder or file holds, or a text that `llmc opt -o` or a test wrote: `Imported`.

    Small constants are written out in a text, the others lie beside it; `weights` is a model that holds what does not.

    Raises:
        LlmcError: nothing there, it is neither, or a weight of the text is nowhere.
    """
    from llmc.compiler.frontends import dispatch, graph_text

    if is_artifact(model):
        raise LlmcError(
            "this is an artifact; its graph is gone", at=str(model), hint="give the model's own folder"
        )
    if not is_model_file(model):
        require_folder(model, "a model")
    if weights is None:
        options: dict[str, Any] = {"base": base, "adapter": adapter, "dims": dims, "fixed": fixed}
        return dispatch.load(model, task=task, ignore_unused=ignore_unused, **options)
    if not model.is_file() or model.suffix.lower() in (".onnx", ".pt2"):
        raise LlmcError("--weights is for a graph's text; this model has its own", at=str(model))
    if is_artifact(weights):
        raise LlmcError("--weights takes a model; this is an artifact", at=str(weights))
    known = dispatch.weights_for(_there(weights), task, ignore_unused)
    return graph_text.load(model, task, known=known)


def _there(weights: Path) -> Path:
    return weights if weights.is_file() else require_folder(weights, "a model")


def _as_dict(pipeline: str, module: Any, reports: Mapping[str, Any]) -> dict[str, Any]:
    from llmc.compiler.module_text import text_of

    runs = {name: [_run_as_dict(run) for run in report.runs] for name, report in reports.items()}
    passes = next(iter(runs.values())) if len(runs) == 1 else runs
    return {"pipeline": pipeline, "passes": passes, "graph": text_of(module)}


def _run_as_dict(run: Any) -> dict[str, Any]:
    return {
        "pass": run.name,
        "seconds": run.seconds,
        "nodes_before": run.nodes_before,
        "nodes_after": run.nodes_after,
        "applied": dict(run.applied),
        "effects": [
            {"of": e.what, "changed": e.changed, "share": e.share, "left": dict(e.left)} for e in run.effects
        ],
        "declined": [{"rule": e.rule, "at": str(e.source), "reason": e.reason} for e in run.declined],
    }
