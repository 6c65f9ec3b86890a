"""The middle stages of a compile: from a graph to calls of kernels, and to their machine code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmc.compiler.calls import Call, Region, every_call
from llmc.compiler.graph import Graph
from llmc.targets import Target, store
from llmc.targets.backend import Backend, Code
from llmc.targets.backends import backend_of


@dataclass(frozen=True)
class Kernels:
    """The calls that compute a graph.

    Args:
        target: with the instruction sets that serve these calls.
        tuned: what `Backend.tune` found.
        kept: machine code of earlier compiles.
    """

    graph: Graph
    target: Target
    calls: Sequence[Call | Region]
    tuned: Mapping[Any, Any] = field(default_factory=dict)
    kept: store.Store = field(default_factory=lambda: store.Store(store.folder()))

    @classmethod
    def of(cls, graph: Graph, target: Target) -> Kernels:
        """By the kernels of `target`.

        Raises:
            LlmcError: an op has no kernel there, or a tool is missing.
        """
        calls = backend_of(target).lower(graph)
        return cls(graph, target.serving(call.kernel.family for call in every_call(calls)), calls)

    @property
    def _every(self) -> list[Call]:
        return list(every_call(self.calls))

    @property
    def backend(self) -> Backend:
        return backend_of(self.target)

    def tune(self, seconds: float, tell: Callable[[str, float], None]) -> Kernels:
        """With the fastest schedules that are found on this machine in `seconds`, or were before."""
        tuned = self.backend.tune(self._every, self.graph.dims, self.target, self.kept, seconds, tell)
        return replace(self, tuned=tuned, calls=self.backend.lower(self.graph, self.backend.tuned(tuned)))

    def code(self) -> Code:
        """The machine code, and the source of what was made from source."""
        return self.backend.compile(self._every, self.target, self.kept)

    def products(self) -> list[dict[str, Any]]:
        """For the manifest: the schedules of products, and what tuning measured."""
        return self.backend.products(self._every, self.tuned)
