"""Who looks on while passes run: `llmc explain` wants to know of every node what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from llmc.compiler.graph import Graph, Node, following


class Watch(Protocol):
    """What is told, in this order: a pass begins; what its rules and walks do; it ends."""

    def began(self, change: str, graph: Graph) -> None:
        """A pass is about to run."""

    def linked(self, before: Node, after: Node) -> None:
        """A walk over the graph put one node in another's place: on other inputs, or another node altogether."""

    def applied(self, rule: Any, before: Node, after: Node) -> None:
        """A rule made one node of another."""

    def declined(self, rule: Any, node: Node, reason: str) -> None:
        """A pass that is not a set of rules nearly did something."""

    def settled(self, graph: Graph, rules: Sequence[Any]) -> None:
        """No rule of these applies to the graph any more."""

    def ended(self, graph: Graph) -> None:
        """The pass is done."""


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)
_inside: ContextVar[Watch | None] = ContextVar("inside", default=None)


@contextmanager
def watching(watch: Watch | None) -> Iterator[None]:
    """Pipelines that run inside the block tell `watch`; None: nobody."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


@contextmanager
def watched(change: str, graph: Graph) -> Iterator[list[Graph]]:
    """A pass of a pipeline, around its run; the block puts its result into the list."""
    watch, results = _watch.get(), list[Graph]()
    if watch is None:
        yield results
        return
    watch.began(change, graph)
    token = _inside.set(watch)
    try:
        with following(watch.linked):
            yield results
    finally:
        _inside.reset(token)
    watch.ended(results[0])


def watcher() -> Watch | None:
    """Who is to be told, while a pass of a watched pipeline runs."""
    return _inside.get()
