"""What layers gain by what was asked for, printed: of `llmc compile` and `llmc explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from llmc.cli.output import print_table, size_text, time_text
from llmc.errors import many

_SHOWN = 8  # layers that stayed float


def print_gains(gains: Mapping[str, Any] | None, target: str) -> None:
    """A line of the whole, one of layers that are slower, and a table of those that were left for that."""
    if gains is None:
        return
    click.echo(_whole(gains, target))
    slow = [g for g in gains["layers"] if _slower(g) and g["bytes"][0] != g["bytes"][1]]
    if slow:
        sums = [
            [sum(g["seconds"][run][at] for g in slow) for at in (0, 1)] for run in range(len(gains["runs"]))
        ]
        sizes = [sum(g["bytes"][at] for g in slow) for at in (0, 1)]
        runs = _runs(gains["runs"], sums)
        slower = f"{many(len(slow), 'layers')} slower for {_bytes(sizes)}"
        click.echo(f"{slower}: {runs}, such as {slow[0]['place']}")
    for variant, seconds in gains["slower_on"].items():
        click.echo(f"slower on {variant}: {_runs(gains['runs'], seconds)}")
    if gains["left"]:
        print_layers("left float, as they would be slower", gains["runs"], gains["left"][:_SHOWN])
        if len(gains["left"]) > _SHOWN:
            click.echo(f"and {len(gains['left']) - _SHOWN} more (--json)")
    click.echo()


def print_layers(title: str, runs: Sequence[str], layers: Sequence[Mapping[str, Any]]) -> None:
    """A table of layers, before -> after."""
    columns = ["layer", "kernels", ">weights", *(f">{run}" for run in runs)]
    print_table(title, columns, [_row(gain, len(runs)) for gain in layers])


def line_of(gain: Mapping[str, Any], runs: Sequence[str]) -> str:
    """One layer's, in a sentence."""
    return ", ".join(filter(None, (f"weights {_bytes(gain['bytes'])}", _runs(runs, gain["seconds"]))))


def _whole(gains: Mapping[str, Any], target: str) -> str:
    whole = gains["whole"]
    if not gains["variant"]:
        return f"weights {_bytes(whole['bytes'])}; of the time there are no figures for {target}"
    by = (
        "timed on this machine"
        if gains["variant"] == "this machine"
        else f"by the cost model of {gains['variant']}"
    )
    return f"{by}, one thread: weights {_bytes(whole['bytes'])}, {_runs(gains['runs'], whole['seconds'])}"


def _runs(runs: Sequence[str], seconds: Sequence[Sequence[float]]) -> str:
    pairs = zip(runs, seconds, strict=False)  # without figures there are no seconds
    return ", ".join(f"{run} {_time(a)} -> {_time(b)}" for run, (a, b) in pairs)


def _row(gain: Mapping[str, Any], runs: int) -> tuple[str, ...]:
    before, after = gain["kinds"]
    kinds = before if before == after else f"{before} -> {after}"
    times = [f"{_time(a)} -> {_time(b)}" for a, b in gain["seconds"]]
    return gain["place"], kinds, _bytes(gain["bytes"]), *(times or [""] * runs)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} us" if seconds < 1e-5 else time_text(seconds)


def _bytes(pair: Sequence[float]) -> str:
    return f"{size_text(pair[0])} -> {size_text(pair[1])}"


def _slower(gain: Mapping[str, Any]) -> bool:
    return bool(gain["seconds"]) and all(after > before for before, after in gain["seconds"])
