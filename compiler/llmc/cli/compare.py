"""`llmc compare`: by how much the layers of two versions of a model part on data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import click
from click.core import ParameterSource

from llmc.cli.fixed_dims import dim_option
from llmc.cli.output import (
    adapter_options,
    extension_option,
    json_option,
    pass_options,
    print_json,
    print_rich,
    print_table,
    printable,
)
from llmc.errors import LlmcError, many

_EPILOG = """\b
Examples:
  llmc compare ./my-model --quant int8 --data texts.txt        which layer int8 hurts
  llmc compare ./my-model --prune 0.3 --share 256 --data auto --bound 10
  llmc compare ./my-model --add-pass ./my_pass.py:MyPass --data random --html report.html
  llmc compare ./my-model fine-tuned.txt --data texts.txt --json
  llmc compare before.txt after.txt --data samples.npz

\b
A and B are whatever `llmc opt` reads. Without B it is A through the passes that the options ask for, beside A through
the others of the level. Values are paired by source and shape; the ratio of a layer is that of its worst value over
all samples, 10 log10(sum a^2 / sum (a - b)^2) dB: 20 dB is noise of a tenth of the values, 40 of a hundredth. Exit
codes: 0 no ratio is below the bound, 1 one is, 2 there was an error.
"""

_BOUND, _SAMPLES = 15.0, 8
_NOT_RUN = "not run: the data lacks an input of it"
_NOWHERE = "(no source)"
_WIDTH, _FULL = 24, 72.0  # characters of a bar, and dB of a whole one


@click.command("compare", epilog=_EPILOG, short_help="Say in which layers two versions of a model part.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", required=False, type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    metavar="FILE|auto|random",
    help="Run both on samples, as of --calib; random: drawn.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=_SAMPLES, show_default=True, help="Samples of --data."
)
@click.option(
    "--bound",
    type=float,
    metavar="DB",
    default=_BOUND,
    show_default=True,
    help="The least ratio of signal to noise that passes.",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the report there, too.")
@click.option(
    "--task", default="auto", show_default=True, help="What to compute, such as text-classification."
)
@pass_options
@click.option("--ignore-unused-weights", is_flag=True, help="Leave out heads that the task has no use for.")
@adapter_options
@dim_option
@extension_option
@json_option
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, html: Path | None, **options: Any) -> None:
    """Run A, and B or A through passes, on the same data: signal to noise of every layer."""
    from llmc.cli import show_error

    try:
        if html is not None and not html.absolute().parent.is_dir():
            raise LlmcError("there is no folder for the page", at=str(html))
        report = _compare(ctx, **options)
        if html is not None:
            _write(html, _page(report))
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except (LlmcError, OSError) as error:
        show_error(error if isinstance(error, LlmcError) else LlmcError(str(error.strerror or error).lower()))
        ctx.exit(2)
    if as_json:
        print_json(report)
    else:
        _show(report)
    ctx.exit(0 if report["within"] else 1)


_OF_PASSES = (
    *("level", "passes", "add_passes", "only_passes", "prune", "share", "factorize", "quant", "attention"),
    *("group", "zero_points", "calib", "matmul", "state_dtype", "target"),
)


def _compare(
    ctx: click.Context,
    a: Path,
    b: Path | None,
    data: str,
    samples: int,
    bound: float,
    task: str,
    ignore_unused_weights: bool,
    base: Path | None,
    adapter: Path | None,
    dims: Any,
    fixed: Any,
    **passes: Any,
) -> dict[str, Any]:
    """The report, as JSON has it."""
    from llmc.cli.diff import read_graphs
    from llmc.comparison import compared, through_passes, want_data
    from llmc.options import Options

    given = [n for n in _OF_PASSES if ctx.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    _want_two(b, given, bound)
    want_data(data)
    reading: dict[str, Any] = {"ignore_unused": ignore_unused_weights, "dims": dims, "fixed": fixed}
    first = read_graphs(a, task, base=base, adapter=adapter, **reading)
    if b is None:
        options = cast(Options, {name: passes[name] for name in given})
        ours, theirs = through_passes(first, options)
    else:
        second = read_graphs(b, task, **reading)
        ours, theirs = first.module.functions, second.module.functions
        first = first if first.tokenizer is not None or first.preprocess else second  # a file has neither
    noise = compared(ours, theirs, first, data, samples)
    functions = {name: _of_function(noise, name, bound) for name in noise.a}
    alone = {"A": [n for n in ours if n not in theirs], "B": [n for n in theirs if n not in ours]}
    within = all(f["within"] for f in functions.values()) and not any(alone.values())
    return {
        "a": str(a),
        "b": None if b is None else str(b),
        "options": {name: passes[name] for name in given},
        "data": data,
        "bound": bound,
        "within": within,
        "alone": alone,
        "functions": functions,
    }


def _want_two(b: Path | None, given: list[str], bound: float) -> None:
    if not math.isfinite(bound):
        raise click.UsageError("--bound is a number of dB.")
    asked = [name for name in given if name not in ("target", "calib", "group", "zero_points", "attention")]
    if b is None and not asked:
        raise click.UsageError("Give B, or options that make another model of A, such as --quant int8.")
    if b is not None and given:
        raise click.UsageError("Options of passes are for A alone: leave them out, or B.")


def _of_function(noise: Any, name: str, bound: float) -> dict[str, Any]:
    layers = [
        {
            "layer": layer.path,
            **_of_pair(layer.worst, bound),
            "nodes": [_of_pair(pair, bound) for pair in layer.pairs],
        }
        for layer in noise.layers(name)
    ]
    outputs = {root: _of_ratio(ratio, bound) for root, ratio in noise.roots[name].items()}
    node = noise.first_below(name, bound)
    first = None if node is None else {"layer": node.a.source.path, **_of_pair(node, bound)}
    if first is None:
        below = next(((root, o) for root, o in outputs.items() if o["below"]), None)
        first = below and {"layer": "", "output": below[0], **below[1]}
    return {
        "samples": noise.samples[name],
        "within": first is None and not noise.odd_roots[name],  # nothing is near what is not there
        "first": first,
        "layers": layers,
        "outputs": outputs,
        "not_comparable": noise.left_out(name) if noise.samples[name] else {},
        "outputs_not_comparable": noise.odd_roots[name],
    }


def _of_pair(pair: Any, bound: float) -> dict[str, Any]:
    ops = pair.a.op if pair.a.op == pair.b.op else f"{pair.a.op}, {pair.b.op}"
    return {"op": ops, "source": str(pair.a.source), "type": str(pair.a.type), **_of_ratio(pair.ratio, bound)}


def _of_ratio(ratio: Any, bound: float) -> dict[str, Any]:
    """JSON has no infinity: `db` is None where there is no noise (`equal`), or nothing but noise."""
    return {
        "db": round(ratio.db, 3) if math.isfinite(ratio.db) else None,
        "equal": ratio.db == math.inf,
        "below": ratio.db < bound,
        "largest_difference": ratio.largest if math.isfinite(ratio.largest) else None,
        "not_finite": dict(ratio.odd),
    }


# --- as text


def _show(report: Mapping[str, Any]) -> None:
    functions = report["functions"]
    for side, names in report["alone"].items():
        for name in names:
            click.echo(f"function {printable(name)}: only in {side}")
    for name, facts in functions.items():
        if len(functions) > 1:
            click.echo(f"\nfunction {printable(name)}")
        if facts["samples"]:
            _show_function(facts, report["bound"])
        else:
            click.echo(_NOT_RUN)


def _show_function(facts: Mapping[str, Any], bound: float) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "worst value"):
        table.add_column(column, overflow="fold")
    table.add_column("dB", justify="right")
    table.add_column(f"0 to {_FULL:.0f} dB", no_wrap=True)
    table.add_column("largest difference", justify="right")
    table.add_column("", overflow="fold")
    for name, row in _rows(facts):
        style = "red" if row["below"] else ""
        cells = (name, row.get("op", ""), _db(row), "█" * _bar(row), _largest(row), _odd(row))
        table.add_row(*(Text(printable(cell), style) for cell in cells))
    print_rich(table)
    if left := _left_out(facts):
        print_table("not comparable", ["layer", "why"], left)
    click.echo(f"{printable(_first(facts, bound))}; {_count(facts['samples'])}")


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for layer in facts["layers"]:
        yield layer["layer"] or _NOWHERE, layer
    for name, output in facts["outputs"].items():
        yield name if name.startswith("state ") else f"output {name}", output


def _left_out(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    outputs = {f"output {name}": why for name, why in facts["outputs_not_comparable"].items()}
    return [(name or _NOWHERE, why) for name, why in {**outputs, **facts["not_comparable"]}.items()]


def _db(row: Mapping[str, Any]) -> str:
    return "equal" if row["equal"] else "none" if row["db"] is None else f"{row['db']:.1f}"


def _bar(row: Mapping[str, Any], width: int = _WIDTH) -> int:
    """How long a bar is: whole where values are equal, nothing at 0 dB."""
    db = _FULL if row["equal"] else row["db"] or 0.0
    return round(width * min(max(db / _FULL, 0.0), 1.0))


def _largest(row: Mapping[str, Any]) -> str:
    return "infinite" if row["largest_difference"] is None else f"{row['largest_difference']:.3g}"


def _odd(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{what} ({count})" for what, count in row["not_finite"].items())


def _count(samples: int) -> str:
    return many(samples, "samples")


def _first(facts: Mapping[str, Any], bound: float) -> str:
    first = facts["first"]
    if not facts["samples"]:
        return _NOT_RUN
    if first is None:
        return f"no ratio is below {bound:g} dB"
    what = f"output {first['output']}" if "output" in first else f"{first['op']} of {first['source']}"
    return f"first below {bound:g} dB: {what}, {_db(first)}{' dB' * (first['db'] is not None)}"


# --- as a page

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font-family: sans-serif; font-size: 14px; margin: 2em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { text-align: left; padding: 2px 12px 2px 0 }
td { font-family: monospace }
.n { text-align: right }
.bar { width: 240px; background: #eee }
.bar div { background: #38a; height: 1em }
.below td { color: #b00 }
.below .bar div { background: #b00 }
</style></head><body>
<h1>{{ title }}</h1>
<p>Signal to noise, 10 log10(sum a&sup2; / sum (a - b)&sup2;), of the worst value of each layer. Data: {{ data }}.</p>
{% for side, names in alone.items() %}{% for name in names %}<p>function {{ name }}: only in {{ side }}</p>
{% endfor %}{% endfor %}{% for f in functions %}{% if functions|length > 1 %}<h2>function {{ f.name }}</h2>
{% endif %}<p>{{ f.first }}; {{ f.count }}</p>
<table><tr><th>layer</th><th>worst value</th><th class="n">dB</th><th>0 to {{ full }} dB</th>
<th class="n">largest difference</th><th></th></tr>
{% for r in f.rows %}<tr{% if r.below %} class="below"{% endif %}><td>{{ r.name }}</td><td>{{ r.op }}</td>
<td class="n">{{ r.db }}</td><td><div class="bar"><div style="width:{{ r.bar }}%"></div></div></td>
<td class="n">{{ r.largest }}</td><td>{{ r.odd }}</td></tr>
{% endfor %}</table>
{% if f.left %}<h3>not comparable</h3><table>
{% for name, why in f.left %}<tr><td>{{ name }}</td><td>{{ why }}</td></tr>
{% endfor %}</table>
{% endif %}{% endfor %}</body></html>
"""


def _page(report: Mapping[str, Any]) -> str:
    """One file that needs no other; names are escaped."""
    from jinja2 import Environment

    other = report["b"] or " ".join(f"{n}={v}" for n, v in report["options"].items())
    functions = [
        {
            "name": printable(name),
            "first": printable(_first(facts, report["bound"])),
            "count": _count(facts["samples"]),
            "rows": [_cells(label, row) for label, row in _rows(facts)],
            "left": [(printable(what), printable(why)) for what, why in _left_out(facts)],
        }
        for name, facts in report["functions"].items()
    ]
    render: Callable[..., str] = Environment(autoescape=True).from_string(_PAGE).render
    return render(
        title=printable(f"{report['a']} and {other}"),
        data=printable(report["data"]),
        full=f"{_FULL:.0f}",
        functions=functions,
        alone=report["alone"],
    )


def _write(file: Path, page: str) -> None:
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise LlmcError(f"cannot write the page: {error.strerror or error}", at=str(file)) from None


def _cells(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {"name": name, "op": row.get("op", ""), "odd": _odd(row)}
    return {
        **{key: printable(text) for key, text in shown.items()},
        "db": _db(row),
        "bar": _bar(row, 100),
        "largest": _largest(row),
        "below": row["below"],
    }
