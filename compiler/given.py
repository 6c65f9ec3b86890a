"""What a pass may ask for besides its graph: samples of the model's inputs, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmc.compiler import interpret
from llmc.compiler.graph import Graph
from llmc.errors import LlmcError

Sample = Mapping[str, np.ndarray[Any, Any]]  # input -> array
Run = Callable[[Sample], Sequence[np.ndarray[Any, Any]]]  # inputs -> outputs


class Recorder(Protocol):
    """Keeps one walk over the samples as it goes."""

    def resume(self, samples: Iterator[Sample]) -> int:
        """Take up what is there: how many samples, which are read and not run again."""

    def __enter__(self) -> Any:
        """In here samples are run; what stops that stops after a sample."""

    def __exit__(self, *raised: Any) -> None: ...

    def adding(self, sample: Sample) -> AbstractContextManager[None]:
        """Around what adds a sample to the statistics."""

    def end(self) -> None:
        """There are no samples more."""

    def merge(self) -> None:
        """Merge in what other parts have seen."""


class Keeper(Protocol):
    """Keeps the walks of a compile."""

    def record(self, walk: Any) -> Recorder:
        """Of the next walk, a `gathering.Walk`."""


@dataclass(frozen=True)
class Given:
    """What a compile knows beside the graph.

    Args:
        read: graph -> samples for its inputs, read from `--calib` anew each time; None: there are none.
        place: where these are from, for errors.
        tokenizer: the model's `frontends.folder.Tokenizer`; None: it has none.
        native: graph -> a context that gives the outputs of a sample, by native code; None: the interpreter does.
        kept: keeps what is gathered of samples, and merges parts that were gathered elsewhere; None: nothing does.
    """

    read: Callable[[Graph], Iterator[Sample]] | None = None
    tokenizer: Any = None
    native: Callable[[Graph], AbstractContextManager[Run]] | None = None
    place: str | None = None
    kept: Keeper | None = None

    def samples(self, graph: Graph) -> Iterator[Sample]:
        """Samples of the inputs of `graph`, of batch 1, without padding.

        Raises:
            LlmcError: there are none, or they do not fit the graph.
        """
        if self.read is None:
            raise LlmcError(
                "this pass works on samples of the model's inputs", hint="--calib FILE gives them"
            )
        return self.read(graph)

    @contextmanager
    def running(self, graph: Graph) -> Iterator[Run]:
        """Gives the outputs of `graph`, in order, for a sample; states are as a session begins with them."""
        if self.native is None:
            yield lambda sample: list(interpret.run(graph, sample).values())
            return
        with self.native(graph) as run:
            yield run


_NOTHING = Given()
_GIVEN: ContextVar[Given] = ContextVar("given", default=_NOTHING)


def given() -> Given:
    """What is known to the pass that is running."""
    return _GIVEN.get()


@contextmanager
def giving(known: Given) -> Iterator[None]:
    """Let the passes that run within ask for `known`."""
    token = _GIVEN.set(known)
    try:
        yield
    finally:
        _GIVEN.reset(token)
