"""What became of every node while passes ran, and which rules stopped where: what `llmc explain` tells.

A `History` watches a pipeline (`watch.py`). Nodes are followed by identity, from the graph as imported to the last
one: through walks that put them on other inputs, and through rules that made others of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmc.compiler.graph import Graph, Node
from llmc.compiler.nearest import Stop, nearest
from llmc.compiler.rewrite import Context, Decline, Rules, attempt


@dataclass(frozen=True)
class Change:
    """A node that became another.

    Args:
        change: the pass.
        rule: the rule, with its docstring's first line; empty where a walk did it.
        before, after: the nodes.
        taken: what `after` does too, and nothing else needs any more.
        made: what `after` reads and was not there before.
    """

    change: str
    rule: str
    says: str
    before: Node
    after: Node
    taken: frozenset[Node] = frozenset()
    made: frozenset[Node] = frozenset()


@dataclass(frozen=True)
class Refusal:
    """A rule that did not apply in the end.

    Args:
        root: the node at which it was tried.
    """

    change: str
    rule: str
    root: Node
    stop: Stop


@dataclass
class _Settled:
    """A graph to which none of some rules applies."""

    change: str
    graph: Graph
    rules: Sequence[Callable[..., Any]]


@dataclass
class History:
    """A `Watch` that keeps everything.

    Args:
        imported: the first graph that a pass was given.
        last: the graph after the last pass so far.
    """

    imported: Graph | None = None
    last: Graph | None = None
    changes: list[Change] = field(default_factory=list)
    _declined: list[Refusal] = field(default_factory=list)
    _settled: list[_Settled] = field(default_factory=list)
    _change: str = ""
    _before: Graph | None = None
    _since: int = 0
    _ruled: set[Node] = field(
        default_factory=set
    )  # what rules changed: the walk around them tells of it again

    # --- what is told

    def began(self, change: str, graph: Graph) -> None:
        self._change, self._before, self._since = change, graph, len(self.changes)
        self.imported = self.imported or graph

    def linked(self, before: Node, after: Node) -> None:
        if before is not after and before not in self._ruled:
            taken = frozenset[Node]() if before.op == after.op else _swallowed(before, after)
            self.changes.append(Change(self._change, "", "", before, after, taken))

    def applied(self, rule: Any, before: Node, after: Node) -> None:
        taken, made = _swallowed(before, after), _swallowed(after, before)
        self._ruled.add(before)
        self.changes.append(Change(self._change, rule.__name__, _says(rule), before, after, taken, made))

    def declined(self, rule: Any, node: Node, reason: str) -> None:
        stop = nearest(rule, Decline(reason), node, Context(Graph((), {"": node})))
        self._declined.append(Refusal(self._change, rule.__name__, node, stop))

    def settled(self, graph: Graph, rules: Sequence[Any]) -> None:
        self._settled.append(_Settled(self._change, graph, rules))

    def ended(self, graph: Graph) -> None:
        """Passes that build a graph anew link nothing: their nodes are told by the places that they keep."""
        assert self._before is not None
        if graph is not self._before:
            self._link_by_place(self._before, graph)
        self.last = graph

    def _link_by_place(self, before: Graph, after: Graph) -> None:
        alive, known = set(after.everywhere()), set(before.everywhere())
        fates = _fates(before.everywhere(), self.changes[self._since :])
        lost = {path[-1].after if path else node: node for node, path in fates.items()}
        made: dict[str, list[Node]] = defaultdict(list)
        for node in alive - known - set(lost):
            made[node.source.path].append(node)
        for node in lost:
            found = None if node in alive or not node.source.path else _like(node, made[node.source.path])
            if found is not None:
                self.changes.append(Change(self._change, "", "", node, found))

    # --- what is asked

    def fates(self) -> dict[Node, list[Change]]:
        """Each node of the imported graph, and what became of it, in order."""
        return {} if self.imported is None else _fates(self.imported.everywhere(), self.changes)

    def refusals(self) -> Iterator[Refusal]:
        """Every rule at every node where its ops fit, as it was when its pass was done; the last pass first."""
        yield from reversed(self._declined)
        for settled in reversed(self._settled):
            yield from _refusals(settled)


def _below(node: Node) -> frozenset[Node]:
    return frozenset(Graph((), {"": node}).nodes)


def _swallowed(before: Node, after: Node) -> frozenset[Node]:
    """What `before` is made of and `after` is not: that does its work too."""
    return _below(before) - _below(after) - {before}


def _says(rule: Any) -> str:
    """What a rule promises: `before -> after`."""
    return (rule.__doc__ or "").strip().split("\n")[0]


def _fates(nodes: Iterator[Node], changes: Sequence[Change]) -> dict[Node, list[Change]]:
    """Follow nodes through changes, which are in order."""
    paths: dict[Node, list[Change]] = {node: [] for node in nodes}
    holds = defaultdict(list, {node: [node] for node in paths})  # node of today -> those that became it
    for change in changes:
        for node in (change.before, *change.taken):
            if node in holds:
                moved = holds.pop(node)
                for origin in moved:
                    paths[origin].append(change)
                holds[change.after] += moved
    return paths


def _like(node: Node, candidates: Sequence[Node]) -> Node | None:
    """Of the nodes made at a node's place the one that does its work, such as ragged_mha for mha."""
    same = [c for c in candidates if c.op == node.op] or [c for c in candidates if node.op in c.op.split("_")]
    return same[0] if same else None


def _refusals(settled: _Settled) -> Iterator[Refusal]:
    rules, context = Rules(settled.rules), Context(settled.graph)
    for node in settled.graph.nodes:
        if node.op in ("input", "state"):
            continue
        for bound in rules.at(node.op):
            said = attempt(bound, node, context)
            if said is None or not isinstance(said, Node):
                stop = nearest(bound.rule, said, node, context)
                yield Refusal(settled.change, bound.rule.__name__, node, stop)
