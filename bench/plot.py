"""The result of bench/peers.py as a picture: a panel for each model and precision, llmc's time over each peer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isa import machine_text
from tables import groups, shape

Row = Mapping[str, Any]
Panel = Mapping[int, Sequence[Row]]  # threads -> rows
MARKS = "o^"

# Of the palette by M. Okabe and K. Ito, which colour-blind readers can tell apart.
COLOURS = {
    "pytorch": "#D55E00",
    "torch.compile": "#E69F00",
    "onnxruntime": "#0072B2",
    "onnxruntime+fusion": "#56B4E9",
    "openvino": "#009E73",
    "openvino-static": "#CC79A7",
}
WIDTH, HEIGHT = 5.4, 3.3  # inches of a panel of up to SHAPES shapes
SHAPES = 6
LOWEST = 0.2  # ratios below are drawn here, with an arrow
TICKS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture; its format is that of the name's end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for (model, precision, threads), rows in groups(result["rows"]):
        panels.setdefault((model, precision), {})[threads] = rows
    most = max(len(places(panel)) for panel in panels.values())
    across = 2 if len(panels) > 1 and most <= SHAPES else 1
    width, down = WIDTH * across if most <= SHAPES else 2 * WIDTH, -(-len(panels) // across)
    figure, axes = pyplot.subplots(
        down, across, figsize=(width, HEIGHT * down + 0.9), squeeze=False, layout="constrained"
    )
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, panel)
        axis.set_title(", ".join(name), fontsize=10)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    _legend(figure, [row for row in result["rows"] if "llmc_over" in row])
    machine = machine_text(result["machine"], result["isa"])
    figure.suptitle(f"llmc's time / peer's time: below 1 llmc is faster\n{machine}", fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def places(panel: Panel) -> dict[str, int]:
    """Shape -> its place along x."""
    shapes = sorted({(row["batch"], row["seq"]) for rows in panel.values() for row in rows})
    return {f"{batch}x{seq}": i for i, (batch, seq) in enumerate(shapes)}


def _panel(axis: Any, panel: Panel) -> None:
    """Shapes along x, in each the numbers of threads side by side, in each of these the peers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    place = places(panel)
    room = 0.8 / len(panel)  # of a number of threads, within a shape
    for number, (_, rows) in enumerate(sorted(panel.items())):
        for row in rows:
            for peer, value in row["llmc_over"].items():
                order = list(COLOURS).index(peer) if peer in COLOURS else len(COLOURS)
                left = place[shape(row)] - 0.4 + room * (number + 0.1)
                _mark(axis, left + 0.8 * room * (order + 0.5) / len(COLOURS), value, peer, number)
    axis.axhline(1, color="black", linewidth=0.9)
    for i in range(1, len(place)):
        axis.axvline(i - 0.5, color="#cccccc", linewidth=0.6)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(FixedLocator(TICKS))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(LOWEST * 0.93, max(axis.get_ylim()[1], 1.1))
    axis.set_xlim(-0.5, len(place) - 0.5)
    axis.grid(axis="y", linewidth=0.4)
    axis.set_xticks(list(place.values()), list(place))
    axis.tick_params(labelsize=8)


def _mark(axis: Any, x: float, value: Sequence[float], peer: str, number: int) -> None:
    """One ratio with its interval."""
    colour, (ratio, low, high) = COLOURS.get(peer, "#000000"), value
    fill = colour if number == 0 else "white"
    if ratio < LOWEST:
        axis.plot([x], [LOWEST], marker="v", markersize=4.5, color=colour, markerfacecolor=fill)
        return
    spread = [[ratio - max(low, LOWEST)], [high - ratio]]
    axis.errorbar(
        [x],
        [ratio],
        yerr=spread,
        fmt=MARKS[number % 2],
        markersize=4.5,
        elinewidth=0.8,
        color=colour,
        markerfacecolor=fill,
    )


def _legend(figure: Any, rows: Sequence[Row]) -> None:
    """Colours of the peers, marks of the numbers of threads."""
    from matplotlib.lines import Line2D

    peers = [name for name in COLOURS if any(name in row["llmc_over"] for row in rows)]
    handles = [Line2D([], [], color=COLOURS[name], marker="o", linestyle="", label=name) for name in peers]
    for number, threads in enumerate(sorted({row["threads"] for row in rows})):
        handles.append(
            Line2D(
                [],
                [],
                color="black",
                linestyle="",
                marker=MARKS[number % 2],
                markerfacecolor="black" if number == 0 else "white",
                label=f"{threads} thread{'s' * (threads > 1)}",
            )
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
