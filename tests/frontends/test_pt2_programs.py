"""Programs as users export them: numbers among the inputs, buffers that change, branches, outputs that are sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import quiet
from torch import Tensor, nn
from torch.export import Dim

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

X = torch.arange(8, dtype=torch.float32).reshape(2, 4) - 3


class Program(nn.Module):
    """A module of a function and a buffer."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.body = forward

    def forward(self, *inputs: Any) -> Any:
        return self.body(self, *inputs)


def saved(folder: Path, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Path:
    path = folder / "m.pt2"
    with quiet():
        program = torch.export.export(Program(forward).eval(), inputs, strict=False, **options)
        torch.export.save(program, path)
    return path


def test_numbers_are_fixed_at_export(tmp_path: Path) -> None:
    """PyTorch takes no others; the artifact has no such inputs."""

    def forward(self: Any, x: Tensor, k: int, f: float, flag: bool) -> Tensor:
        return (x * k + f).relu() if flag else x

    graph = load(saved(tmp_path, forward, X, 3, 0.5, True)).graph
    assert [n.attributes["name"] for n in graph.inputs] == ["inputs_0"]
    np.testing.assert_array_equal(run(graph, {"inputs_0": X.numpy()})["output"], (X * 3 + 0.5).relu())


def counted(self: Any, x: Tensor) -> Tensor:
    self.count.add_(1)
    return x + self.count


def branched(self: Any, x: Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))


def sized(self: Any, x: Tensor) -> tuple[Tensor, int]:
    return x.relu(), x.shape[0]


ROWS = ({0: Dim("rows", min=1, max=9)},)
REFUSED: dict[str, tuple[Any, str, str, Any]] = {
    "a buffer that changes": (counted, "changes its own buffers when it runs", "count", None),
    "a branch": (branched, "calls an op that llmc does not have", "torch.ops.higher_order.cond", None),
    "a size": (sized, "an output of the model is a number, not a tensor", "", (ROWS,)),
    "a multiple": (
        lambda self, x: x.relu(),
        r"an axis of the inputs is 2\*s\d+",
        "",
        (({1: 2 * Dim("h", max=9)},),),
    ),
}


@pytest.mark.parametrize(("forward", "problem", "found", "sizes"), REFUSED.values(), ids=list(REFUSED))
def test_refusals(forward: Any, problem: str, found: str, sizes: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, forward, X, dynamic_shapes=sizes)
    with pytest.raises(LlmcError, match=problem) as info:
        load(path)
    assert found in (info.value.found or "")
