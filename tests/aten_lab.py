"""Functions as programs of `torch.export`, imported and compared with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from llmc.compiler.frontends.inputs import Input
from llmc.compiler.frontends.torch_export import to_graph
from llmc.compiler.frontends.tracing import trace
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.verify import verify

BOUNDS = {"batch": (1, 8), "seq": (1, 32)}


class Function(nn.Module):
    """A function of x f32 [batch, seq, 6] and i i64 [batch, seq]."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> Any:
        result = self.function(x, i)
        return result if isinstance(result, tuple) else (result,)


def exported(module: nn.Module) -> Any:
    axes = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("seq", min=1, max=32)}
    x, i = torch.zeros(2, 7, 6), torch.zeros(2, 7, dtype=torch.long)
    with torch.no_grad():
        return trace(module.eval(), (x, i), (axes, axes))


def imported(module: nn.Module, outputs: int = 1) -> Graph:
    inputs = [Input("x", ("batch", "seq", 6)), Input("i", ("batch", "seq"))]
    return to_graph(exported(module), inputs, [f"y{n}" for n in range(outputs)], BOUNDS)


def values(batch: int, seq: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch + seq)
    x = rng.normal(size=(batch, seq, 6)).astype(np.float32)
    return {"x": x, "i": rng.integers(0, 6, (batch, seq))}


def compare(module: nn.Module) -> Graph:
    """Import and compare with PyTorch at two shapes; dtypes must agree too."""
    with torch.no_grad():
        count = len(module(*(torch.from_numpy(v) for v in values(2, 5).values())))
    graph = imported(module, count)
    verify(graph)
    for given in (values(2, 5), values(1, 1), values(3, 4)):
        with torch.no_grad():
            expected = module(*(torch.from_numpy(v) for v in given.values()))
        for want, (name, got) in zip(expected, run(graph, given).items(), strict=True):
            assert (got.shape, got.dtype) == (want.shape, want.numpy().dtype), name
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-5)
    return graph
