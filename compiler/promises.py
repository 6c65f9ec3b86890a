"""`--verify-each`: every pass is held to its promise by the interpreter, and a breach is traced to its cause.

The graph runs on sample inputs before and after each pass. Where the outputs are further apart than the pass
promises (exact, close, lossy), its rewrites are bisected: the pass runs again with fewer and fewer of them,
until one remains whose application makes the difference. The node where values part is then found by source.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler import interpret
from llmc.compiler.bodies import run_everywhere
from llmc.compiler.dims import evaluate
from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.pipeline import Observer, PassRun, Pipeline, Report, Step
from llmc.compiler.reproducer import write_reproducer
from llmc.compiler.rewrite import Event, recording
from llmc.compiler.sequences import sessions
from llmc.compiler.spec import Keeps
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


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
        hint = check.reproduce(error.problem)
        hint = f"{error.hint}; {hint}" if error.hint else hint
        raise LlmcError(error.problem, at=error.at, found=error.found, hint=hint) from error


class Breach(LlmcError):
    """A pass does not keep what it promises."""


@dataclass(frozen=True)
class Session:
    """What is tried: the inputs of calls that follow each other, and the states before the first.

    States are as the first axis grows, if one does: the order of a state's axes is a pass's to choose.
    """

    states: Arrays
    calls: Sequence[Arrays]


def samples(graph: Graph) -> list[Session]:
    """Legal sessions, seeded: small and odd sizes; of a graph without states one call each.

    An input with a default has rows that end in zeros (padding).
    """
    rng = np.random.default_rng(0)
    return [_session(graph, sizes, rng) for sizes in sessions(graph) if sizes]


def _session(graph: Graph, sizes: Sequence[Mapping[str, int]], rng: np.random.Generator) -> Session:
    states = {node.attributes["name"]: _begun(node, sizes[0], rng) for node in graph.states}
    return Session(states, [_sample(graph, s, rng) for s in sizes])


def _sample(graph: Graph, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, Array]:
    return {n.attributes["name"]: _draw(n, [evaluate(d, sizes) for d in n.shape], rng) for n in graph.inputs}


def _begun(state: Node, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    shape = [evaluate(d, sizes) for d in state.shape]
    if state.attributes["grows"] is not None:
        shape.insert(0, shape.pop(state.attributes["grows"]))
    values = rng.standard_normal(shape) if DTYPES[state.dtype].kind == "f" else rng.integers(0, 2, shape)
    return values.astype(DTYPES[state.dtype])


def play(graph: Graph, session: Session, watch: interpret.Watch | None = None) -> dict[str, Array]:
    """The outputs of the calls of a session, and the states after the last, by names that tell them apart."""
    found: dict[str, Array] = {}
    grows = {node.attributes["name"]: node.attributes["grows"] or 0 for node in graph.states}
    states: Mapping[str, Array] = {
        n: np.moveaxis(v, 0, grows[n]) if v.ndim else v for n, v in session.states.items()
    }
    for number, inputs in enumerate(session.calls, 1):
        outputs, states = interpret.step(graph, inputs, states, watch)
        found |= {f"{name}{f' of call {number}' if number > 1 else ''}": v for name, v in outputs.items()}
    last = {f"state {n}": np.moveaxis(v, grows[n], 0) if v.ndim else v for n, v in states.items()}
    return found | last


def _draw(node: Node, shape: list[int], rng: np.random.Generator) -> Array:
    kind, low, high = DTYPES[node.dtype], node.attributes["low"], node.attributes["high"]
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    if node.attributes["default"] is not None and len(shape) == 2:
        value = np.full(shape, node.attributes["default"], kind)
        value[1:, 3:] = 0 if low is None else low
        return value
    return rng.integers(low or 0, (1 if high is None else high) + 1, shape).astype(kind)


class PromiseCheck:
    """An observer of one run of `pipeline` over `graph`."""

    def __init__(self, graph: Graph, pipeline: Pipeline, say: Callable[[str], None]) -> None:
        self.position, self.graph, self._steps, self._say = 0, graph, pipeline.steps, say
        self._samples = samples(graph)
        self._before = [play(graph, s) for s in self._samples]

    def __call__(self, run: PassRun, graph: Graph) -> None:
        step = self._steps[self.position]
        if run.changed:
            after = [play(graph, s) for s in self._samples]
            name, apart = _furthest(self._before, after)
            keeps = step.change.keeps
            self._say(f"{step}: {name} differs by {apart:.1e} of its scale, promised {keeps}")
            if apart > allowed(keeps):
                raise self._breach(step, graph, name, apart)
            self._before = after
        self.graph, self.position = graph, self.position + 1

    def reproduce(self, why: str) -> str:
        """Write the graph that the current pass was given; how to run it."""
        path = write_reproducer(self.graph, str(self._steps[self.position]), why)
        return f"llmc opt {path} --verify-each runs it again"

    def _breach(self, step: Step, after: Graph, name: str, apart: float) -> Breach:
        found = [f"output {name!r} is {apart:.3g} of its scale apart"]
        cause = self._culprit(step, after)
        good, bad = (cause.good, cause.bad) if cause is not None else (self.graph, after)
        if cause is not None:
            event = cause.event
            found.append(f"rewrite {cause.number}: {event.rule} at {event.node} of {event.source or '?'}")
        elif after is not self.graph:
            found.append("not made by a rewrite rule")
        node = self._first_difference(good, bad, allowed(step.change.keeps))
        if node is not None:
            found.append(f"first differing node: {node.op} {node.type}")
        problem = f"pass {step} promises {step.change.keeps} and breaks it"
        at = str(node.source) if node is not None else f"output {name}"
        return Breach(problem, at=at, found="\n         ".join(found), hint=self.reproduce(problem))

    # --- tracing

    def _culprit(self, step: Step, after: Graph) -> Cause | None:
        """The first rewrite after which the promise is broken, by bisection; None if it is none of them."""
        total = _limited(step, self.graph, None)[1]
        low, high = 0, total  # kept with `low` rewrites, broken with `high`
        if not total or self._broken(step, low) is not False:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            broken = self._broken(step, middle)
            if broken is None:  # the pass does not hold together with half its rewrites
                return None
            low, high = (low, middle) if broken else (middle, high)
        bad, _, event = _limited(step, self.graph, high)
        good = _limited(step, self.graph, low)[0]
        return None if event is None else Cause(high, event, good, bad)

    def _broken(self, step: Step, limit: int) -> bool | None:
        try:
            graph = _limited(step, self.graph, limit)[0]
            after = [play(graph, s) for s in self._samples]
        except (LlmcError, AssertionError):
            return None
        return _furthest(self._before, after)[1] > allowed(step.change.keeps)

    def _first_difference(self, good: Graph, bad: Graph, limit: float) -> Node | None:
        """The first node of `bad` whose value none of `good`'s nodes of its source and shape has."""
        for sample in self._samples:
            known: dict[tuple[str, Any], list[Array]] = {}
            seen: set[Node] = set()

            def note(node: Node, value: Array, known: Any = known, seen: Any = seen) -> None:
                seen.add(node)
                known.setdefault((str(node.source), value.shape), []).append(value)

            play(good, sample, note)
            parted: list[Node] = []

            def compare(
                node: Node, value: Array, known: Any = known, seen: Any = seen, parted: Any = parted
            ) -> None:
                twins = known.get((str(node.source), value.shape), [])
                if twins and node not in seen and all(_apart(t, value) > limit for t in twins):
                    parted.append(node)

            play(bad, sample, compare)
            if parted:
                return parted[0]
        return None


