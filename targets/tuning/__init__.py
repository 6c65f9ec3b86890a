"""Searches for schedules of products on the machine that compiles (docs/tuning.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmc.compiler.calls import Call
from llmc.compiler.dims import Bounds, Dim, evaluate, upper_bound
from llmc.errors import LlmcError
from llmc.targets import store
from llmc.targets.cpu.products.blocking import ProductShape, Schedule
from llmc.targets.host import machine, processor, runs_here
from llmc.targets.target import Cpu, Target
from llmc.targets.tuning.records import FOLDER, Records, choices
from llmc.targets.tuning.search import Outcome, find_schedule
from llmc.targets.tuning.trial import Trial

ROWS = (1, 8, 32, 128, 512)  # numbers of rows that a schedule is judged by
LONGEST = 5e9  # FLOP of a run that is worth waiting for

Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Tuned:
    """One product's outcome on `processor` (a text), and whether an earlier search had found it."""

    outcome: Outcome
    processor: str
    cached: bool


def measured_variant(target: Target) -> Cpu:
    """The instruction set of the products' code that an artifact for `target` runs on this machine.

    Raises:
        LlmcError: there is none.
    """
    cpu = next((cpu for cpu in target.cpus if runs_here(cpu)), None)
    if cpu is None:
        raise LlmcError(
            f"tuning measures kernels on the machine they are for, and code for {target.name} does not run on this one",
            at="--tune",
            found=f"{machine()}: {', '.join(processor().variants) or 'no known instruction set'}",
            hint="compile there with --tune, or here without it",
        )
    return cpu.code_for("linear")


def tune(
    calls: Sequence[Call],
    dims: Mapping[str, Bounds],
    target: Target,
    kept: store.Store,
    seconds: float,
    tell: Tell = lambda stage, done: None,
) -> dict[ProductShape, Tuned]:
    """The schedules for the products of a graph, each searched for once or found in the cache.

    Args:
        dims: bounds of the dims of the graph.
        target: as the artifact has it, with this machine's variant among its own.
        seconds: for all searches together; with none left, products that are not in the cache are left out.
        tell: called with (what is being tuned, share done).
    """
    cpu, on, end = measured_variant(target), processor(), time.monotonic() + seconds
    records, tuned = Records(store.folder(FOLDER), on, cpu), {}
    products = _products(calls, dims)
    for number, (shape, rows) in enumerate(products.items()):
        most = max(0.0, end - time.monotonic()) / (len(products) - number)
        outcome = found = records.get(shape, rows, most)
        if found is None and most > 0:
            part = partial(
                _part, tell, f"tune {shape} ({number + 1} of {len(products)})", number, len(products)
            )
            part(0.0)
            outcome = _searched(Trial(shape, rows, target, cpu, kept), most, part)
            records.put(shape, rows, most, outcome)
        if outcome is not None:
            tuned[shape] = Tuned(outcome, str(on), found is not None)
    return tuned


def _part(tell: Tell, stage: str, number: int, count: int, done: float) -> None:
    tell(stage, (number + done) / count)


def _searched(trial: Trial, seconds: float, tell: Callable[[float], None]) -> Outcome:
    end = time.monotonic() + seconds
    return find_schedule(trial.shape, trial.cpu, trial, lambda: end - time.monotonic(), tell)


def _products(calls: Sequence[Call], dims: Mapping[str, Bounds]) -> dict[ProductShape, tuple[int, ...]]:
    """The products of a graph, and for which numbers of rows to measure each."""
    products: dict[ProductShape, tuple[int, ...]] = {}
    for call in calls:
        if isinstance(call.kernel.about, tuple):
            shape = call.kernel.about[0]
            rows = {*products.get(shape, ()), *_rows(shape, call.scalars[0], dims)}
            products[shape] = tuple(sorted(rows))
    return products


def _rows(shape: ProductShape, rows: Dim, dims: Mapping[str, Bounds]) -> set[int]:
    """ROWS, kept within the bounds of what a call may get; of a large product fewer."""
    least = evaluate(rows, {name: bounds.low for name, bounds in dims.items()})
    short = [m for m in ROWS if 2 * m * shape.n * shape.k <= LONGEST]
    return {max(least, min(m, upper_bound(rows, dims))) for m in short or ROWS[:1]}


def described(calls: Sequence[Call], tuned: Mapping[ProductShape, Tuned]) -> list[dict[str, Any]]:
    """The products of a program for its manifest: shape, calls, schedule, and what tuning measured."""
    entries: dict[str, dict[str, Any]] = {}
    for call in calls:
        if isinstance(call.kernel.about, tuple):
            shape, schedule = call.kernel.about
            fresh = {"name": str(shape), "calls": 0, "schedule": choices(schedule)}
            entry = entries.setdefault(call.kernel.symbol, fresh)
            entry["calls"] += 1
            if shape in tuned:
                entry["tuned"] = _measured(tuned[shape])
    return list(entries.values())


def _measured(tuned: Tuned) -> dict[str, Any]:
    """How the schedule was found; `ratio` is its time over the default's, 1 if nothing better was found."""
    found = tuned.outcome
    return {
        "ratio": round(found.ratio, 4),
        "interval": [round(found.low, 4), round(found.high, 4)],
        "tried": found.tried,
        "complete": found.complete,
        "cpu": tuned.processor,
    }


def chosen(tuned: Mapping[ProductShape, Tuned]) -> dict[ProductShape, Schedule]:
    """The schedules that are not the default."""
    found = {shape: t.outcome.schedule for shape, t in tuned.items()}
    return {shape: s for shape, s in found.items() if s != Schedule.default(shape.n)}
