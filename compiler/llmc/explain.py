"""Why a node is what it is: the passes run as in a compile, and a history is kept (`compiler/history.py`)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from llmc.compiler.calls import Call
from llmc.compiler.dims import dim_text
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.graph import Graph, Node
from llmc.compiler.history import Change, History, Refusal
from llmc.compiler.text import node_names
from llmc.compiler.watch import watching
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.gains import Gain, Gains, of_compile
from llmc.kernels import Kernels
from llmc.optimise import optimise
from llmc.options import Order
from llmc.report import Stages
from llmc.story import Missed, Step, Story

IMPORTED = "@import"  # behind the name of a node of the graph as imported
_SILENT = ("input", "state", "constant")  # no rule is asked about these unless the user does

Measured = Mapping[tuple[str, str], Sequence[float]]  # family of kernels and place -> seconds of each call


def explain(imported: Imported, order: Order, measured: Measured | None = None) -> Explanation:
    """Run the passes on a model of one function, and keep what they did.

    Raises:
        LlmcError: a pass fails, or the model has several functions.
    """
    if len(imported.functions) > 1:
        hint = "write the one function into a text of its own"
        raise LlmcError(
            "explain tells of models of one function", found=", ".join(imported.functions), hint=hint
        )
    history = History()

    def unwatched(*arguments: Any, **options: Any) -> Any:
        """Calibration compiles a model of its own."""
        with watching(None):
            return compile_graph(*arguments, **options)

    with watching(history):
        optimised = optimise(imported, order, Stages(None), unwatched)
    after = next(iter(optimised.module.functions.values()))
    history.imported = history.imported or imported.graph
    calls, unlowered, gained = list[Call](), "", None
    try:
        kernels = Kernels.of(optimised.module, order.target)
        calls, gained = kernels.every, of_compile(imported, order, kernels, optimised.left, compile_graph)
    except LlmcError as error:
        unlowered = error.problem
    steps = _steps(calls, measured or {})
    return Explanation(history, after, optimised.pipeline, order.target.name, steps, unlowered, gained)


def _steps(calls: Sequence[Call], measured: Measured) -> dict[Node, list[Step]]:
    """The kernel calls that write each node, with their times where each call can be told from the others."""
    of: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in calls:
        of[call.kernel.family, call.source.path].append(call)
    times = {
        call: seconds
        for key, alike in of.items()
        if len(alike) == len(measured.get(key, ()))
        for call, seconds in zip(alike, measured[key], strict=True)
    }
    steps: dict[Node, list[Step]] = defaultdict(list)
    for call in calls:
        last = call.operands[-1]
        if isinstance(last, Node):
            steps[last].append(_step(call, times.get(call)))
    return steps


def _step(call: Call, seconds: float | None) -> Step:
    kernel = call.kernel
    split = len(kernel.pointers) - kernel.written
    read, written = (tuple(dict.fromkeys(p)) for p in (kernel.pointers[:split], kernel.pointers[split:]))
    return Step(kernel.symbol, read, written, dim_text(call.flops), dim_text(call.bytes), seconds)


@dataclass(frozen=True)
class Explanation:
    """What the passes did with a model, to be asked.

    Args:
        after: the graph that is lowered.
        steps: of the nodes that have kernels; `unlowered` says why none has.
        gains: what layers gain by what was asked for, as `CompileReport` has it.
    """

    history: History
    after: Graph
    pipeline: str
    target: str
    steps: Mapping[Node, Sequence[Step]]
    unlowered: str
    gains: Gains | None = None

    @property
    def imported(self) -> Graph:
        assert self.history.imported is not None
        return self.history.imported

    @cached_property
    def _fates(self) -> Mapping[Node, Sequence[Change]]:
        return self.history.fates()

    @cached_property
    def _names(self) -> Mapping[Node, str]:
        """The nodes of both graphs; those that are in both go by their name in the last."""
        before = {node: name + IMPORTED for node, name in node_names(self.imported).items()}
        passing = {c.after: before[n] for n, path in self._fates.items() if n in before for c in path}
        return {**passing, **before, **node_names(self.after)}

    @cached_property
    def _refusals(self) -> Sequence[Refusal]:
        """The nearest of each rule at each node, and none of a rule that did apply there in the end."""
        done = {(c.rule, n) for c in self.history.changes if c.rule for n in (c.before, *c.taken)}
        best: dict[tuple[str, str], Refusal] = {}
        for found in self.history.refusals():
            key = (found.rule, self._label(found.root))
            if (found.rule, found.root) not in done and (key not in best or _nearer(found, best[key])):
                best[key] = found
        return sorted(best.values(), key=lambda r: (not r.stop.declined, -r.stop.matched))

    def _label(self, node: Node) -> str:
        name = self._names.get(node, "")
        source = f"of {node.source}" if str(node.source) else ""
        return " ".join(filter(None, (name, node.op, source)))

    # --- all of it

    def fusions(self) -> list[tuple[str, str, str, int]]:
        """Pass, rule, what it says, how often it applied."""
        found = Counter((c.change.split("{")[0], c.rule, c.says) for c in self.history.changes if c.rule)
        return [(*key, count) for key, count in found.most_common()]

    def misses(self, rule: str | None = None) -> list[Missed]:
        """Near misses, or all of one rule, equal reasons once; the first place stands for all."""
        wanted = [r for r in self._refusals if (r.stop.near if rule is None else r.rule == rule)]
        groups: dict[tuple[str, str, str], list[Refusal]] = defaultdict(list)
        for found in wanted:
            groups[found.rule, found.stop.node.op, found.stop.reason].append(found)
        made = [self._missed(group[0], len(group)) for group in groups.values()]
        return sorted(made, key=lambda m: (not m.declined, -m.matched, m.rule))

    def _missed(self, found: Refusal, count: int = 1) -> Missed:
        stop = found.stop
        labels = self._label(found.root), self._label(stop.node)
        change = found.change.split("{")[0]
        return Missed(found.rule, change, *labels, stop.reason, stop.matched, stop.declined, count)

    def check_rule(self, rule: str) -> None:
        """Raises LlmcError: no pass of the pipeline tried a rule of that name."""
        known = {r.rule for r in self._refusals} | {c.rule for c in self.history.changes}
        if rule not in known:
            close = get_close_matches(rule, known, n=1, cutoff=0.4)
            hint = (
                f"did you mean {close[0]}?"
                if close
                else f"there are: {', '.join(sorted(filter(None, known)))}"
            )
            raise LlmcError(f"no rule {rule!r} was tried", at="--rule", hint=hint)

    # --- one node, or those below a path

    def find(self, text: str) -> list[Node]:
        """The nodes that `text` names: one such as %12 or %12@import, or all below a path of the model.

        Raises:
            LlmcError: there is none; the hint names the nearest.
        """
        if text.startswith("%"):
            return [self._named(text)]
        last = [n for n in self.after.everywhere() if _below(n, text)]
        here = set(last)
        lost = [n for n in self._fates if _below(n, text) and self.today(n) not in here]
        found = [n for n in (*last, *lost) if n.op not in _SILENT] or [*last, *lost]
        if not found:
            raise self._unknown(text)
        return found

    def _named(self, text: str) -> Node:
        graph = self.imported if text.endswith(IMPORTED) else self.after
        names = {name: node for node, name in node_names(graph).items()}
        name = text.removesuffix(IMPORTED)
        if name not in names:
            which = "as imported" if graph is self.imported else "after the passes"
            last = [n for n in names if not n.startswith("%w")][-1]
            hint = f"it has %0 to {last}; NAME{IMPORTED} is a node of the graph as imported"
            raise LlmcError(f"the graph {which} has no node {name}", hint=hint)
        return names[name]

    def _unknown(self, text: str) -> LlmcError:
        paths = {n.source.path for n in (*self._fates, *self.after.everywhere()) if n.source.path}
        folders = {".".join(p.split(".")[:k]) for p in paths for k in range(1, p.count(".") + 2)}
        close = get_close_matches(text, folders, n=3, cutoff=0.5)
        tops = sorted({p.split(".")[0] for p in paths})[:8]
        hint = f"did you mean {' or '.join(close)}?" if close else f"the model has: {', '.join(tops)}"
        return LlmcError(f"no node at {text!r}", hint=hint)

    def today(self, node: Node) -> Node:
        """What an imported node has become."""
        path = self._fates.get(node, ())
        return path[-1].after if path else node

    def story(self, node: Node, rule: str | None = None, far: bool = False) -> Story:
        """All that is known of one node; `rule` keeps to one rule, `far` shows those too that were not near."""
        last = self.today(node)
        alive = last in self._alive
        family, changes = self._ancestry(node, last)
        wanted = [r for r in self._refusals if r.root in family or r.stop.node in family]
        named = [r for r in wanted if rule is None or r.rule == rule]
        shown = [r for r in named if r.stop.near or far or rule is not None]
        return Story(
            name=self._names.get(node, ""),
            op=node.op,
            type=str(node.type),
            source=str(node.source),
            became="" if last is node else self._label(last) if alive else "nothing: no output needs it",
            made_of=tuple(self._label(n) for n in self._origins(last) if n is not node and alive),
            rewritten=tuple(dict.fromkeys(map(_rewriting, changes))),
            steps=tuple(self.steps.get(last, ())),
            gain=self._gain(last),
            misses=tuple(map(self._missed, shown)),
            farther=len(named) - len(shown),
        )

    def _gain(self, node: Node) -> Gain | None:
        """Of the layer whose kernel writes a node."""
        if self.gains is None or node not in self.steps:
            return None
        known = {gain.place: gain for gain in (*self.gains.layers, *self.gains.left)}
        return known.get(node.source.path)

    @cached_property
    def _alive(self) -> frozenset[Node]:
        return frozenset(self.after.everywhere())

    def _origins(self, last: Node) -> Iterable[Node]:
        return (n for n in self._fates if n.op not in _SILENT and self.today(n) is last)

    def _ancestry(self, node: Node, last: Node) -> tuple[set[Node], list[Change]]:
        """The node at all its stages, and what changed it; of a last one also all that went into it."""
        if node is not last:
            path = self._fates[node]
            own = {node, *(c.after for c in path if c.before.op == c.after.op)}
            return own, [c for c in path if c.rule or c.before.op != c.after.op]
        family, changes = {last}, list[Change]()
        for change in reversed(self.history.changes):
            if change.after in family and change.before not in family:
                family |= {change.before, *change.taken}
                if change.rule or change.before.op != change.after.op:
                    changes.insert(0, change)
            elif change.made & family:
                changes.insert(0, change)
        return family, changes


def _rewriting(change: Change) -> tuple[str, str, str]:
    """Pass, rule, and what it does; of a walk, from which op to which."""
    says = change.says or f"{change.before.op} -> {change.after.op}"
    return change.change.split("{")[0], change.rule, says


def _nearer(a: Refusal, b: Refusal) -> bool:
    return (a.stop.declined, a.stop.matched) > (b.stop.declined, b.stop.matched)


def _below(node: Node, path: str) -> bool:
    return node.source.path == path or node.source.path.startswith(path + ".")
