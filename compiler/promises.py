"""`--verify-each`: every pass is held to its promise by the interpreter, and a breach is traced to its cause.

The graph runs on sample inputs before and after each pass, also one that reports no change. Where the outputs are
further apart than the pass promises (exact, close, lossy), the error says which rewrite and which node it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from llmc.compiler.culprit import Breach, Trial, reproduced
from llmc.compiler.differences import furthest
from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Observer, PassRun, Pipeline, Report
from llmc.compiler.samples import play, samples
from llmc.compiler.spec import Keeps
from llmc.errors import LlmcError


def run_verified(
    pipeline: Pipeline,
    graph: Graph,
    *observers: Observer,
    print_after: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Graph, Report]:
    """As `Pipeline.run`, with every pass held to its promise.

    Args:
        say: gets one line for each pass that changed the graph.

    Raises:
        LlmcError: as `Pipeline.run`, or a pass breaks its promise; `hint` names a file that shows it again.
    """
    check = PromiseCheck(graph, pipeline, say)
    try:
        return pipeline.run(graph, check, *observers, print_after=print_after)
    except Breach:
        raise
    except LlmcError as error:
        if check.position >= len(pipeline.steps):
            raise
        hint = reproduced(pipeline.steps[check.position], check.graph, error.problem)
        hint = f"{error.hint}; {hint}" if error.hint else hint
        raise LlmcError(error.problem, at=error.at, found=error.found, hint=hint) from error


class PromiseCheck:
    """An observer of one run of `pipeline` over `graph`."""

    def __init__(self, graph: Graph, pipeline: Pipeline, say: Callable[[str], None]) -> None:
        self.position, self.graph, self._steps, self._say = 0, graph, pipeline.steps, say
        self._sessions = samples(graph)
        self._before = [play(graph, s) for s in self._sessions]

    def __call__(self, run: PassRun, graph: Graph) -> None:
        step = self._steps[self.position]
        keeps, after = step.change.keeps, [play(graph, s) for s in self._sessions]
        name, apart = furthest(self._before, after)
        if run.changed:
            self._say(f"{step}: {name} differs by {apart:.1e} of its scale, promised {keeps}")
        if not run.changed and apart:
            raise self._wrote(str(step), name, apart)
        if apart > allowed(keeps):
            trial = Trial(step, self.graph, self._sessions, self._before, allowed(keeps))
            problem = f"pass {step} promises {keeps} and breaks it"
            raise trial.breach(graph, problem, name, f"output {name!r} is {apart:.3g} of its scale apart")
        self._before, self.graph, self.position = after, graph, self.position + 1

    def _wrote(self, step: str, name: str, apart: float) -> Breach:
        return Breach(
            f"pass {step} changes the graph that it was given, and reports no change",
            at=f"output {name}",
            found=f"output {name!r} is {apart:.3g} of its scale apart",
            hint="graphs, nodes and weights are shared: make new ones",
        )


def allowed(keeps: Keeps) -> float:
    """The largest difference, as a share of the output's scale, that a promise leaves room for."""
    return {"exact": 0.0, "close": keeps.tolerance}.get(keeps.kind, float("inf"))
