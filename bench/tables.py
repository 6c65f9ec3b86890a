"""The result of bench/peers.py as tables: for the terminal, and in Markdown for the README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

from contest import ONE, share_of_peak
from isa import machine_text
from peaks import KINDS

from llmc.cli.output import print_table, time_text

Row = Mapping[str, Any]
Result = Mapping[str, Any]


SHORT: Mapping[str, str] = MappingProxyType(
    {
        "pytorch": "torch",
        "torch.compile": "compile",
        "onnxruntime": "ort",
        "onnxruntime+fusion": "ort+",
        "openvino": "ov",
        "openvino-static": "ov-s",
    }
)


def interval(value: Sequence[float]) -> str:
    """0.71 (0.69-0.74)"""
    return "{:.2f} ({:.2f}-{:.2f})".format(*value)


def shape(row: Row) -> str:
    """batch x seq"""
    return f"{row['batch']}x{row['seq']}"


def share_text(row: Row) -> str:
    """`83% fma512`, empty where the limit is not known."""
    return f"{100 * share_of_peak(row, row['loop']):.0f}% {row['loop']}" if row.get("loop") else ""


def scaling_text(row: Row) -> str:
    """llmc's gain by its threads, and the machine's."""
    return f"{row['scaling'][0]:.2f} ({row['machine_scaling']:.2f})" if "scaling" in row else ""


def best_of(row: Row) -> tuple[str, list[float]]:
    """The fastest peer, and llmc over it."""
    return row["best"], row["llmc_over"][row["best"]]


def groups(rows: Iterable[Row]) -> list[tuple[tuple[str, str, int], list[Row]]]:
    """Rows by model, precision and threads, in that order of first appearance."""
    raced = [row for row in rows if "median_seconds" in row]
    key = lambda row: (row["model"], row["precision"], row["threads"])  # noqa: E731
    order = list(dict.fromkeys(map(key, raced)))
    parts = groupby(sorted(raced, key=lambda row: order.index(key(row))), key=key)
    return [(name, list(part)) for name, part in parts]


def show(result: Result) -> None:
    """All tables, then what was skipped and why."""
    print(machine_text(result["machine"], result["isa"]))
    print(result["held"])
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    print("Columns of peers give llmc's time over theirs: " + ", ".join(f"{b} {a}" for a, b in SHORT.items()))
    for (model, precision, threads), rows in groups(result["rows"]):
        print(
            f"\n{model}, {precision}, {threads} thread{'s' * (threads > 1)} each, llmc's {rows[0]['variant']}"
        )
        show_group(rows, precision)
    for row in result["rows"]:
        if "skipped" in row:
            print(
                f"not raced: {row['model']} {row['precision']} {row['threads']} x {shape(row)}: {row['skipped']}"
            )
        for name, why in row.get("refused", {}).items():
            print(f"disagrees with pytorch: {row['model']} {row['precision']} {shape(row)}: {name}: {why}")
    for place, reason in result["absent"].items():
        print(f"absent: {place}: {reason}")
    for entry in result["spin"]:
        show_spin(entry)


def show_group(rows: Sequence[Row], precision: str) -> None:
    """One line for each shape."""
    peers = [name for name in rows[0]["llmc_over"]]
    static = any("llmc-static" in row["median_seconds"] for row in rows)
    columns = ["shape", ">llmc", ">llmc / best", "best", *(f">{SHORT.get(name, name)}" for name in peers)]
    columns += [">peak", ">scaling", ">fp32/int8" if precision == "int8" else "", ">apart"]
    columns += [">static"] if static else []
    cells = [_cells(row, peers, precision, static) for row in rows]
    kept = [i for i, name in enumerate(columns) if name and any(line[i] for line in cells)]
    print_table("", [columns[i] for i in kept], [[line[i] for i in kept] for line in cells])
    rates = {name: rate for row in rows for name, rate in row["peak_per_second"].items()}
    print(
        "peaks of the last shape: "
        + ", ".join(
            f"{name} {rate / 1e9:.0f} G{'B' if name == 'stream' else 'op'}/s ({KINDS[name].what})"
            for name, rate in rates.items()
        )
    )


def _cells(row: Row, peers: Sequence[str], precision: str, static: bool) -> list[str]:
    best, over = best_of(row) if "best" in row else ("", None)
    apart = (
        f"{max(found['difference'] for found in row['apart'].values()):.0e}"
        if precision.startswith("fp32")
        else f"cos {min(found['cosine'] for found in row['apart'].values()):.3f}"
    )
    line = [
        shape(row),
        time_text(row["median_seconds"]["llmc"]),
        interval(over) if over else "",
        SHORT.get(best, best),
        *(f"{row['llmc_over'][name][0]:.2f}" if name in row["llmc_over"] else "-" for name in peers),
        share_text(row),
        scaling_text(row),
        f"{row['faster_than_fp32'][0]:.2f}" if "faster_than_fp32" in row else "",
        apart,
    ]
    return [*line, time_text(row["median_seconds"]["llmc-static"])] if static else line


def show_spin(entry: Mapping[str, Any]) -> None:
    """Two threads over one, with another process on one of the cores and without."""
    print(
        f"\n{entry['model']} {entry['precision']} {entry['batch']} x {entry['seq']}: {entry['threads']} threads, "
        "another process spins on one core"
    )
    columns = ["", ">1 thread", f">{entry['threads']} threads", ">of own 1 thread", ">the same, core free"]
    busy, free = entry["busy"], entry["free"]
    cells = [
        [
            name,
            time_text(busy["median_seconds"][f"{name}{ONE}"]),
            time_text(busy["median_seconds"][name]),
            interval(value),
            interval(free["over_one"][name]),
        ]
        for name, value in busy["over_one"].items()
    ]
    print_table("", columns, cells)


def markdown(result: Result) -> str:
    """The README's part: llmc over the best peer for each shape and number of threads, and the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    notes = [
        machine_text(result["machine"], result["isa"]) + ".",
        result["held"][0].upper() + result["held"][1:] + ".",
    ]
    notes += [f"Peers: {versions}.", _spin_text(result["spin"])]
    return "\n".join([*_grid(result["rows"]), *(note for note in notes if note)]) + "\n"


def _grid(rows: Sequence[Row]) -> list[str]:
    """A line for each model, precision and shape; three columns for each number of threads."""
    raced = [row for row in rows if "best" in row]
    if not raced:
        return []
    threads = sorted({row["threads"] for row in raced})
    heads = ["model", "precision", "batch x seq"]
    for count in threads:
        heads += [f"{count} thread{'s' * (count > 1)}: llmc / best peer", "best peer", "of peak"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for place in dict.fromkeys(map(_place, raced)):
        cells = list(place)
        for count in threads:
            row = next((r for r in raced if _place(r) == place and r["threads"] == count), None)
            cells += ["", "", ""] if row is None else _best_cells(row)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _place(row: Row) -> tuple[str, str, str]:
    return row["model"], row["precision"], shape(row)


def _best_cells(row: Row) -> list[str]:
    best, over = best_of(row)
    return [interval(over), best, share_text(row)]


def _spin_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for each model."""
    texts = []
    for entry in entries:
        values = ", ".join(f"{name} {value[0]:.2f}" for name, value in entry["busy"]["over_one"].items())
        texts.append(
            f"With another process spinning on one of the cores, {entry['threads']} threads take, of each one's own "
            f"time on one thread, {values} ({entry['model']}, {entry['precision']}, {shape(entry)})."
        )
    return " ".join(texts)
