"""Rules tried on every node until none applies.

A rule is a function `Node -> Node | Decline | Miss | None` whose docstring says `before -> after`. It sees a node
whose inputs are already rewritten, and returns a node of the same type, `Decline(reason)` when it nearly
applied, `Miss(node, reason)` to say where its pattern stopped to fit, or None. A rule with a second parameter also
gets the `Context`, which knows use counts. Rules are tried at the ops that their code begins with (`sources.py`).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from llmc.compiler.equality import same_type
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import unplaced
from llmc.compiler.sources import Roots, roots
from llmc.compiler.spec import Pass
from llmc.compiler.watch import watcher
from llmc.errors import LlmcError, in_a_line

Rule = Callable[..., Any]

SWEEPS = 60  # real models settle in fewer than 15
STEPS_PER_NODE = 60


@dataclass(frozen=True)
class Decline:
    """Why a rule that matched does not apply, and the node that is in the way, if it is not the rule's own."""

    reason: str
    node: Node | None = None


@dataclass(frozen=True, eq=False)
class Miss:
    """Where a pattern stopped to fit, and why. It is false, as None would be: helpers of rules return one.

    Args:
        node: the node that does not fit.
        reason: what it is, and what it would have to be.
        matched: how many nodes of the pattern were there; None: those on the way from the rule's node to this one.
    """

    node: Node
    reason: str
    matched: int | None = None

    def __bool__(self) -> Literal[False]:
        return False


@dataclass(frozen=True)
class Event:
    """One rule at one node: applied if `reason` is empty, else declined.

    Args:
        rule: the rule's name.
        node: op and type of the node before.
        source: the node's place in the model.
        reason: why the rule declined.
    """

    rule: str
    node: str
    source: str
    reason: str = ""


@dataclass
class Journal:
    """What the rules did while a pass ran.

    Args:
        applied: rule -> how often it applied.
        fired: where rules applied, in order, equal events once.
        declined: where rules nearly applied and in the end did not.
        limit: no rule applies any more once so many have; a search for the wrong one sets it.
        last: the rule that applied last.
    """

    applied: Counter[str] = field(default_factory=Counter)
    fired: dict[Event, None] = field(default_factory=dict)
    declined: dict[Event, None] = field(default_factory=dict)
    limit: int | None = None
    last: Event | None = None

    @property
    def exhausted(self) -> bool:
        """Whether as many rules have applied as may."""
        return self.limit is not None and self.applied.total() >= self.limit

    def note(self, rule: Rule, node: Node, reason: str = "") -> None:
        event = Event(rule.__name__, f"{node.op} {node.type}", str(node.source), reason)
        (self.declined if reason else self.fired)[event] = None
        if not reason:
            self.applied[rule.__name__] += 1
            self.last = event


_journal: ContextVar[Journal | None] = ContextVar("journal", default=None)


@contextmanager
def recording(limit: int | None = None) -> Iterator[Journal]:
    """Everything that rules do inside the block, at most `limit` times, is noted in the journal it gives."""
    journal = Journal(limit=limit)
    token = _journal.set(journal)
    try:
        yield journal
    finally:
        _journal.reset(token)


def note(rule: Rule, node: Node, reason: str = "") -> None:
    """Tell the journal that `rule` applied at `node`, or why not: for passes that are not a set of rules."""
    journal, watch = _journal.get(), watcher()
    if journal is not None:
        journal.note(rule, node, reason)
    if watch is not None and reason:
        watch.declined(rule, node, reason)


class Context:
    """What a rule may ask beyond its node: how often a value is read, which dims may be 0."""

    def __init__(self, graph: Graph) -> None:
        self.zero = frozenset(name for name, (low, _) in graph.dims.items() if not low)
        self._uses = Counter({node: len(users) for node, users in graph.users.items()})
        self._uses.update(graph.roots)

    def uses(self, node: Node) -> int:
        """Reads of `node`; being a root of the graph counts as one."""
        return self._uses[node]

    def single(self, node: Node) -> bool:
        """Whether `node` has one reader only."""
        return self._uses[node] == 1

    def knows(self, node: Node) -> bool:
        """Whether `node` is part of the graph, not just made by a rule."""
        return node in self._uses

    def moved(self, before: Node, after: Node) -> None:
        """Who read `before` reads `after` now."""
        if after is not before:
            self._uses[after] += self._uses[before]

    def swapped(self, before: Node, after: Node) -> None:
        """A rule turned `before` into `after`: drop the reads of `before`, count those of the nodes made."""
        self._uses.subtract(before.inputs)
        made = {} if self.knows(after) else {after: None}
        pending = list(made)
        while pending:
            unknown = [i for i in pending.pop().inputs if not self.knows(i) and i not in made]
            made.update(dict.fromkeys(unknown))
            pending += unknown
        for node in made:
            self._uses.update(node.inputs)
        self._uses[after] += self._uses[before]


