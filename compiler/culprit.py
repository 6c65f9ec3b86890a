"""The cause of a difference: which rewrite of a pass makes it, and at which node values part.

The pass runs again with fewer and fewer of its rewrites, until one remains whose application makes the difference.
The node where values part is then found by source.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmc.compiler.bodies import run_everywhere
from llmc.compiler.differences import Array, Arrays, apart, furthest
from llmc.compiler.graph import Graph, Node
from llmc.compiler.pipeline import Step
from llmc.compiler.reproducer import write_reproducer
from llmc.compiler.rewrite import Event, recording
from llmc.compiler.samples import Session, play
from llmc.errors import LlmcError


class Breach(LlmcError):
    """A pass does not keep what it promises."""


@dataclass(frozen=True)
class Trial:
    """A pass, the graph that it was given, and what its result is held to.

    Args:
        expected: the outputs of `graph` in each of `sessions`.
        limit: how far from them its result may be, as a share of an output's scale.
    """

    step: Step
    graph: Graph
    sessions: Sequence[Session]
    expected: Sequence[Arrays]
    limit: float

    def breach(self, after: Graph, problem: str, name: str, found: str) -> Breach:
        """The error that says which rewrite of the pass, and which node of `after`, is at fault.

        Args:
            name, found: the output that shows it, and how.
        """
        lines, cause = [found], self._cause()
        good, bad = (cause.good, cause.bad) if cause is not None else (self.graph, after)
        if cause is not None:
            event = cause.event
            lines.append(f"rewrite {cause.number}: {event.rule} at {event.node} of {event.source or '?'}")
        elif after is not self.graph:
            lines.append("not made by a rewrite rule")
        node = self._first_difference(good, bad)
        if node is not None:
            lines.append(f"first differing node: {node.op} {node.type}")
        if file := file_of(self.step):
            lines.append(f"the pass is from {file}")
        at = str(node.source) if node is not None else f"output {name}"
        hint = reproduced(self.step, self.graph, problem)
        if is_own(self.step):
            hint += "; it is a fault of llmc: please report it with this file"
        return Breach(problem, at=at, found="\n         ".join(lines), hint=hint)

    def _cause(self) -> _Cause | None:
        """The first rewrite after which the limit is passed, by bisection; None if it is none of them."""
        total = _limited(self.step, self.graph, None)[1]
        low, high = 0, total  # within the limit after `low` rewrites, beyond it after `high`
        if not total or self._beyond(low) is not False:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            beyond = self._beyond(middle)
            if beyond is None:  # the pass does not hold together with half its rewrites
                return None
            low, high = (low, middle) if beyond else (middle, high)
        bad, _, event = _limited(self.step, self.graph, high)
        good = _limited(self.step, self.graph, low)[0]
        return None if event is None else _Cause(high, event, good, bad)

    def _beyond(self, rewrites: int) -> bool | None:
        try:
            graph = _limited(self.step, self.graph, rewrites)[0]
            after = [play(graph, session) for session in self.sessions]
        except (LlmcError, AssertionError):
            return None
        return furthest(self.expected, after)[1] > self.limit

    def _first_difference(self, good: Graph, bad: Graph) -> Node | None:
        """The first node of `bad` whose value none of `good`'s nodes of its source and shape has."""
        for session in self.sessions:
            known: dict[tuple[str, Any], list[Array]] = {}
            seen: set[Node] = set()

            def note(node: Node, value: Array, known: Any = known, seen: Any = seen) -> None:
                seen.add(node)
                known.setdefault((str(node.source), value.shape), []).append(value)

            play(good, session, note)
            parted: list[Node] = []

            def compare(
                node: Node, value: Array, known: Any = known, seen: Any = seen, parted: Any = parted
            ) -> None:
                twins = known.get((str(node.source), value.shape), [])
                if twins and node not in seen and all(apart(t, value) > self.limit for t in twins):
                    parted.append(node)

            play(bad, session, compare)
            if parted:
                return parted[0]
        return None


@dataclass(frozen=True)
class _Cause:
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


def reproduced(step: Step, graph: Graph, why: str) -> str:
    """Write the graph that a pass was given; how to run it again."""
    path = write_reproducer(graph, str(step), why)
    return f"llmc opt {path} --verify-each runs it again"


def is_own(step: Step) -> bool:
    """Whether the pass is one of llmc's, and not a user's."""
    return type(step.change).__module__.startswith("llmc.")


def file_of(step: Step) -> str:
    """The file of a user's pass that goes by a name of its own; empty for others, whose name says where they are."""
    if is_own(step) or ".py:" in step.label:
        return ""
    return getattr(sys.modules.get(type(step.change).__module__), "__file__", None) or ""
