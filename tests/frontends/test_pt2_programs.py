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
from torch.nn.functional import pad, scaled_dot_product_attention

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


PADDED: dict[str, Callable[..., Tensor]] = {
    "to a multiple": lambda self, x: pad(x, (0, 0, 0, -x.shape[0] % 4)),
    "of both axes": lambda self, x: pad(x, (1, x.shape[0] % 3, x.shape[0], 2), value=2.5),
    "whole numbers": lambda self, x: pad(x.long(), (0, -x.shape[0] % 4), value=7),
}


@pytest.mark.parametrize("how", PADDED)
def test_padding_by_sizes(how: str, tmp_path: Path) -> None:
    graph = load(saved(tmp_path, PADDED[how], X, dynamic_shapes=(ROWS,))).graph
    for rows in (1, 3, 4, 9):
        x = torch.arange(4.0 * rows).reshape(rows, 4) - 3
        wanted = PADDED[how](None, x).numpy()
        np.testing.assert_array_equal(run(graph, {"inputs_0": x.numpy()})["output"], wanted)


def test_padding_that_would_cut_is_refused_in_a_call(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return pad(x, (0, 0, 0, 6 - x.shape[0]))

    graph = load(saved(tmp_path, forward, X, dynamic_shapes=(ROWS,))).graph
    assert run(graph, {"inputs_0": np.ones((6, 4), np.float32)})["output"].shape == (6, 4)
    with pytest.raises(LlmcError, match="-1"):
        run(graph, {"inputs_0": np.ones((7, 4), np.float32)})


@pytest.mark.parametrize(("causal", "axes"), [(False, 0), (True, 0), (False, 2), (False, 3)])
def test_attention_of_one_head(causal: bool, axes: int, tmp_path: Path) -> None:
    """PyTorch takes `[batch, seq, width]`; with a mask of all samples or of each."""
    q, k = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    mask = () if not axes else (torch.randn((2, 3, 5)[-axes:]),)

    def forward(self: Any, q: Tensor, k: Tensor, *mask: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, k, attn_mask=mask[0] if mask else None, is_causal=causal)

    graph = load(saved(tmp_path, forward, q, k, *mask)).graph
    given = {f"inputs_{i}": t.numpy() for i, t in enumerate((q, k, *mask))}
    found = run(graph, given)["output"]
    np.testing.assert_allclose(found, forward(None, q, k, *mask).numpy(), rtol=1e-5, atol=1e-6)
