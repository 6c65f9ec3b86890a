"""`llmc opt`: run passes on a model and look at the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmc.compiler.cli.output import is_artifact, json_option, print_json, require_folder
from llmc.compiler.frontends.dispatch import is_model_file
from llmc.errors import LlmcError

_EPILOG = """\b
Examples:
  llmc opt ./my-model                                   the imported graph after -O3
  llmc opt ./my-model -O0                               as imported
  llmc opt ./my-model --passes "fold,cse" --time-passes
  llmc opt ./my-model --passes "./my_pass.py:MyPass" --print-after all
  llmc opt ./my-model --passes "fuse" -o fused.txt      the graph's text goes to a file
  llmc opt fused.txt --weights ./my-model --passes "cse"   and can be read again with the model's weights

\b
The manager checks the graph after every pass. Graphs print to stdout, everything else to stderr.
"""


@click.command("opt", epilog=_EPILOG, short_help="Run passes on a model and print the graph.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--passes", metavar="PIPELINE", help="Passes to run, joined by commas.")
@click.option(
    "-O", "level", type=click.IntRange(0, 3), default=3, show_default=True, help="A level's pipeline."
)
@click.option(
    "--task", default="auto", show_default=True, help="What to compute, such as text-classification."
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="The model that a graph's text was made from."
)
@click.option(
    "--print-after", metavar="NAME|all", help="Print the graph after the pass NAME, or after every pass."
)
@click.option(
    "--verify-each", is_flag=True, help="Also run the graph before and after each pass and compare."
)
@click.option("--time-passes", is_flag=True, help="Print each pass's time and what it changed.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the final graph there.")
@json_option
def command(
    model: Path,
    passes: str | None,
    level: int,
    task: str,
    weights: Path | None,
    print_after: str | None,
    verify_each: bool,
    time_passes: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Import MODEL (a folder, an .onnx or .pt2 file, or a graph's text file), run passes, and print the graph."""
    if not model.is_file():
        require_folder(model, "a model")
    from llmc.compiler.pipeline import Pipeline
    from llmc.passes import LEVELS, PASSES

    text = LEVELS[level] if passes is None else passes
    pipeline = Pipeline.parse(text, PASSES)
    graph = read_graph(model, task, weights)
    observers = [_Verify(graph, pipeline)] if verify_each else []
    graph, report = pipeline.run(graph, *observers, print_after=[print_after] if print_after else [])
    if time_passes and not as_json:
        click.echo(str(report), err=True)
    if output is not None:
        write_text(output, str(graph))
    if as_json:
        print_json(_as_dict(str(pipeline), graph, report))
    elif output is None:
        click.echo(str(graph), nl=False)


def read_graph(model: Path, task: str, weights: Path | None = None) -> Any:
    """The graph of a model folder or file, or of a text file that `llmc opt -o` or a test wrote.

    Small constants are written out in the text; `weights` is the model folder that holds the others.

    Raises:
        LlmcError: nothing there, it is neither, or a weight of the text is not in `weights`.
    """
    if model.is_file() and not is_model_file(model):
        return _read_text(model, task, weights)
    if is_artifact(model):
        raise LlmcError(
            "this is an artifact; its graph is gone", at=str(model), hint="give the model's own folder"
        )
    from llmc.compiler.frontends import dispatch

    return dispatch.load(model, task=task).graph


def _read_text(file: Path, task: str, weights: Path | None) -> Any:
    from llmc.compiler.text import parse_graph, weights_of

    try:
        text = file.read_text()
    except UnicodeDecodeError:
        hint = "give a model folder, an .onnx or .pt2 file, or a graph written by `llmc opt -o`"
        raise LlmcError("not a graph's text", at=str(file), hint=hint) from None
    known = weights_of(read_graph(require_folder(weights, "a model"), task)) if weights is not None else {}
    try:
        return parse_graph(text, known)
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
            "declined": [{"rule": e.rule, "at": str(e.source), "reason": e.reason} for e in run.declined],
        }
        for run in report.runs
    ]
    return {"pipeline": pipeline, "passes": runs, "graph": str(graph)}


class _Verify:
    """Holds each pass to its word: runs the interpreter on one random input before and after it."""

    def __init__(self, graph: Any, pipeline: Any) -> None:
        from llmc.compiler import interpret

        self._run = interpret.run
        self._inputs = sample_inputs(graph)
        self._before = interpret.run(graph, self._inputs)
        self._promises = iter([step.change.keeps for step in pipeline.steps])

    def __call__(self, run: Any, graph: Any) -> None:
        keeps = next(self._promises)
        if not run.changed:
            return
        after = self._run(graph, self._inputs)
        for name, old in self._before.items():
            _hold(run.name, keeps, name, _apart(old, after[name]))
        self._before = after


def _apart(a: Any, b: Any) -> float:
    """Largest difference as a share of `a`'s largest magnitude; inf where only one of them is a number."""
    import numpy as np

    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    apart = float(np.abs(a - b).max() / (np.abs(a).max() or 1.0))
    return float("inf") if apart != apart else apart


def _hold(text: str, keeps: Any, name: str, apart: float) -> None:
    """Report the difference that a pass made and refuse more than it declares."""
    click.echo(f"{text}: {name} differs by {apart:.1e} of its scale, promised {keeps}", err=True)
    allowed = {"exact": 0.0, "close": keeps.tolerance}.get(keeps.kind, float("inf"))
    if apart > allowed:
        found = f"largest difference {apart:.3g} of the output's scale"
        raise LlmcError(f"pass {text} promises {keeps} and breaks it", at=f"output {name}", found=found)


def sample_inputs(graph: Any) -> dict[str, Any]:
    """Random legal values for every input, each dim at 5 or its nearest bound; seeded."""
    import numpy as np

    from llmc.compiler.dims import evaluate
    from llmc.compiler.graph import DTYPES

    sizes = {name: min(max(5, low), high) for name, (low, high) in graph.dims.items()}
    rng, values = np.random.default_rng(0), {}
    for node in graph.inputs:
        shape, kind = tuple(evaluate(d, sizes) for d in node.shape), DTYPES[node.dtype]
        if kind.kind == "f":
            values[node.attributes["name"]] = rng.standard_normal(shape).astype(kind)
            continue
        low, high = node.attributes.get("low"), node.attributes.get("high")
        low, high = (0 if low is None else low), (1 if high is None else high)
        values[node.attributes["name"]] = rng.integers(low, high + 1, shape).astype(kind)
    return values
