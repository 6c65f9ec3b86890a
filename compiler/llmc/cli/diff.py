"""`llmc diff`: two graphs side by side, and with `--data` what they compute."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from llmc.cli.output import extension_option, is_artifact, json_option, print_json, print_table, printable
from llmc.errors import LlmcError, many

_EPILOG = """\b
Examples:
  llmc diff ./my-model fine-tuned.txt                  nodes, attributes, weights
  llmc diff before.txt after.txt --data random         and what both compute, by the interpreter
  llmc diff ./my-model my-model.onnx --data texts.txt --tolerance 1e-4
  llmc diff before.txt after.txt --all --json

\b
A and B are whatever `llmc opt` reads: a model folder, an .onnx or .pt2 file, a graph's text. Nodes are paired by what
they compute, then by source, op, type and order; where they come from is no difference. Exit codes: 0 the same,
1 different, 2 there was an error. With --tolerance only the outputs decide.
"""

_BRIEF = 60  # characters of a setting
_NEAR, _ROWS = 2, 200  # equal rows shown around others, rows shown of a function


@click.command("diff", epilog=_EPILOG, short_help="Show two graphs side by side.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--task", default="auto", show_default=True, help="What to compute, such as text-classification."
)
@click.option("--data", metavar="FILE|random|auto", help="Run both on samples: .npz, .txt, .jsonl or .csv.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=4, show_default=True, help="Samples of --data."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Largest share of an output's scale by which it may differ.  [default: 1e-4]",
)
@click.option("--all", "everything", is_flag=True, help="Show equal nodes too, and every row.")
@extension_option
@json_option
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Compare the graphs of A and B: nodes, weights, bounds and outputs."""
    from llmc.cli import show_error

    try:
        same = _diff(as_json=as_json, **options)
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except (LlmcError, OSError) as error:
        show_error(error if isinstance(error, LlmcError) else LlmcError(str(error.strerror or error).lower()))
        ctx.exit(2)
    ctx.exit(0 if same else 1)


def _diff(
    a: Path,
    b: Path,
    task: str,
    data: str | None,
    samples: int,
    tolerance: float | None,
    everything: bool,
    as_json: bool,
) -> bool:
    """Print what differs; whether nothing does."""
    from llmc.compiler.graph_diff import FEW, Difference

    if tolerance is not None and data is None:
        raise LlmcError("--tolerance judges what --data shows", hint="--data random makes some")
    first, second = read_graphs(a, task), read_graphs(b, task)
    ours, theirs = first.module.functions, second.module.functions
    found = {name: Difference(ours[name], theirs[name]) for name in ours if name in theirs}
    numbers = {}
    if data is not None:
        from llmc.comparison import sessions

        limit = FEW if tolerance is None else tolerance
        numbers = {n: d.numbers(sessions(d.a, d.b, data, samples, first), limit) for n, d in found.items()}
    alone = {"A": [n for n in ours if n not in theirs], "B": [n for n in theirs if n not in ours]}
    facts = {name: _as_dict(d, numbers.get(name), everything) for name, d in found.items()}
    beside = _beside(first, second)
    outputs = all(n.same for n in numbers.values())
    graphs = tolerance is not None or (all(d.same for d in found.values()) and not beside)
    same = outputs and graphs and not any(alone.values())
    if as_json:
        print_json(
            {"a": str(a), "b": str(b), "same": same, "alone": alone, "beside": beside, "functions": facts}
        )
        return same
    for line in beside:
        click.echo(printable(line))
    for side, names in alone.items():
        for name in names:
            click.echo(f"function {printable(name)}: only in {side}")
    for name, fact in facts.items():
        _show(name if len(ours) > 1 else "", fact, found[name].rows, (str(a), str(b)), everything)
    what = "" if tolerance is None else " outputs"
    click.echo(f"the same{what}" if same else f"different{what}")
    return same


def read_graphs(path: Path, task: str, **options: Any) -> Any:
    """A model whose graphs are to be compared; options as of `opt.read_model`."""
    from llmc.cli.opt import read_model

    if is_artifact(path):
        hint = "compile with --keep DIR and give DIR/optimised.txt; `llmc inspect` shows its manifest"
        raise LlmcError("an artifact holds no graph to compare", at=str(path), hint=hint)
    return read_model(path, task, **options)


