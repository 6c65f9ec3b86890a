"""`llmc compile --max-drop 0.5% --max-size 30MB --max-latency 5ms`: what to do with each layer, chosen together.

What each layer loses by each candidate is measured once, alone; what it weighs and takes is known. Losses of layers
nearly add, so a joint choice is a linear programme. It is tried on rows that it was not measured on, compiled, and held
to the bounds on rows that no choice has seen.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmc import bounds, driver, kept_imports
from llmc.bounds import Budget, BudgetReport
from llmc.candidates import Candidate, Layer, candidates, layers, pipeline_of
from llmc.choosing import Kept, Limits, Option, Point, Table, alike, front_points, kept_figures, layer_choices
from llmc.compiler import artifact
from llmc.costs import Cost, Costs, Figures, measured, variant_of
from llmc.distillation import Columns
from llmc.errors import LlmcError, extras_named
from llmc.optimise import before_quantising
from llmc.options import Order
from llmc.report import CompileReport
from llmc.sensitivity import Evaluator, Loss, Rows, measure_of, read_data

MEASURED = 48  # rows that sensitivities are measured on, at most; a quarter of the data
_SHARE = 0.6  # of the time budget, for measuring
_TRIES = 4  # compiles, until the bounds hold
_BEYOND = 6  # points tried beyond the first that does not hold
_CODE = 500_000  # bytes of an artifact that are not weights, until one is compiled
_IMPORT = ("task", "max_batch", "max_seq", "base", "adapter", "dims", "fixed")
Progress = Callable[[str, float], None]
__all__ = ["Budget", "BudgetReport", "compile_within"]


@extras_named()
def compile_within(
    model: str | Path,
    output: str | Path,
    data: str | Path,
    budget: Budget,
    *,
    columns: Columns | None = None,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> BudgetReport:
    """Compile a model into an artifact within bounds.

    Args:
        data: texts or files like those to come, with labels or without; `columns` names those of a table. What is
            measured, chosen by and held back are different rows of it.
        clock: what the time budget is measured by.
        options: as `llmc.compile` has them, but for those that compress. `calib` has samples to round weights by.

    Raises:
        LlmcError: the data, the model or an option is of no use, or no choice meets the bounds; the best that was
            found is told, and nothing is written.
    """
    import scipy.optimize  # noqa: F401  # told of before any work

    bounds.want_free(options)
    with artifact.new_folder(Path(output)) as folder:
        search = _Search(Path(model), folder, Path(data), columns or Columns(), budget, clock, options)
        report = search.run()
        if report.unmet and not budget.best_effort:
            raise bounds.refusal(report)
        assert report.compiled is not None
        shutil.copytree(report.compiled.path, folder, dirs_exist_ok=True)
        shutil.rmtree(search.scratch)
    compiled = report.compiled and replace(report.compiled, path=Path(output))
    return replace(report, compiled=compiled)


class _Search:
    """One search, from data to an artifact."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        data: Path,
        columns: Columns,
        budget: Budget,
        clock: Callable[[], float],
        options: dict[str, Any],
    ) -> None:
        self.model, self.budget, self.clock, self.options = model, budget, clock, options
        self.scratch, self.begun = folder / "scratch", clock()
        self.progress: Progress = options.pop("progress", None) or (lambda stage, done: None)
        self.say: Callable[[str], None] = options.get("say", lambda line: None)
        self.data, self.columns, self.made = data, columns, self.scratch
        self.tried: dict[int, Loss] = {}
        self.failed, self.skipped = list[Mapping[Layer, Candidate]](), 0
        self.middle: Evaluator | None = None  # on the rows that are chosen by
        self.last: Evaluator | None = None  # on those held back

    def run(self) -> BudgetReport:
        self.progress("import the model", 0.01)
        self._import()
        self.progress("read the data", 0.04)
        self._read()
        self.table = self._measured()
        return self._within(self.table)

    # --- what there is

    def _import(self) -> None:
        if not self.data.exists():
            hint = "--data FILE, of texts like those to come"
            raise LlmcError("there is no such data", at=str(self.data), hint=hint)
        given = {name: self.options[name] for name in _IMPORT if self.options.get(name) is not None}
        unused = {"ignore_unused": bool(self.options.get("ignore_unused_weights"))}
        self.imported = kept_imports.load(self.model, **{"task": "auto", **given}, **unused)
        if len(self.imported.module.functions) > 1 or self.imported.graph.states:
            found = ", ".join(self.imported.module.functions)
            hint = "use --quant w8 or w4, and measure it by `llmc eval`"
            raise LlmcError("a budget is for models of one function without states", found=found, hint=hint)
        own = {n: v for n, v in self.options.items() if n in driver.Options.__annotations__}
        own |= {"padding": own.get("padding") or "zero"}
        samples = own.pop("calib", None)
        self.sampled = samples is not None
        self.order = Order("budget", None, own)  # type: ignore[arg-type]  # as `compile` has them
        graphs, self.finished = before_quantising(self.imported, self.order, driver.compile_graph)
        (self.graph,) = graphs.values()
        self.layers = layers(self.graph)
        self.candidates = candidates(self.order.backend)
        timed = self.budget.max_latency is not None or self.budget.minimise != "size"
        figures = self._timed() if timed and self.budget.measure else None
        here = next(iter(self.order.backend.runs_here(self.order.target)), "")
        self.variant = f"{here}, timed here" if figures else variant_of(self.order.target) if timed else ""
        sizes = bounds.sizes_of(self.graph, self.budget)
        self.costs = Costs(self.order.target, sizes, self.variant, figures)

    def _timed(self) -> Figures:
        """Figures of this machine: of the model as it is, and with all layers by each candidate; kept like the rest.

        Raises:
            LlmcError: it does not run the target's code.
        """
        target, sizes = self.order.target, bounds.sizes_of(self.graph, self.budget)
        if not self.order.backend.runs_here(target):
            raise LlmcError(
                "this machine does not run what is to be measured", at=f"--measure, --target {target.name}"
            )
        self.progress("time kernels", 0.05)
        names = dict.fromkeys(c.name for c in self.candidates)
        choices = [
            {x: c for x in self.layers for c in self.candidates if (c.name, c.kind) == (name, x.kind)}
            for name in ("", *names)
        ]
        changed = (pipeline_of(choice, self.layers).run(self.graph)[0] for choice in choices)
        return kept_figures(
            (str(self.graph), target.name, str(sizes), str(list(names))),
            lambda: measured(((self.finished(g), [sizes]) for g in changed), target, driver.compile_graph),
        )

    def _read(self) -> None:
        rows = read_data(self.imported, self.graph, self.data, self.columns, self.budget.rows)
        self.measure = measure_of(self.imported, rows.labels is not None)
        each = self.measure.rows_for(self.budget.max_drop)
        need = 2 * each + self.measure.least_rows
        if len(rows.samples) < need:
            share = f" to tell a loss of {self.budget.max_drop:.2%}" if self.budget.max_drop else ""
            raise LlmcError(
                f"too few rows{share}: {need} are needed",
                at=str(self.data),
                found=f"{len(rows.samples)}",
                hint=f"{self.measure.least_rows} to measure by, {each} to choose by and {each} held back",
            )
        order = np.random.default_rng(0).permutation(len(rows.samples)).tolist()
        first = min(MEASURED, len(order) - 2 * each, max(self.measure.least_rows, len(order) // 4))
        half = (len(order) - first) // 2
        self.parts: dict[str, Rows] = {
            "measured": rows.part(order[:first]),
            "chosen by": rows.part(order[first : first + half]),
            "held back": rows.part(order[first + half :]),
        }

    def _evaluator(self, part: str, keep: bool = False) -> Evaluator:
        return Evaluator(self.graph, self.parts[part], keep).of_numbers(self.measure)

    # --- sensitivity and cost

    def _spent(self) -> float:
        return self.clock() - self.begun

    def _measured(self) -> Table:
        """Each layer and candidate once; what an earlier search has measured is taken from there."""
        self.progress("measure layers", 0.08)
        kept = Kept.of(self.graph, self.parts["measured"], self.measure, self.order, self.costs)
        base = self.costs.of(self.finished(self.graph))
        options: dict[Layer, dict[Candidate, Option]] = {layer: {} for layer in self.layers}
        work = [(c, layer) for c in self.candidates for layer in self.layers if layer.kind == c.kind]
        evaluator: Evaluator | None = None
        for at, (candidate, layer) in enumerate(work):
            known = kept.get(layer, candidate)
            if known is None:
                if self._spent() > _SHARE * self.budget.time:
                    self.skipped += 1
                    continue
                evaluator = evaluator or self._evaluator("measured", keep=True)
                known = self._option(layer, candidate, evaluator, base)
                kept.put(layer, candidate, known)
            if known:
                options[layer][candidate] = known[0]
            self.progress(f"{candidate.name}: {layer.name}", 0.08 + 0.5 * (at + 1) / len(work))
        kept.write()
        return Table(base, options, self.budget.aim)

    def _option(
        self, layer: Layer, candidate: Candidate, evaluator: Evaluator, base: Cost
    ) -> tuple[Option, ...]:
        """What a candidate does to a layer; none if it does nothing."""
        plain, _ = pipeline_of({layer: candidate}, self.layers, after=False).run(self.graph)
        if plain is self.graph:
            return ()
        cost = self.costs.of(self.finished(candidate.followed(plain)))
        divergence = evaluator.divergence(plain, self.measure)
        return (Option(divergence, cost.bytes - base.bytes, cost.seconds - base.seconds),)

    # --- the choice

    def _within(self, table: Table) -> BudgetReport:
        """Choose, compile and check, until the bounds hold or there is nothing milder."""
        code, best, tries, ceiling = _CODE, None, 0, None
        for tries in range(1, _TRIES + 1):
            front, at = self._chosen(table, code, ceiling)
            if not front and best is None:  # perhaps with less code
                front, at = self._chosen(table, 0, ceiling)
            if not front:
                break
            report = self._checked(front, at, tries)
            best = bounds.nearest(self.budget, report, best)
            if not report.unmet:
                return report
            if report.size > (self.budget.max_size or math.inf):
                code, ceiling = report.size - front[at].bytes + 4096, None
                self.tried.clear()
            elif (ceiling := at - 1) < 0:
                break
        best = bounds.nearest(self.budget, self._least(table, tries), best)
        for point in self._of_less_code(table, best):
            if not best.unmet or self._spent() > self.budget.time:
                break
            tries += 1
            best = bounds.nearest(self.budget, self._checked([point], 0, tries + 1), best)
        return best

    def _of_less_code(self, table: Table, found: BudgetReport) -> list[Point]:
        """Where code decides what an artifact weighs: choices of fewer kinds of kernels whose weights leave some room.

        Nothing tells how much code is but to compile it.
        """
        assert found.compiled is not None
        own = {name: found.compiled.sizes[name] for name in ("weights.bin", "module.so")}
        room = (self.budget.max_size or 0) - (found.size - sum(own.values()))
        limits = Limits(size=room, seconds=self.budget.max_latency or math.inf)
        every = (table.point({}), *self._alike(table, limits))
        points = [p for p in every if p.bytes <= room and p.choice not in self.failed]
        return sorted(points, key=lambda p: p.bytes)[:_TRIES]

    def _alike(self, table: Table, limits: Limits) -> list[Point]:
        made = partial(pipeline_of, every=self.layers)
        return alike(table, limits, lambda c: self.costs.of(self.finished(made(c).run(self.graph)[0])))

    def _chosen(self, table: Table, code: int, ceiling: int | None) -> tuple[list[Point], int]:
        """The front, and the point that is taken: the last that keeps the bound on rows that were not measured."""
        self.progress("choose", 0.6)
        size = math.inf if self.budget.max_size is None else self.budget.max_size - code
        limits = Limits(size=size, seconds=self.budget.max_latency or math.inf)
        if self.budget.max_drop is None:
            if (mildest := table.best(limits, {"divergence": 1.0})) is None:
                return [], 0
            mildest = self._mildest(table, mildest, limits)
            front = sorted([*table.front(Limits()), mildest], key=lambda p: p.divergence)
            return front, front.index(mildest)
        front = table.front(limits)
        last = len(front) - 1 if ceiling is None else min(ceiling, len(front) - 1)
        return front, self._last_within(front, last) if front else 0

    def _mildest(self, table: Table, point: Point, limits: Limits) -> Point:
        """Of a choice by sums and those of one candidate throughout: what diverges least on rows not measured by."""
        made = partial(pipeline_of, every=self.layers)
        roomy = replace(limits, size=limits.size + _CODE)  # fewer kinds of kernels are less code
        points = [point, *(p for p in self._alike(table, roomy) if p.choice not in self.failed)]
        if len(points) == 1 or self._spent() > 0.85 * self.budget.time:
            return point
        self.middle = evaluator = self.middle or self._evaluator("chosen by")
        graphs = (made(p.choice, after=False).run(self.graph)[0] for p in points)
        return points[int(np.argmin([evaluator.divergence(graph, self.measure) for graph in graphs]))]

    def _last_within(self, front: list[Point], last: int) -> int:
        """By halves: losses grow along the front; by chance not everywhere, so the next points are tried as well."""
        low, high = 0, last
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._holds(front, middle) else (low, middle - 1)
        beyond = range(low + 2, min(low + 2 + _BEYOND, last + 1))
        return next((at for at in reversed(beyond) if self._holds(front, at)), low)

    def _holds(self, front: list[Point], at: int) -> bool:
        """Whether a point keeps the bound on the rows that are chosen by; not where there is no time to see."""
        if at not in self.tried:
            if self._spent() > 0.85 * self.budget.time:
                return False  # the best that is known to hold
            self.middle = evaluator = self.middle or self._evaluator("chosen by")
            graph, _ = pipeline_of(front[at].choice, self.layers, after=False).run(self.graph)
            self.tried[at] = evaluator.loss(graph, self.measure)
            self.progress(f"try point {at + 1} of {len(front)}", 0.65)
        # a standard error more, as the rows held back are others
        return self.tried[at].mean + self.tried[at].error <= (self.budget.max_drop or 0.0)

    def _least(self, table: Table, tries: int) -> BudgetReport:
        """Where bounds seem out of reach: the least weights, or of what loses no more than may be the nearest."""
        limits = Limits(seconds=self.budget.max_latency or math.inf)
        if self.budget.max_drop is None and (point := table.best(limits, {"bytes": 1.0})) is not None:
            return self._checked([point], 0, tries + 1)
        front = table.front(Limits())
        self.tried.clear()
        at = 0 if self.budget.max_drop is None else self._last_within(front, len(front) - 1)
        return self._checked(front, at, tries + 1)

    # --- the artifact

    def _checked(self, front: list[Point], at: int, tries: int) -> BudgetReport:
        """Compile a point of the front, and hold it to the bounds."""
        point = front[at]
        text = str(pipeline_of(point.choice, self.layers, self.sampled))
        self.progress("compile", 0.75)
        compiled = self._compile(f"{tries}", text)
        size = sum(compiled.sizes.values())
        self.progress("check on rows held back", 0.9)
        held, native = self._held(point, compiled)
        if unmet := bounds.broken(self.budget, size, point.seconds, held.mean):
            self.failed.append(point.choice)
        return BudgetReport(
            compiled,
            self.measure.says,
            {name: len(part.samples) for name, part in self.parts.items()},
            held,
            native,
            size,
            point.seconds,
            size - point.bytes + self.table.base.bytes,
            self.table.base.seconds,
            self.variant,
            layer_choices(point, self.layers, self.table.options),
            front_points(front, at, self.layers, self.tried),
            tries,
            self.skipped,
            self._spent(),
            text,
            unmet,
        )

    def _compile(self, name: str, text: str) -> CompileReport:
        """Into the scratch folder."""
        self.scratch.mkdir(exist_ok=True)
        self.made = self.scratch / f"{name}.llmc"
        added = self.options.get("add_passes") or ()
        passes = [added] if isinstance(added, str) else [*added]
        own = {**self.options, "add_passes": [*passes, *([f"{text}@quantise"] if text else [])]}
        own["name"] = own.get("name") or self.imported.name
        if not any(c.sampled and c.sampled in text for c in self.candidates):
            own.pop("calib", None)
        return driver.compile(self.model, self.made, **own)

    def _held(self, point: Point, compiled: CompileReport) -> tuple[Loss, bool]:
        """The loss on rows held back, by native code where this machine runs it."""
        self.last = evaluator = self.last or self._evaluator("held back")
        if not compiled.runs_here:
            graph, _ = pipeline_of(point.choice, self.layers, self.sampled, after=False).run(self.graph)
            return evaluator.loss(graph, self.measure), False
        import llmc

        values, done = [], 0
        with llmc.load(self.made, threads=1) as model:
            for before in evaluator.before:
                count = len(next(iter(before.values())))
                samples = evaluator.rows.samples[done : done + count]
                labels = evaluator.rows.labels and evaluator.rows.labels[done : done + count]
                for i, sample in enumerate(samples):
                    own = {n: np.asarray(v) for n, v in model.run(sample).items()}
                    theirs = {n: v[i : i + 1] for n, v in before.items()}
                    if self.measure.name == "noise":
                        theirs = {n: v[tuple(map(slice, own[n].shape))] for n, v in theirs.items()}
                    values.append(self.measure.loss(theirs, own, labels and labels[i : i + 1]))
                done += count
        return Loss.of(np.concatenate(values)), True
