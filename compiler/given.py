"""What a pass may ask for besides its graph: samples of the model's inputs, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler import interpret
from llmc.compiler.graph import Graph
from llmc.errors import LlmcError

Sample = Mapping[str, np.ndarray[Any, Any]]  # input -> array
Run = Callable[[Sample], Sequence[np.ndarray[Any, Any]]]  # inputs -> outputs


@dataclass(frozen=True)
class Given:
    """What a compile knows beside the graph.

    Args:
        read: graph -> samples for its inputs, read from `--calib` anew each time; None: there are none.
        place: where these are from, for errors.
        tokenizer: the model's `frontends.folder.Tokenizer`; None: it has none.
        native: graph -> a context that gives the outputs of a sample, by native code; None: the interpreter does.
    """

    read: Callable[[Graph], Iterator[Sample]] | None = None
    tokenizer: Any = None
    native: Callable[[Graph], AbstractContextManager[Run]] | None = None
    place: str | None = None

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