@dataclass(frozen=True)
class Cause:
    """Rewrite `number` of a pass, what it was, and the graphs without and with it."""

    number: int
    event: Event
    good: Graph
    bad: Graph


def _limited(step: Step, graph: Graph, limit: int | None) -> tuple[Graph, int, Event | None]:
    """The pass with its first `limit` rewrites only; how many were applied, and the last of them."""
    with recording(limit) as journal:
        after = run_everywhere(step.change, graph)
    return after, journal.applied.total(), journal.last


def allowed(keeps: Keeps) -> float:
    """The largest difference, as a share of the output's scale, that a promise leaves room for."""
    return {"exact": 0.0, "close": keeps.tolerance}.get(keeps.kind, float("inf"))


def _furthest(before: list[dict[str, Array]], after: list[dict[str, Array]]) -> tuple[str, float]:
    """The output that differs most over all samples, and by how much."""
    found = [(_apart(b[name], a[name]), name) for b, a in zip(before, after, strict=True) for name in b]
    apart, name = max(found, default=(0.0, ""))
    return name, apart


def _apart(a: Array, b: Array) -> float:
    """Largest difference as a share of `a`'s largest magnitude; inf where only one of them is a number."""
    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        scale = np.abs(x[np.isfinite(x)]).max(initial=0.0) or 1.0
        differ = ~((x == y) | (np.isnan(x) & np.isnan(y)))
        apart = float(np.abs(x - y)[differ].max(initial=0.0) / scale)
    return float("inf") if apart != apart else apart
