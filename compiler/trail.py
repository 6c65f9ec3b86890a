"""The passes that a graph went through, held together by the interpreter.

What a lossy pass does is measured; whatever comes before, between and after lossy passes is held to what it promises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler.culprit import Breach, Trial, is_own
from llmc.compiler.differences import Arrays, furthest, moved
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops.float_steps import makes_levels_of
from llmc.compiler.pipeline import PassRun, Pipeline, Step
from llmc.compiler.promises import allowed
from llmc.compiler.samples import Session, play, samples
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
Plays = Callable[[Graph, Sequence[Session]], list[Arrays]]

# Sums in another order differ by so much, as a share of an output's scale, before what follows rounds them.
_NOISE = 1e-6
# A value between two int8 levels falls to either side by that, and what follows is rounded anew: in a deep model the
# answers move as far as rounding itself moved them, each as good as the other. At least so much:
_LEVELS = 2e-2
# of what the lossy passes moved.
_ANEW = 2.0
# A pass that promises less is measured, as lossy ones are: the artifact answers for what is left after it.
_COARSE = 1e-3
# Nothing of an output is left in one that is further from it than two of its size can be.
_LOST = 2.0
# Squares of larger values, as norms take them, are infinite in float32, and so are sums of products on the way.
_SQUARED = 1.8e19
_PRODUCTS = ("linear", "conv2d", "matmul")  # where values grow; masks may be as large as they like


@dataclass(frozen=True)
class Taken:
    """A pass, what it was given and what it made.

    Args:
        trusted: it does what its caller means it to do; nothing is compared over it.
    """

    step: Step
    before: Graph
    after: Graph
    trusted: bool = False

    @property
    def unchanged(self) -> bool:
        """Whether it says that there was nothing to do."""
        return self.after is self.before

    @property
    def free(self) -> bool:
        """Whether it may change answers by more than other ways to compute do."""
        return self.trusted or allowed(self.step.change.keeps) > _COARSE


@dataclass(frozen=True)
class Loss:
    """What a lossy pass did: the largest difference of `output` as a share of its largest magnitude."""

    step: str
    output: str
    difference: float

    def to_dict(self) -> dict[str, Any]:
        return {"pass": self.step, "output": self.output, "difference": self.difference}


class Trail:
    """The passes that a graph went through, in order."""

    def __init__(self, graph: Graph) -> None:
        self.first, self.taken = graph, list[Taken]()
        self.last = graph
        self.losses: list[Loss] = []
        self.answers: Sequence[Arrays] = ()  # of the last graph in each of `samples`, once they are held
        self.anew = _LEVELS  # how far answers may move where values are rounded anew

    def noting(self, pipeline: Pipeline, trusted: Pipeline) -> Any:
        """An observer of a run of `pipeline` over the last graph."""
        steps, kept = iter(pipeline.steps), {id(step) for step in trusted.steps}

        def note(run: PassRun, after: Graph) -> None:
            step = next(steps)
            self.taken.append(Taken(step, self.last, after, id(step) in kept))
            self.last = after

        return note

    @property
    def lossy(self) -> bool:
        """Whether a pass was free to change the answers."""
        return any(t.free and not t.trusted and not t.unchanged for t in self.taken)

    def hold(self, noted: Sequence[Arrays], plays: Plays | None = None) -> tuple[Loss, ...]:
        """Run what was between lossy passes, and measure these.

        Args:
            noted: the outputs in each of `samples` before any pass ran; empty: not noted.
            plays: what `play` says of each session, which it may know already.

        Raises:
            Breach: a pass did not keep its promise, or a lossy one leaves nothing of an output.
            LlmcError: that is so because the model's own values overflow.
        """
        chain = _Chain(self, noted, plays or _outputs)
        try:
            for taken in self.taken:
                chain.add(taken)
            self.answers = chain.close(self.last)
        except Breach as breach:
            raise self.overflow(breach.problem) or breach from None
        return tuple(self.losses)

    def overflow(self, failure: str) -> LlmcError | None:
        """The first product of the model as it came whose values are beyond what float32 can hold or square.

        Args:
            failure: what was found to differ, which is then nobody's fault.
        """
        found: list[tuple[Node, float]] = []

        def watch(node: Node, value: Array) -> None:
            largest = float(np.abs(value).max(initial=0)) if node.op in _PRODUCTS and not found else 0.0
            if not largest <= _SQUARED:
                found.append((node, largest))

        for session in samples(self.first):
            play(self.first, session, watch)
            if found:
                node, largest = found[0]
                return LlmcError(
                    "the model's own values are beyond what float32 holds, or holds the square of: its answers depend "
                    "on the order of sums",
                    at=f"{node.source or 'the graph'} ({node.op})",
                    found=f"values up to {largest:.3g}; so {failure}",
                    hint="are this layer's weights, and those before it, what was trained? Divide them, so that values "
                    f"stay below {_SQUARED:g}",
                )
        return None

    def blame(self) -> Breach | None:
        """The pass that changes answers, by the interpreter; None if none does."""
        kept = [taken for taken in self.taken if taken.unchanged or not taken.free]
        return self.first_breach(kept, samples(self.first))

    def limit(self, taken: Taken) -> float:
        """How far a pass may move the answers, as a share of an output's scale."""
        if taken.unchanged:
            return _NOISE
        keeps = taken.step.change.keeps
        if keeps.kind == "exact" or not rounds(taken.after):
            return allowed(keeps) + _NOISE
        return allowed(keeps) + self.anew

    def first_breach(self, kept: Sequence[Taken], sessions: Sequence[Session]) -> Breach | None:
        """The first of passes that breaks its promise."""
        for taken in kept:
            if taken.unchanged:
                continue
            before, after = _outputs(taken.before, sessions), _outputs(taken.after, sessions)
            (name, apart), limit = furthest(before, after), self.limit(taken)
            if apart > limit:
                problem = f"pass {taken.step} promises {taken.step.change.keeps} and breaks it"
                found = f"output {name!r} is {apart:.3g} of its scale apart"
                trial = Trial(taken.step, taken.before, sessions, before, limit)
                return trial.breach(taken.after, problem, name, found)
        return None

    def written(self) -> Breach:
        """The error for a graph that is not any more what it was when the passes began."""
        outside = [str(t.step) for t in self.taken if not is_own(t.step)]
        return Breach(
            "a pass wrote into the graph that it was given, or into a weight",
            at=", ".join(outside or [str(t.step) for t in self.taken]),
            found="the graph as it was imported gives other answers than before the passes",
            hint="graphs, nodes and weights are shared: make new ones; --verify-each says which pass it is",
        )


