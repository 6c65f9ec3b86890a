"""A pipeline: passes run in order over a graph, each verified, timed, printed and reported.

None of this is a pass's business. The environment variables LLMC_DEBUG (1: times, 2: changed graphs,
3: every rule that fired or declined) and LLMC_DUMP (a folder for the graph after each pass, with LLMC_DUMP_WEIGHTS=1
weights and all) work everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from llmc.compiler.bodies import run_everywhere
from llmc.compiler.effects import Effect, joined, listening
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.observers import Observer, environment, printing
from llmc.compiler.rewrite import Event, Journal, recording
from llmc.compiler.spec import EXACT, LOSSY, Keeps, Pass, build, close, near, parse_texts
from llmc.compiler.verify import verify, verify_module
from llmc.compiler.watch import watched
from llmc.errors import LlmcError, in_a_line

__all__ = ["EXACT", "LOSSY", "Keeps", "Observer", "Pass", "PassRun", "Pipeline", "Report", "close", "near"]


_DUMP = "a fault of the pass; set LLMC_DUMP=folder to keep the graph it was given"
_SHARED = "graphs share weights: a pass makes a new array and a new constant"


@dataclass(frozen=True)
class PassRun:
    """How one pass went.

    Args:
        name: the pass's text, options included.
        seconds: wall time, verification not included.
        nodes_before, nodes_after: sizes of the graph.
        applied: rule -> how often it applied.
        events: rules that applied or declined, with place and reason.
        changed: whether the pass returned another graph.
        effects: what the pass says it did.
    """

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    applied: Mapping[str, int] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    changed: bool = True
    effects: tuple[Effect, ...] = ()

    @property
    def declined(self) -> tuple[Event, ...]:
        return tuple(e for e in self.events if e.reason)

    def __str__(self) -> str:
        rules = "  ".join(f"{rule} {count}" for rule, count in sorted(self.applied.items()))
        size = f"{self.nodes_before} -> {self.nodes_after} nodes"
        done = "".join(f"\n{'':<12} {effect}" for effect in self.effects)
        return f"{self.name:<12} {self.seconds:7.3f} s  {size}  {rules}".rstrip() + done


@dataclass(frozen=True)
class Report:
    """The runs of a pipeline's passes, in order."""

    runs: tuple[PassRun, ...]

    def __str__(self) -> str:
        return "\n".join(str(run).rstrip() for run in self.runs)

    def _repr_html_(self) -> str:
        from llmc.html import Page, Table

        rows = [
            (
                r.name,
                f"{r.seconds:.3f} s",
                f"{r.nodes_before} -> {r.nodes_after}",
                dict(sorted(r.applied.items())),
            )
            for r in self.runs
        ]
        table = Table(("pass", "time", "nodes", "rules applied"), rows)
        return str(Page(f"{len(rows)} passes", str(self), tables=(table,)))