def _beside(a: Any, b: Any) -> list[str]:
    """What differs in that which makes answers of a graph's outputs, and inputs of texts."""
    from llmc.compiler.frontends.graph_text import said

    ours, theirs = said(a), said(b)
    return [
        f"{name}: {_brief(ours.get(name))} -> {_brief(theirs.get(name))}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]


def _brief(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _BRIEF else f"{text[:_BRIEF]}..."


def _as_dict(found: Any, numbers: Any, everything: bool) -> dict[str, Any]:
    rows, weights = found.rows, found.weights
    marks = [row.mark for row in rows]
    facts = {
        "same": found.same,
        "nodes": {
            name: marks.count(mark)
            for mark, name in (("=", "equal"), ("~", "changed"), ("-", "only_a"), ("+", "only_b"))
        },
        "ops": {op: list(counts) for op, counts in found.ops.items()},
        "signature": found.signature,
        "weights": {
            "equal": weights.equal,
            "different": dict(weights.different),
            "only_a": list(weights.only_a),
            "only_b": list(weights.only_b),
        },
        "rows": [
            {"mark": row.mark, "a": row.a, "b": row.b, "changes": list(row.changes)}
            for row in rows
            if everything or row.mark != "="
        ],
    }
    if numbers is not None:
        facts["numbers"] = {
            "same": numbers.same,
            "tolerance": numbers.tolerance,
            "samples": numbers.samples,
            "outputs": {n: {"difference": d, "of_scale": s} for n, (d, s) in numbers.outputs.items()},
            "first": numbers.first and dict(zip(("a", "b", "of_scale"), numbers.first, strict=True)),
        }
    return facts


def _show(
    name: str, facts: Mapping[str, Any], rows: Sequence[Any], titles: tuple[str, str], everything: bool
) -> None:
    if name:
        click.echo(f"\nfunction {printable(name)}")
    if facts["rows"]:
        _side_by_side(rows, titles, everything)
    for line in facts["signature"]:
        click.echo(printable(line))
    if facts["ops"]:
        print_table("", ["op", ">A", ">B"], [(op, *counts) for op, counts in facts["ops"].items()])
    nodes = facts["nodes"]
    click.echo(
        f"nodes: {nodes['equal']} equal, {nodes['changed']} changed, "
        f"{nodes['only_a']} only in A, {nodes['only_b']} only in B"
    )
    _show_weights(facts["weights"])
    if "numbers" in facts:
        _show_numbers(facts["numbers"])


def _side_by_side(rows: Sequence[Any], titles: tuple[str, str], everything: bool) -> None:
    """The nodes of both graphs, what differs coloured, and of runs of equal ones the ends."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from llmc.cli.output import print_rich

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, width in ((titles[0], 1), ("", None), (titles[1], 1)):
        table.add_column(Text(printable(title)), overflow="fold", ratio=width)
    styles = {"=": "dim", "~": "yellow", "-": "red", "+": "green"}
    shown = list(_shortened(rows, everything))
    for row in shown if everything else shown[:_ROWS]:
        if isinstance(row, int):
            table.add_row("", "", Text(f"... {row} equal", "dim"))
            continue
        cells = (row.a or "", row.mark, row.b or "")
        table.add_row(*(Text(printable(cell), styles[row.mark]) for cell in cells))
        for change in row.changes:
            table.add_row("", "", Text(f"  {printable(change)}", "bold"))
    print_rich(table)
    if not everything and len(shown) > _ROWS:
        click.echo(f"... and {many(len(shown) - _ROWS, 'rows')} more; --all shows them")


def _shortened(rows: Sequence[Any], everything: bool) -> Iterator[Any]:
    """The rows, or how many equal ones are left out; equal constants are no context for anybody."""
    rows = [row for row in rows if everything or row.mark != "=" or " = constant(" not in str(row.b)]
    wanted = [everything or row.mark != "=" for row in rows]
    left_out = 0
    for i, row in enumerate(rows):
        if any(wanted[max(i - _NEAR, 0) : i + _NEAR + 1]):
            if left_out:
                yield left_out
            left_out = 0
            yield row
        else:
            left_out += 1
    if left_out:
        yield left_out


def _show_weights(weights: Mapping[str, Any]) -> None:
    different = weights["different"]
    line = f"weights: {weights['equal']} equal, {len(different)} different"
    for side in ("A", "B"):
        line += f", {len(weights[f'only_{side.lower()}'])} only in {side}"
    click.echo(line)
    if different:
        largest = sorted(different.items(), key=lambda item: -item[1])
        print_table("", ["weight", ">largest difference"], [(n, f"{d:.3g}") for n, d in largest[:20]])
        if len(largest) > 20:
            click.echo(f"... and {len(largest) - 20} more; --json has all")


def _show_numbers(numbers: Mapping[str, Any]) -> None:
    outputs = numbers["outputs"].items()
    rows = [(name, f"{o['difference']:.3g}", f"{o['of_scale']:.3g}") for name, o in outputs]
    print_table("", ["output", ">largest difference", ">of its scale"], rows)
    first = numbers["first"]
    where = (
        f"values first part at {first['b']}, by {first['of_scale']:.3g} of their scale (A: {first['a']})"
        if first
        else "outputs are within the tolerance"
        if numbers["same"]
        else "no pair of nodes parts"
    )
    click.echo(
        f"{printable(where)}; {many(numbers['samples'], 'samples')}, tolerance {numbers['tolerance']:g}"
    )
