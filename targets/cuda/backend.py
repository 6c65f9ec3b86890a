"""The backend for NVIDIA GPUs: TIR kernels as CUDA C++, assembled by nvcc, launched by runtime/c/cuda.c.

What needs TVM is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmc.compiler.calls import Call, Region
from llmc.compiler.graph import Graph
from llmc.compiler.program import Variant
from llmc.errors import LlmcError
from llmc.targets.backend import Backend, Code
from llmc.targets.lowering import Lowerings
from llmc.targets.store import Store
from llmc.targets.target import Target

FATBIN = "llmc_fatbin"  # the symbol that module.c knows it by


class CudaBackend(Backend):
    """Artifacts hold machine code of each architecture, and PTX for later ones."""

    name = "cuda"
    quantisations = frozenset({"int8", "int8-static", "fp16", "bf16", "w8", "w4", "w4a8"})
    integer_rows = frozenset({"int8-blocks"})
    halves = True
    device = "llmc_cuda"
    emitter = "cuda"
    runtime_sources = ("cuda.c", "cuda_run.c")
    libraries = ("-ldl",)

    @property
    def decodes(self) -> frozenset[str]:
        return frozenset({"bfloat16", "blockwise"})

    def variants(self, target: Target) -> Sequence[Variant]:
        return [Variant("cuda", 0, 0, needs=f"an NVIDIA GPU: {', '.join(target.architectures)} or later")]

    def passes(self, target: Target) -> Mapping[str, str]:
        """There are no kernels of cells."""
        return {**super().passes(target), "simplify": "expand-cells"}

    def lowerings(self) -> Lowerings:
        from llmc.targets.cuda.lower import LOWERINGS

        return LOWERINGS

    def lower(self, graph: Graph, first: Lowerings | None = None) -> tuple[Call | Region, ...]:
        """As any backend, but for branches: their condition is in the GPU's memory, the program is on the host."""
        from llmc.targets.cuda.nvcc import find_nvcc

        branch = next((node for node in graph.everywhere() if node.op == "branch"), None)
        if branch is not None:
            raise LlmcError(
                "a branch cannot run on a GPU yet: its condition is computed there, the program decides on the host",
                at=str(branch.source) or None,
                hint="compute both sides and choose by where",
            )
        find_nvcc()  # that it is missing shows before any work
        return super().lower(graph, first)

    def compile(self, calls: Sequence[Call], target: Target, kept: Store) -> Code:
        from llmc.targets.cuda.build import cuda_source
        from llmc.targets.cuda.nvcc import fatbin

        kernels = {call.kernel.symbol: call.kernel for call in calls}
        source = cuda_source({symbol: kernel.emit(symbol, None) for symbol, kernel in kernels.items()})
        code = fatbin(source, target.architectures, kept)
        return Code(data={FATBIN: code}, sources={"kernels.cu": source})


BACKEND = CudaBackend()
