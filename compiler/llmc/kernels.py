"""The middle stages of a compile: from a graph to calls of kernels, and to their machine code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmc.compiler.calls import Call, Region, every_call
from llmc.compiler.module import Module
from llmc.compiler.stored_once import store_once
from llmc.targets import Target, store
from llmc.targets.backend import Backend, Code
from llmc.targets.backends import backend_of
from llmc.targets.lowering import Lowerings


@dataclass(frozen=True)
class Kernels:
    """The calls that compute the functions of a module.

    Args:
        calls: those of each function.
        target: with the instruction sets that serve these calls.
        tuned: what `Backend.tune` found.
        kept: machine code of earlier compiles.
    """

    module: Module
    target: Target
    calls: Mapping[str, Sequence[Call | Region]]
    tuned: Mapping[Any, Any] = field(default_factory=dict)
    kept: store.Store = field(default_factory=lambda: store.Store(store.folder()))

    @classmethod
    def of(cls, module: Module, target: Target) -> Kernels:
        """By the kernels of `target`.

        Raises:
            LlmcError: an op has no kernel there, or a tool is missing.
        """
        made = cls(module, target, _calls(module, backend_of(target)))
        return replace(made, target=target.serving(call.kernel.family for call in made.every))

    @property
    def every(self) -> list[Call]:
        """The calls of all functions, those in bodies too."""
        return [call for calls in self.calls.values() for call in every_call(calls)]

    @property
    def backend(self) -> Backend:
        return backend_of(self.target)

    def tune(self, seconds: float, tell: Callable[[str, float], None]) -> Kernels:
        """With the fastest schedules that are found on this machine in `seconds`, or were before."""
        backend = self.backend
        tuned = backend.tune(self.every, self.module.dims, self.target, self.kept, seconds, tell)
        return replace(self, tuned=tuned, calls=_calls(self.module, backend, backend.tuned(tuned)))

    def code(self) -> Code:
        """The machine code, and the source of what was made from source."""
        return self.backend.compile(self.every, self.target, self.kept)

    def products(self) -> list[dict[str, Any]]:
        """For the manifest: the schedules of products, and what tuning measured."""
        return self.backend.products(self.every, self.tuned)


def _calls(
    module: Module, backend: Backend, first: Lowerings | None = None
) -> Mapping[str, Sequence[Call | Region]]:
    """The calls of each function; `first` are lowerings that come before the backend's."""
    return store_once({name: backend.lower(graph, first) for name, graph in module.functions.items()})
