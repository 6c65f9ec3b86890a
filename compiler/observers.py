"""For --print-after, LLMC_DEBUG, LLMC_DUMP."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llmc.compiler.graph import Graph
from llmc.compiler.graph_file import write_graph
from llmc.compiler.spec import near
from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.compiler.pipeline import PassRun, Pipeline

Observer = Callable[["PassRun", Graph], None]


def printing(names: Collection[str], pipeline: Pipeline) -> tuple[Observer, ...]:
    """An observer that prints the graph after the named passes.

    Raises:
        LlmcError: no pass of the pipeline has that name.
    """
    want_passes(names, pipeline)

    def show(run: PassRun, graph: Graph) -> None:
        if _is_among(run, names):
            print(f"# after {run.name}\n{graph}", file=sys.stderr)

    return (show,) if names else ()


def want_passes(names: Collection[str], pipeline: Pipeline) -> None:
    """Check the names that --print-after may have.

    Raises:
        LlmcError: none is so called.
    """
    known = {step.label for step in pipeline.steps} | {"all"}
    for name in names:
        if name not in known:
            raise LlmcError(f"--print-after: the pipeline has no pass {name!r}", hint=near(name, known))


def _is_among(run: PassRun, names: Collection[str]) -> bool:
    return "all" in names or run.name.split("{")[0] in names


def environment(graph: Graph) -> tuple[Observer, ...]:
    """The observers that LLMC_DEBUG and LLMC_DUMP ask for.

    Raises:
        LlmcError: LLMC_DEBUG is not a number.
    """
    level, folder = os.environ.get("LLMC_DEBUG", "0"), os.environ.get("LLMC_DUMP")
    if not level.isdigit():
        raise LlmcError("LLMC_DEBUG must be a number from 0 to 4", found=level)
    ladder: tuple[Observer, ...] = (_show_time, _show_changed, _show_events)
    return ladder[: int(level)] + ((_dump_of(Path(folder), graph),) if folder else ())


def _show_time(run: PassRun, graph: Graph) -> None:
    print(run, file=sys.stderr)


def _show_changed(run: PassRun, graph: Graph) -> None:
    if run.changed:
        print(f"# after {run.name}\n{graph}", file=sys.stderr)


def _show_events(run: PassRun, graph: Graph) -> None:
    for event in run.events:
        outcome = f"declined: {event.reason}" if event.reason else "applied"
        print(f"#   {event.rule}: {event.node} {event.source}: {outcome}", file=sys.stderr)


class Dump:
    """Writes `03_fuse.txt` for the third pass, and so on, after the passes of these names or after all.

    What else this process runs goes on counting: `04_input.txt` begins the next pipeline, or the next function.
    """

    written: ClassVar[Counter[Path]] = Counter()  # files in each folder

    def __init__(self, folder: Path, weights: bool, names: Collection[str] = ("all",)) -> None:
        self.folder, self.weights, self.names = folder, weights, names

    def __call__(self, run: PassRun, graph: Graph) -> None:
        if _is_among(run, self.names):
            self.write(run.name.split("{")[0].rsplit(":", 1)[-1], graph)

    def write(self, name: str, graph: Graph) -> None:
        path = self.folder / f"{self.written[self.folder]:02}_{name}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.weights:
                write_graph(path, graph)
            else:
                path.write_text(str(graph), encoding="utf-8")
        except OSError as error:
            raise LlmcError(f"cannot write: {error.strerror}", at=str(self.folder)) from error
        self.written[self.folder] += 1


def _dump_of(folder: Path, graph: Graph) -> Dump:
    """What LLMC_DUMP asks for: `00_input.txt` before the first pass."""
    dump = Dump(folder, bool(os.environ.get("LLMC_DUMP_WEIGHTS")))
    try:
        dump.write("input", graph)
    except LlmcError as error:
        raise LlmcError(f"LLMC_DUMP: {error.problem}", at=error.at, hint=error.hint) from error
    return dump
