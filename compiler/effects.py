"""What a pass did: of the weights, attentions or blocks that it was for, how many it changed, and why not the others.

A pass tells; the pipeline that runs it listens. Nobody need listen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from llmc.compiler.dims import evaluate
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import OPS

WEIGHTS = "weights"


@dataclass(frozen=True)
class Verdict:
    """What became of one thing.

    Args:
        thing: stands for it by identity: functions that share a weight tell of it once each.
        size: its values.
        reason: why it was left; empty if it was changed.
    """

    thing: Any
    size: int
    reason: str = ""


@dataclass(frozen=True)
class Effect:
    """What a pass did with all things of a kind; `what` is their name, in the plural."""

    what: str
    verdicts: tuple[Verdict, ...]

    @property
    def changed(self) -> int:
        return sum(not v.reason for v in self.verdicts)

    @property
    def left(self) -> Mapping[str, int]:
        """Reason -> how many were left for it, most first."""
        return dict(Counter(v.reason for v in self.verdicts if v.reason).most_common())

    @property
    def share(self) -> float:
        """Of all values those that were changed."""
        whole = sum(v.size for v in self.verdicts)
        return sum(v.size for v in self.verdicts if not v.reason) / whole if whole else 0.0

    def __str__(self) -> str:
        kept = ", ".join(f"{count} {reason}" for reason, count in self.left.items())
        return f"{self.changed} of {len(self.verdicts)} {self.what}" + (f"; left: {kept}" if kept else "")


def joined(effects: Iterable[Effect]) -> tuple[Effect, ...]:
    """One effect for each kind of thing; a thing that was changed anywhere was changed."""
    kinds: dict[str, dict[Any, Verdict]] = {}
    for effect in effects:
        known = kinds.setdefault(effect.what, {})
        for verdict in effect.verdicts:
            key = _key(verdict.thing)
            before = known.get(key)
            if before is None or before.reason:
                known[key] = verdict
    return tuple(Effect(what, tuple(known.values())) for what, known in kinds.items())


def _key(thing: Any) -> Any:
    """Equal weights are one, also where each function has its own."""
    return thing.digest if isinstance(thing, Weight) else id(thing)


_told: ContextVar[list[Effect] | None] = ContextVar("told", default=None)


@contextmanager
def listening() -> Iterator[list[Effect]]:
    """What passes tell inside the block is in the list it gives."""
    heard: list[Effect] = []
    token = _told.set(heard)
    try:
        yield heard
    finally:
        _told.reset(token)


def tell(what: str, verdicts: Iterable[Verdict]) -> None:
    """A pass calls this once a run, also when it changed nothing."""
    heard = _told.get()
    if heard is not None:
        heard.append(Effect(what, tuple(verdicts)))


def tell_weights(graph: Graph, changed: Collection[Node], why: Callable[[Node], str]) -> None:
    """Tell of every weight of `graph`.

    Args:
        changed: the weights that the pass changed.
        why: the pass's own reason to leave a weight; where that is empty, it is who reads the weight.
    """
    if _told.get() is None:
        return
    users = graph.users
    verdicts = []
    for node in weights(graph):
        readers = ", ".join(sorted({reader.op for reader in users[node]})) or "the caller"
        reason = "" if node in changed else why(node) or f"read by {readers}"
        verdicts.append(Verdict(_thing(node), _size(node), reason))
    tell(WEIGHTS, verdicts)


def weights(graph: Graph) -> Iterator[Node]:
    """Constants of floats with two or more axes, and weights that are stored compressed; not those of bodies."""
    for node in graph.nodes:
        plain = node.op == "constant" and node.dtype in ("f32", "f16") and node.type.rank > 1
        if plain or (OPS[node.op].stored and all(i.op == "constant" for i in node.inputs)):
            yield node


def _thing(node: Node) -> Any:
    return node.attributes["value"] if node.op == "constant" else node


def _size(node: Node) -> int:
    size = 1
    for dim in node.shape:
        size *= int(evaluate(dim, {}))
    return size
