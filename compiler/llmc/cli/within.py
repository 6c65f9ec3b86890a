"""The bounds of `llmc compile`, and what a search within them is told as: tables, and a page with the front."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from llmc.cli.output import Progress, Seconds, print_table, size_text, time_text
from llmc.errors import LlmcError, many

OPTIONS = (
    *("max_drop", "max_size", "max_latency", "data", "minimise", "time_budget", "best_effort", "front"),
    *("latency_at", "measure", "rows", "text_column", "pair_column", "label_column"),
)
_BOUNDS = ("max_drop", "max_size", "max_latency")


class Size(click.ParamType[float]):
    """Bytes, such as `30MB` or `512kB`."""

    name = "size"
    _UNITS: Mapping[str, int] = {
        "": 1,
        "b": 1,
        "kb": 10**3,
        "mb": 10**6,
        "gb": 10**9,
        "kib": 2**10,
        "mib": 2**20,
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d*\.?\d+)\s*([a-zA-Z]*)", str(value).strip())
        if not found or found[2].lower() not in self._UNITS:
            self.fail(f"{value!r} is not a size; write 30MB, 512kB or a number of bytes", param, ctx)
        return float(found[1]) * self._UNITS[found[2].lower()]


class Shape(click.ParamType[tuple[int, int]]):
    """Batch and tokens, such as `1x128`."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        found = re.fullmatch(r"(\d+)x(\d+)", str(value).strip())
        if not found or not int(found[1]) or not int(found[2]):
            self.fail(f"{value!r} is no batch and length; write 1x128", param, ctx)
        return int(found[1]), int(found[2])


def budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds them."""
    from llmc.cli.eval import Share

    made = (
        click.option(
            "--max-drop",
            type=Share(),
            help="Choose for each layer what to do with it: most that may be lost on --data, 0.5%.",
        ),
        click.option("--max-size", type=Size(), help="Likewise: largest size of the artifact, 30MB."),
        click.option("--max-latency", type=Seconds(), help="Likewise: longest run, 5ms, by the cost model."),
        click.option(
            "--data", type=click.Path(path_type=Path), metavar="FILE", help="What is measured and checked on."
        ),
        click.option(
            "--minimise",
            type=click.Choice(["size", "latency", "both"]),
            help="Within the bounds.  [default: what has no bound]",
        ),
        click.option("--time-budget", type=Seconds(), default="5m", show_default=True, help="Of the search."),
        click.option(
            "--latency-at",
            type=Shape(),
            default="1x128",
            show_default=True,
            help="Batch and tokens of a run.",
        ),
        click.option(
            "--measure",
            is_flag=True,
            help="Time kernels on this machine, not by the cost model; without a bound, too.",
        ),
        click.option(
            "--best-effort", is_flag=True, help="Write the best found where no choice meets the bounds."
        ),
        click.option(
            "--front",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Draw the Pareto front as a page.",
        ),
        click.option("--rows", type=click.IntRange(min=1), help="Of --data, at most.  [default: 4096]"),
        click.option("--text-column", metavar="NAME", help="Of --data.  [default: guessed]"),
        click.option("--pair-column", metavar="NAME", help="Of --data.  [default: guessed]"),
        click.option("--label-column", metavar="NAME", help="Of --data.  [default: guessed]"),
    )
    for option in reversed(made):
        command = option(command)
    return command


def taken(options: dict[str, Any]) -> dict[str, Any] | None:
    """The bounds and what belongs to them, out of the options; None if there is no bound."""
    own = {name: options.pop(name) for name in OPTIONS}
    if all(own[name] is None for name in _BOUNDS):
        options["measure"] = own.pop("measure")  # of plain options too
        defaults = {"time_budget": 300.0, "latency_at": (1, 128), "best_effort": False}
        if used := [n for n, v in own.items() if v is not None and v != defaults.get(n)]:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in used)
            raise click.UsageError(f"{names}: for --max-drop, --max-size or --max-latency.")
        return None
    if own["data"] is None:
        hint = "--data FILE with some hundred rows like those to come, with labels if there are"
        raise LlmcError("a budget is measured and checked on data", at="--data", hint=hint)
    if own["front"] is not None and not own["front"].absolute().parent.is_dir():
        raise LlmcError("there is no folder for the page", at=str(own["front"]))
    return own


def run_within(model: Path, output: Path, own: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """`llmc.budget.compile_within` with progress on stderr; returns its report, and draws the front if asked."""
    with Progress("compile") as progress:
        progress("loading the compiler", 0.0)
        from llmc.bounds import ROWS, Budget
        from llmc.budget import compile_within
        from llmc.distillation import Columns

        budget = Budget(
            own["max_drop"],
            own["max_size"],
            own["max_latency"],
            own["minimise"],
            own["time_budget"],
            own["best_effort"],
            own["rows"] or ROWS,
            batch=own["latency_at"][0],
            seq=own["latency_at"][1],
            measure=own["measure"],
        )
        columns = Columns(own["text_column"], own["pair_column"], own["label_column"])
        given = {n: v for n, v in options.items() if v not in (None, ())}
        report = compile_within(
            model, output, own["data"], budget, columns=columns, progress=progress, say=progress.say, **given
        )
    if own["front"] is not None:
        own["front"].write_text(page(report), encoding="utf-8")
    return report


def print_within(report: Any) -> None:
    """The front, the layers, and how the bounds hold."""
    columns = ["", "of the front", ">divergence", ">weights", ">run", ">lost", "layers"]
    print_table("", columns, [_point_row(i, p) for i, p in enumerate(report.front, 1)])
    columns = ["layer", "choice", ">diverges", ">bytes", ">run", "why it is float"]
    print_table("", columns, map(_layer_row, report.layers))
    low, high = report.held.mean - report.held.half, report.held.mean + report.held.half
    click.echo(
        f"{report.measure}: {report.held.mean:.2%} ({low:.2%} to {high:.2%}) on {report.held.rows} rows held back, "
        f"{'run natively' if report.native else 'by the interpreter'}; "
        f"{many(report.tries, 'choices')} held to the bounds"
    )
    run = (
        f"; a run {time_text(report.seconds)}, float {time_text(report.float_seconds)}, by the cost model of "
        f"{report.variant} on one thread"
    )
    click.echo(
        f"size {size_text(report.size)}, float {size_text(report.float_size)}{run if report.variant else ''}"
    )
    if report.skipped:
        click.echo(f"left out: {many(report.skipped, 'measurements')}, --time-budget was over")
    for bound in report.unmet:
        click.echo(f"not met: {bound}")
    again = f"--add-pass '{report.text}@quantise'" if report.text else "without a bound, as all stayed float"
    click.echo(f"the same again:  {again}\n")


def _point_row(number: int, point: Any) -> tuple[object, ...]:
    lost = "" if point.loss is None else f"{point.loss.mean:.2%}"
    kinds = ", ".join(f"{count} {name}" for name, count in point.counts.items())
    mark = "chosen" if point.chosen else ""
    run = time_text(point.seconds)
    return mark, number, f"{point.divergence:.2g}", size_text(point.bytes), run, lost, kinds


def _layer_row(layer: Any) -> tuple[object, ...]:
    if not layer.bytes and not layer.seconds:
        return layer.layer, layer.choice, "", "", "", layer.why
    saved, run = f"{layer.bytes / 1e3:+.1f} kB", f"{layer.seconds * 1e6:+.1f} us"
    return layer.layer, layer.choice, f"{layer.divergence:.2g}", saved, run, layer.why


# --- a page

_WIDE, _HIGH, _EDGE = 640, 320, 48


def page(report: Any) -> str:
    """The front drawn, and its table, as one file of HTML."""
    from llmc.html import Page, Table

    rows = [(i, *map(str, _point_row(i, p))) for i, p in enumerate(report.front, 1)]
    layers = [tuple(map(str, _layer_row(layer))) for layer in report.layers]
    tables = (
        Table(("", "chosen", "", "divergence", "weights", "run", "lost", "layers"), rows, "front"),
        Table(("layer", "choice", "diverges", "bytes", "run", "why it is float"), layers, "layers"),
    )
    facts = {"measure": report.measure, "size": size_text(report.size), "passes": report.text}
    drawn = "".join(
        _drawn(title, report.front, value) for title, value in (("weights, MB", _mega), ("run, ms", _milli))
    )
    body = str(Page("the choices of a budget", "", facts, tables))
    return f"<!doctype html><meta charset='utf-8'><title>budget</title>{drawn}{body}"


def _mega(point: Any) -> float:
    return float(point.bytes) / 1e6


def _milli(point: Any) -> float:
    return float(point.seconds) * 1e3


def _drawn(title: str, front: Sequence[Any], value: Callable[[Any], float]) -> str:
    """Points of the front: divergence, by its logarithm, to the right."""
    from math import log10

    floor = min((p.divergence for p in front if p.divergence > 0), default=1e-9) / 4
    across = [log10(max(p.divergence, floor)) for p in front]
    up = [value(p) for p in front]
    left, right, top = min(across), max(across) + 1e-9, max(up) or 1.0
    places = [
        (
            _EDGE + (x - left) / (right - left) * (_WIDE - 2 * _EDGE),
            _HIGH - _EDGE - y / top * (_HIGH - 2 * _EDGE),
        )
        for x, y in zip(across, up, strict=True)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{6 if p.chosen else 3}' fill='{'#c33' if p.chosen else '#36c'}'>"
        f"<title>{p.divergence:.2g}: {v:.3g}</title></circle>"
        for (x, y), p, v in zip(places, front, up, strict=True)
    )
    return (
        f"<svg viewBox='0 0 {_WIDE} {_HIGH}' width='{_WIDE}' height='{_HIGH}' font-family='sans-serif' font-size='12'>"
        f"<text x='{_EDGE}' y='20'>{title}, from 0 to {top:.3g}; divergence {10**left:.1g} to {10**right:.1g}</text>"
        f"<path d='M{_EDGE} {_EDGE // 2}V{_HIGH - _EDGE}H{_WIDE - _EDGE // 2}' fill='none' stroke='#888'/>"
        f"<polyline points='{line}' fill='none' stroke='#36c'/>{dots}</svg>"
    )
