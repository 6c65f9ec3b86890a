"""`llmc explain`: where a node came from, what rewrote it, and why a rule did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import click

from llmc.cli.gained import line_of, print_gains, print_layers
from llmc.cli.output import (
    adapter_options,
    extension_option,
    is_artifact,
    json_option,
    pass_options,
    print_json,
    print_table,
    require_artifact,
    require_folder,
    time_text,
)
from llmc.errors import LlmcError, many

_EPILOG = """\b
Examples:
  llmc explain ./my-model                             what was fused how often, and what nearly was
  llmc explain ./my-model encoder.layer.0.intermediate
  llmc explain ./my-model %12                         a node after the passes
  llmc explain ./my-model %12@import                  a node of the graph as imported
  llmc explain ./my-model encoder.layer.0 --rule gelu_from_erf
  llmc explain ./my-model --measure my-model.llmc encoder.layer.0
  llmc explain my-model.llmc encoder.layer.0          kernels, FLOP, bytes and times of an artifact

\b
The passes run as `llmc compile` runs them with the same options; nothing is compiled. A rule's miss is near if
more of its pattern was there than the op at its root. An artifact has no graph any more: of it the kernels are
shown, measured. `llmc compile --keep DIR` leaves both graphs with the names of their nodes.
"""

_DETAILED = 12  # nodes below a path that are told one by one


@click.command(
    "explain", epilog=_EPILOG, short_help="Say where a node came from and why a rule did not apply."
)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("node", required=False, metavar="[NODE|PATH]")
@click.option("--rule", metavar="NAME", help="Of this rule alone, every node at which it stopped.")
@click.option("--all", "far", is_flag=True, help="Rules too that stopped at once.")
@click.option("--measure", metavar="ARTIFACT", type=click.Path(path_type=Path), help="Time its kernels, too.")
@click.option("--batch", type=click.IntRange(min=1), help="Of the measurement.  [default: 1]")
@click.option("--seq", type=click.IntRange(min=1), help="Of the measurement.  [default: 128, or the bound]")
@click.option("--task", default="auto", show_default=True, help="What to compute.")
@pass_options
@click.option("--padding", type=click.Choice(["zero", "computed"]), default="zero", show_default=True)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="The model of a text that has no weights beside it."
)
@click.option("--ignore-unused-weights", is_flag=True, help="Leave out heads that the task has no use for.")
@adapter_options
@extension_option
@json_option
def command(
    model: Path,
    node: str | None,
    rule: str | None,
    far: bool,
    measure: Path | None,
    batch: int | None,
    seq: int | None,
    task: str,
    weights: Path | None,
    ignore_unused_weights: bool,
    base: Path | None,
    adapter: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say of MODEL (a folder, an .onnx or .pt2 file, a graph's text), or of an ARTIFACT, why it runs as it does."""
    sizes = {name: size for name, size in (("batch", batch), ("seq", seq)) if size is not None}
    if not model.is_file() and is_artifact(require_folder(model, "a model or an artifact")):
        _refuse_history(model, rule, measure)
        _show_artifact(model, node, sizes, as_json)
        return
    if sizes and measure is None:
        raise click.UsageError("--batch and --seq are for --measure ARTIFACT, or for an artifact.")
    measured = {} if measure is None else _measured(require_artifact(measure), sizes)
    read = (model, task, weights, ignore_unused_weights, base, adapter)
    explanation = _explain(read, options, measured)
    if rule is not None:
        explanation.check_rule(rule)
    if node is None:
        _show_all(explanation, rule, as_json)
    else:
        _show_nodes(explanation, node, rule, far, as_json)


def _explain(read: tuple[Any, ...], options: Mapping[str, Any], measured: Any) -> Any:
    from llmc.cli.opt import read_model
    from llmc.explain import explain
    from llmc.options import Options, Order

    order = Order("explained", None, cast(Options, dict(options)))  # a slip shows before the import
    imported = read_model(*read)
    own = imported.pipeline
    if own is not None and not any(options[k] for k in ("passes", "only_passes", "add_passes")):
        order = Order("explained", None, cast(Options, {**options, "only_passes": own}))
    return explain(imported, order, measured)


def _refuse_history(model: Path, rule: str | None, measure: Path | None) -> None:
    if rule is not None or measure is not None:
        hint = "give the model's own folder or file, and the options it was compiled with"
        raise LlmcError("an artifact has no graph any more, so no rules", at=str(model), hint=hint)


def _profile(artifact: Path, sizes: Mapping[str, int]) -> Any:
    import llmc

    model = llmc.load(artifact, threads=1)
    return model.benchmark(duration=0.5, profile=True, **sizes).steps


def _measured(artifact: Path, sizes: Mapping[str, int]) -> dict[tuple[str, str], list[float]]:
    """Kernel and place -> the times of its calls, in order."""
    times: dict[tuple[str, str], list[float]] = {}
    for step in _profile(artifact, sizes):
        times.setdefault((step.kernel, step.source), []).append(step.seconds)
    return times


# --- a model