@dataclass(frozen=True)
class Bound:
    """A rule, the ops at its root (None: any), and whether it wants the context."""

    rule: Rule
    roots: Roots
    wants_context: bool

    def __call__(self, node: Node, context: Context) -> Any:
        return self.rule(node, context) if self.wants_context else self.rule(node)


class Rules:
    """Rules in order, by the op at their root."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._all = [Bound(r, roots(r), len(inspect.signature(r).parameters) > 1) for r in rules]
        self._at: dict[str, tuple[Bound, ...]] = {}

    def at(self, op: str) -> tuple[Bound, ...]:
        """The rules that may apply at a node of `op`."""
        if op not in self._at:
            self._at[op] = tuple(b for b in self._all if b.roots is None or op in b.roots)
        return self._at[op]


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """Apply `rules` to every node, in the order given, until none applies.

    Returns:
        `graph` itself if no rule applied.

    Raises:
        LlmcError: a rule changes a type or raises, or the rules undo each other for ever.
    """
    indexed = Rules(rules)
    journal = _journal.get() or Journal()
    earlier = journal.declined.copy()
    for _ in range(SWEEPS):
        before, applied = graph, journal.applied.copy()
        journal.declined = earlier.copy()  # what declines in one sweep may apply in the next
        graph = _sweep(graph, indexed, journal)
        if graph is before:
            if (watch := watcher()) is not None:
                watch.settled(graph, rules)
            return graph
    raise _endless(journal.applied - applied, f"{SWEEPS} sweeps over the graph")


def _endless(applied: Counter[str], where: str) -> LlmcError:
    names = ", ".join(sorted(applied))
    return LlmcError(f"the rules do not come to an end: {names}", at=where, hint="one of them undoes another")


def _sweep(graph: Graph, rules: Rules, journal: Journal) -> Graph:
    """One walk from the inputs to the outputs."""
    context = Context(graph)

    def change(before: Node, node: Node) -> Node:
        context.moved(before, node)
        return node if node.op in ("input", "state") else _settle(node, rules, context, journal)

    return graph.rebuild(change)


def _settle(node: Node, rules: Rules, context: Context, journal: Journal) -> Node:
    """Apply rules at one node until none applies."""
    fired: list[str] = []
    while (after := _first(node, rules, context, journal)) is not None:
        name, node = after
        fired.append(name)
        if len(fired) == STEPS_PER_NODE:
            raise _endless(Counter(fired), repr(node))
    return node


def _first(node: Node, rules: Rules, context: Context, journal: Journal) -> tuple[str, Node] | None:
    """The first rule that applies and its result."""
    if journal.exhausted:
        return None
    for bound in rules.at(node.op):
        with unplaced() as made:
            found = attempt(bound, node, context)
        if isinstance(found, Decline):
            journal.note(bound.rule, node, found.reason)
        elif isinstance(found, Node):
            placed = context.knows(found) or (found not in made and str(found.source))
            after = found if placed else replace(found, source=node.source)
            context.swapped(node, after)
            journal.note(bound.rule, node)
            if (watch := watcher()) is not None:
                watch.applied(bound.rule, node, after)
            return bound.rule.__name__, after
    return None


def attempt(bound: Bound, node: Node, context: Context) -> Node | Decline | Miss | None:
    """What a rule says to a node.

    Raises:
        LlmcError: it raises, or returns what is no answer, or a node of another type.
    """
    name = bound.rule.__name__
    try:
        found = bound(node, context)
    except LlmcError as error:
        raise LlmcError(
            f"rule {name}: {error.problem}", at=repr(node), found=error.found, hint=error.hint
        ) from error
    except (Exception, SystemExit) as error:
        raise LlmcError(f"rule {name} failed: {in_a_line(error)}", at=repr(node)) from error
    if found is None or isinstance(found, (Decline, Miss)):
        return found
    if not isinstance(found, Node):
        raise LlmcError(f"rule {name} returned no node", at=repr(node), found=repr(found))
    if not same_type(found.type, node.type):
        raise LlmcError(f"rule {name} changes the type", at=repr(node), found=f"{node.type} -> {found.type}")
    return None if found is node else found


@dataclass(frozen=True)
class RewritePass(Pass):
    """A pass that is nothing but rules."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    def run(self, graph: Graph) -> Graph:
        """Apply the rules until none applies."""
        return rewrite(graph, self.rules)
