"""The result of bench/peers.py as a picture: a panel for each model and precision, llmc's time over each peer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isa import machine_text
from tables import groups

# Of the palette by M. Okabe and K. Ito, which colour-blind readers can tell apart.
COLOURS = {
    "pytorch": "#D55E00",
    "torch.compile": "#E69F00",
    "onnxruntime": "#0072B2",
    "onnxruntime+fusion": "#56B4E9",
    "openvino": "#009E73",
    "openvino-static": "#CC79A7",
}
WIDTH, HEIGHT = 5.2, 3.3  # inches of a panel


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture; its format is that of the name's end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[tuple[str, str], dict[int, list[Mapping[str, Any]]]] = {}
    for (model, precision, threads), rows in groups(result["rows"]):
        panels.setdefault((model, precision), {})[threads] = rows
    across = 2 if len(panels) > 1 else 1
    down = -(-len(panels) // across)
    figure, axes = pyplot.subplots(
        down, across, figsize=(WIDTH * across, HEIGHT * down + 0.9), squeeze=False, layout="constrained"
    )
    for axis, (name, by_threads) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, name, by_threads)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    _legend(figure, panels)
    figure.suptitle(
        "llmc's time / peer's time: below 1 llmc is faster\n"
        + machine_text(result["machine"], result["isa"]),
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _panel(axis: Any, name: tuple[str, str], by_threads: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
    """Shapes along x, ratios with their intervals along y; a marker for each number of threads."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    shapes = sorted({(row["batch"], row["seq"]) for rows in by_threads.values() for row in rows})
    place = {pair: i for i, pair in enumerate(shapes)}
    for offset, (threads, rows) in enumerate(sorted(by_threads.items())):
        for peer in dict.fromkeys(peer for row in rows for peer in row["llmc_over"]):
            seen = sorted(
                (place[row["batch"], row["seq"]], row["llmc_over"][peer])
                for row in rows
                if peer in row["llmc_over"]
            )
            x = [i + 0.22 * (offset - (len(by_threads) - 1) / 2) for i, _ in seen]
            y = [value[0] for _, value in seen]
            spread = [[v[0] - v[1] for _, v in seen], [v[2] - v[0] for _, v in seen]]
            axis.errorbar(
                x,
                y,
                yerr=spread,
                fmt="o" if offset == 0 else "^",
                markersize=4.5,
                elinewidth=0.8,
                color=COLOURS.get(peer, "#000000"),
                markerfacecolor=None if offset == 0 else "white",
            )
    axis.axhline(1, color="black", linewidth=0.9)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(_ticks())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.45), max(high, 1.1))
    axis.grid(axis="y", linewidth=0.4)
    axis.set_xticks(
        range(len(shapes)), [f"{b}x{s}" for b, s in shapes], rotation=45 if len(shapes) > 6 else 0
    )
    axis.set_title(f"{name[0]}, {name[1]}", fontsize=10)
    axis.tick_params(labelsize=8)


def _ticks() -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator([0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 3])


def _legend(figure: Any, panels: Mapping[tuple[str, str], Mapping[int, Sequence[Mapping[str, Any]]]]) -> None:
    from matplotlib.lines import Line2D

    rows = [row for by_threads in panels.values() for part in by_threads.values() for row in part]
    peers = [name for name in COLOURS if any(name in row["llmc_over"] for row in rows)]
    handles = [Line2D([], [], color=COLOURS[name], marker="o", linestyle="", label=name) for name in peers]
    for offset, threads in enumerate(sorted({row["threads"] for row in rows})):
        look = {"marker": "o"} if offset == 0 else {"marker": "^", "markerfacecolor": "white"}
        label = f"{threads} thread{'s' * (threads > 1)}"
        handles.append(Line2D([], [], color="black", linestyle="", label=label, **look))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