def _show_all(explanation: Any, rule: str | None, as_json: bool) -> None:
    fusions = [f for f in explanation.fusions() if rule in (None, f[1])]
    misses = explanation.misses(rule)
    if as_json:
        names = ("pass", "rule", "says", "count")
        facts = {
            "pipeline": explanation.pipeline,
            "target": explanation.target,
            "nodes_before": len(explanation.imported.nodes),
            "nodes_after": len(explanation.after.nodes),
            "applied": [dict(zip(names, fusion, strict=True)) for fusion in fusions],
            "misses": list(map(_miss_as_dict, misses)),
            "gains": explanation.gains,
        }
        print_json(facts)
        return
    before, after = len(explanation.imported.nodes), len(explanation.after.nodes)
    click.echo(f"{before} -> {many(after, 'nodes')} by {explanation.pipeline}")
    print_table(
        "applied", ["pass", "rule", ">times", "what it does"], [(p, r, n, s) for p, r, s, n in fusions]
    )
    rows = [(m.change, m.rule, m.count, m.reason, m.stopped) for m in misses]
    title = "stopped" if rule else "near misses: the pattern was there in part"
    print_table(title, ["pass", "rule", ">times", "why not", "first at"], rows)
    if explanation.gains is not None and rule is None:
        gains = explanation.gains.to_dict()
        print_gains(gains, explanation.target)
        print_layers("layers, before -> after", gains["runs"], gains["layers"])
    if explanation.unlowered:
        click.echo(f"no kernels: {explanation.unlowered}")


def _show_nodes(explanation: Any, node: str, rule: str | None, far: bool, as_json: bool) -> None:
    nodes = explanation.find(node)
    stories = [explanation.story(n, rule, far) for n in nodes]
    if as_json:
        print_json({"pipeline": explanation.pipeline, "nodes": [_as_dict(story) for story in stories]})
        return
    if len(stories) > _DETAILED:
        rows = [(s.name, s.op, _kernels(s), len(s.misses), s.source) for s in stories]
        print_table(f"{node}: {len(rows)} nodes", ["node", "op", "kernel", ">near misses", "place"], rows)
        click.echo("name one of them, or a longer path, for all that is known of it")
        return
    for story in stories:
        _show_story(story, rule, explanation.gains)
    if explanation.unlowered:
        click.echo(f"no kernels: {explanation.unlowered}")


def _as_dict(story: Any) -> dict[str, Any]:
    facts = asdict(story)
    facts["rewritten"] = [dict(zip(("pass", "rule", "says"), r, strict=True)) for r in story.rewritten]
    facts["misses"] = list(map(_miss_as_dict, story.misses))
    return facts


def _miss_as_dict(miss: Any) -> dict[str, Any]:
    facts = asdict(miss)
    return {"pass": facts.pop("change"), **facts}


def _kernels(story: Any) -> str:
    return story.became or ", ".join(step.kernel for step in story.steps)


def _show_story(story: Any, rule: str | None, gains: Any) -> None:
    click.echo(f"{story.name} {story.op} : {story.type}  # {story.source}")
    _show_lines("became", [story.became] if story.became else [])
    _show_lines("with" if story.became else "made of", story.made_of)
    _show_lines("rewritten", [_rewriting(*change) for change in story.rewritten])
    _show_lines("runs as", [_step_text(step) for step in story.steps])
    _show_lines("its layer", [] if story.gain is None else [line_of(asdict(story.gain), gains.runs)])
    _show_lines(
        "stopped" if rule else "near misses", [line for miss in story.misses for line in _miss_lines(miss)]
    )
    if story.farther:
        tries = "try" if story.farther == 1 else "tries"
        click.echo(f"  {story.farther} more {tries} of rules stopped at once (--all)")
    click.echo()


def _show_lines(title: str, lines: Any) -> None:
    from llmc.cli.output import printable

    for at, line in enumerate(lines):
        click.echo(f"  {title if not at else '':<12}{printable(line)}".rstrip())


def _rewriting(change: str, rule: str, says: str) -> str:
    return f"{change}: {rule}  {says}" if rule else f"{change}: {says}"


def _step_text(step: Any) -> str:
    time = "" if step.seconds is None else f", {time_text(step.seconds)}"
    types = f"{', '.join(step.read)} -> {', '.join(step.written)}"
    return f"{step.kernel} ({types}), {step.flops} FLOP, {step.bytes} bytes{time}"


def _miss_lines(miss: Any) -> list[str]:
    far = f"stopped after {many(miss.matched, 'nodes')}"
    tried = f"{miss.rule}, tried at {miss.at}"
    return [f"{tried}, {'declined' if miss.declined else far}", f"  at {miss.stopped}: {miss.reason}"]


# --- an artifact


def _show_artifact(path: Path, node: str | None, sizes: Mapping[str, int], as_json: bool) -> None:
    """Its kernels, timed."""
    steps = _profile(require_artifact(path), sizes)
    places = [
        s for s in steps if node is None or s.source == node or s.source.startswith((node + ".", node + " "))
    ]
    if not places:
        raise _no_place(str(node), steps)
    if as_json:
        print_json({"artifact": str(path), "steps": [asdict(s) for s in places]})
        return
    rows = [(s.kernel, time_text(s.seconds), f"{s.flops:,.0f}", f"{s.bytes:,.0f}", s.source) for s in places]
    print_table(str(path), ["kernel", ">time", ">FLOP", ">bytes", "place"], rows)
    click.echo(
        "the history of a node, and why a rule did not apply: llmc explain MODEL, with the same options"
    )


def _no_place(node: str, steps: Any) -> LlmcError:
    from difflib import get_close_matches

    if node.startswith("%"):
        hint = "an artifact has no graph: give a path of the model, or the model itself"
        return LlmcError(f"no node {node}", hint=hint)
    close = get_close_matches(node, {s.source.split(" ")[0] for s in steps}, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else "without a path all are shown"
    return LlmcError(f"no kernel at {node!r}", hint=hint)
