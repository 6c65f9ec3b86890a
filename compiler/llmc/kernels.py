"""The middle stages of a compile: from a graph to calls of kernels, and to their machine code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llmc.compiler.calls import Call, Region, every_call
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.package import FATBIN
from llmc.targets import Target, store


@dataclass(frozen=True)
class Kernels:
    """The calls that compute the functions of a module.

    Args:
        calls: those of each function.
        target: with the instruction sets that serve these calls.
        tuned: what is known of the schedules of products, `llmc.targets.tuning.Tuned` by shape.
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
            LlmcError: an op has no kernel there, or nvcc is missing.
        """
        made = cls(
            module, target, {name: _lowered(graph, target) for name, graph in module.functions.items()}
        )
        return replace(made, target=target.serving(call.kernel.family for call in made.every))

    @property
    def every(self) -> list[Call]:
        """The calls of all functions, those in bodies too."""
        return [call for calls in self.calls.values() for call in every_call(calls)]

    def tune(self, seconds: float, tell: Callable[[str, float], None]) -> Kernels:
        """With the fastest schedules that are found on this machine in `seconds`, or were before."""
        from llmc.targets.cpu.lower import LOWERINGS, lower
        from llmc.targets.cpu.products.decoded import lower_linear
        from llmc.targets.tuning import chosen, tune

        tuned = tune(self.every, self.module.dims, self.target, self.kept, seconds, tell)
        linear = partial(lower_linear, schedules=chosen(tuned))
        table = {**LOWERINGS, "linear": linear}
        calls = {name: lower(graph, table) for name, graph in self.module.functions.items()}
        return replace(self, tuned=tuned, calls=calls)

    def objects(self) -> tuple[dict[str, bytes], dict[str, str]]:
        """The machine code by symbol, and the source of what was not made from TIR."""
        if not self.target.gpus:
            from llmc.targets.cpu.build import compile_calls

            return compile_calls(self.every, self.target, self.kept), {}
        from llmc.targets.cuda.build import cuda_source, fatbin

        kernels = {call.kernel.symbol: call.kernel for call in self.every}
        source = cuda_source({symbol: k.emit(symbol, None) for symbol, k in kernels.items()})
        return {FATBIN: fatbin(source, self.target.gpus, self.kept)}, {"kernels.cu": source}

    def products(self) -> list[dict[str, Any]]:
        """For the manifest: the schedules of the float products, and what tuning measured."""
        if self.target.gpus:
            return []
        from llmc.targets.tuning import described

        return described(self.every, self.tuned)


def _lowered(graph: Graph, target: Target) -> tuple[Call | Region, ...]:
    """The calls of a graph."""
    if target.gpus:
        from llmc.targets.cuda.build import find_nvcc
        from llmc.targets.cuda.lower import lower as lower_for_gpu

        find_nvcc()
        return lower_for_gpu(graph)
    from llmc.targets.cpu.lower import lower

    return lower(graph)
