"""What a compile makes of a graph before LLVM: the optimised graph, and the kinds of kernels it needs.

LLVM takes seconds for a kernel, and most kernels of a model differ from another's in their sizes only.
"""

from __future__ import annotations

import re
from typing import Any

from llmc.compiler.calls import Kernel
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.graph import Graph
from llmc.kernels import Kernels
from llmc.optimise import optimise
from llmc.options import Order
from llmc.report import Stages


def kernels_of(graph: Graph, **options: Any) -> Kernels:
    """The kernel calls that `compile_graph(graph, ..., **options)` would make code for, and their graph."""
    imported = Imported(graph, "graph", "graph", "", "", (), None, None)
    order = Order("never.llmc", "graph", options)  # type: ignore[arg-type]
    optimised = optimise(imported, order, Stages(None), _no_code)
    return Kernels.of(optimised.module, order.target)


def _no_code(*_: Any, **__: Any) -> None:
    raise AssertionError("calibration on data runs code: compile instead")


def whole(kernels: Kernels) -> Graph:
    """The optimised graph of a model with one function."""
    (graph,) = kernels.module.functions.values()
    return graph


def kinds(kernels: Kernels) -> frozenset[str]:
    """The kinds of kernels: family and key of each, a `#` for every number in it."""
    return frozenset(kind(call.kernel) for call in kernels.every)


def kind(kernel: Kernel) -> str:
    return _NUMBER.sub("#", f"{kernel.family} {kernel.key!r}")


_NUMBER = re.compile(r"(?<![\w.])-?\d+(\.\d+)?(e[-+]?\d+)?\b")  # of its own: not that of f32