@dataclass(frozen=True)
class Step:
    """A pass and the name it goes by in the pipeline's text (`file.py:Name` for a pass from a file)."""

    label: str
    change: Pass

    def __str__(self) -> str:
        return self.label + self.change.options_text()


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; `str()` gives a text that `parse` reads back."""

    steps: tuple[Step, ...]

    @staticmethod
    def of(*passes: Pass) -> Pipeline:
        """A pipeline of pass objects."""
        return Pipeline(tuple(Step(p.name, p) for p in passes))

    @staticmethod
    def parse(text: str, registry: Mapping[str, type[Pass]]) -> Pipeline:
        """The pipeline written as `name{option=value,...},name,...`; a name may also be `file.py:Class`.

        Raises:
            LlmcError: the text is malformed, or names a pass or option that does not exist.
        """
        return Pipeline(tuple(Step(t.name, build(t, registry)) for t in parse_texts(text)))

    def __str__(self) -> str:
        return ",".join(map(str, self.steps))

    @property
    def lossy(self) -> bool:
        """Whether a pass may change what the graph computes."""
        return any(step.change.keeps.kind == "lossy" for step in self.steps)

    def run(
        self, graph: Graph, *observers: Observer, print_after: Collection[str] = ()
    ) -> tuple[Graph, Report]:
        """Run every pass on `graph`.

        Args:
            observers: called after each pass with its run and the graph it returned.
            print_after: names of passes whose result is printed to stderr, or "all".

        Raises:
            LlmcError: a pass failed or returned an invalid graph; `at` names the node.
        """
        watching = (*observers, *environment(graph), *printing(print_after, self))
        runs: list[PassRun] = []
        for step in self.steps:
            before = [run.name for run in runs]
            run, graph = _run(step, graph, before)
            runs.append(run)
            for observe in watching:
                observe(run, graph)
        return graph, Report(tuple(runs))

    def run_module(
        self, module: Module, *observers: Observer, print_after: Collection[str] = ()
    ) -> tuple[Module, Mapping[str, Report]]:
        """Run every pass on each function of `module`.

        Raises:
            LlmcError: as `run`, `at` names the function too; or functions do not agree any more on a state.
        """
        functions: dict[str, Graph] = {}
        reports: dict[str, Report] = {}
        for name, graph in module.functions.items():
            try:
                functions[name], reports[name] = self.run(graph, *observers, print_after=print_after)
            except LlmcError as error:
                at = f"function {name}" + (f", {error.at}" if error.at else "")
                raise LlmcError(error.problem, at=at, found=error.found, hint=error.hint) from error
        after = Module(functions)
        verify_module(after)
        return after, reports


def _run(step: Step, graph: Graph, before: list[str]) -> tuple[PassRun, Graph]:
    start = time.perf_counter()
    with recording() as journal, listening() as heard, watched(str(step), graph) as results:
        after = _guarded(step, graph, before)
        results.append(after)
    seconds = time.perf_counter() - start
    if after is not graph:
        _checked(step, graph, after)
    return _record(step, seconds, graph, after, journal, heard), after


def _record(
    step: Step, seconds: float, graph: Graph, after: Graph, journal: Journal, heard: list[Effect]
) -> PassRun:
    return PassRun(
        str(step),
        seconds,
        len(graph.nodes),
        len(after.nodes),
        dict(journal.applied),
        (*journal.fired, *journal.declined),
        after is not graph,
        joined(heard),
    )


def _guarded(step: Step, graph: Graph, before: list[str]) -> Graph:
    """The pass's result; what it raises is reported with its name and the passes already run."""
    try:
        after = run_everywhere(step.change, graph)
    except LlmcError as error:
        problem = f"pass {step}: {error.problem}"
        raise LlmcError(problem, at=error.at, found=error.found, hint=error.hint) from error
    except (Exception, SystemExit) as error:
        said = in_a_line(error)
        raise LlmcError(
            f"pass {step} failed: {said}",
            found=f"passes already run: {', '.join(before) or 'none'}",
            hint=_SHARED if "read-only" in said else _DUMP,
        ) from error
    if not isinstance(after, Graph):
        raise LlmcError(f"pass {step} returned no graph", found=repr(after))
    return after


def _checked(step: Step, graph: Graph, after: Graph) -> None:
    """Hold the pass to a valid graph of the same signature."""
    try:
        verify(after)
    except LlmcError as error:
        problem = f"pass {step} made an invalid graph: {error.problem}"
        raise LlmcError(problem, at=error.at, found=error.found, hint=error.hint) from error
    lossy = step.change.keeps is LOSSY
    old, new = _signature(graph, lossy), _signature(after, lossy)
    if old != new:
        changed = next(f"{a} -> {b}" for a, b in zip([*old, None], [*new, None], strict=False) if a != b)
        raise LlmcError(f"pass {step} changed the inputs or outputs of the graph", found=changed)


def _signature(graph: Graph, lossy: bool) -> list[str]:
    """What callers see. The order of a state's axes is no business of theirs, nor how a lossy pass has it stored."""
    inputs = [f"input {n.attributes['name']} {n.type}" for n in graph.inputs]
    outputs = [f"output {name} {node.type}" for name, node in graph.outputs.items()]
    kinds = ("" if lossy else f" {n.dtype} {sorted(map(str, n.shape))}" for n in graph.states)
    states = [f"state {n.attributes['name']}{kind}" for n, kind in zip(graph.states, kinds, strict=True)]
    return [*inputs, *outputs, *states, *(f"update {name}" for name in graph.updates)]