class _Chain:
    """Passes since the last lossy one, and the answers that they have to keep."""

    def __init__(self, trail: Trail, noted: Sequence[Arrays], plays: Plays) -> None:
        self._trail, self._sessions, self._plays = trail, samples(trail.first), plays
        self._since: list[Taken] = []
        self._expected = list(noted) or plays(trail.first, self._sessions)

    def add(self, taken: Taken) -> None:
        if taken.unchanged and is_own(taken.step):
            return
        if taken.unchanged or not taken.free:
            self._since.append(taken)
            return
        before = self.close(taken.before)
        self._expected, self._since = self._plays(taken.after, self._sessions), []
        if not taken.trusted:
            self._measure(taken, before)

    def close(self, graph: Graph) -> list[Arrays]:
        """The answers of `graph`, which the passes since the last lossy one made."""
        if not self._since:
            return self._expected
        found = self._plays(graph, self._sessions)
        apart = furthest(self._expected, found)[1]
        if apart > sum(self._trail.limit(taken) for taken in self._since):
            raise self._trail.first_breach(self._since, self._sessions) or self._trail.written()
        return found

    def _measure(self, taken: Taken, before: list[Arrays]) -> None:
        name, difference = moved(before, self._expected)
        keeps = taken.step.change.keeps
        if keeps.kind == "lossy":
            limit, problem = _LOST, f"pass {taken.step} leaves nothing of output {name!r}"
        else:
            limit, problem = allowed(keeps), f"pass {taken.step} promises {keeps} and breaks it"
        if difference > limit:
            trial = Trial(taken.step, taken.before, self._sessions, before, limit)
            found = f"output {name!r} is {difference:.3g} of its scale apart"
            if difference == float("inf"):
                found = f"output {name!r} has values that are not finite, and had none"
            raise trial.breach(taken.after, problem, name, found)
        self._trail.losses.append(Loss(taken.step.label, name, difference))
        self._trail.anew = max(self._trail.anew, min(_ANEW * furthest(before, self._expected)[1], _LOST))


def _outputs(graph: Graph, sessions: Sequence[Session]) -> list[Arrays]:
    return [play(graph, session) for session in sessions]


def rounds(graph: Graph) -> bool:
    """Whether values are rounded to int8 levels, or kept as halves."""
    return any(
        makes_levels_of(node) or (node.op == "state" and node.dtype == "f16") for node in graph.everywhere()
    )
