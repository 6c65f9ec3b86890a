"""Comparisons of sizes that torch's algebra cannot decide: every size is tried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import Max, Min

from llmc.compiler.dims import dim, from_one, symbol
from llmc.compiler.frontends.aten import Symbols
from llmc.compiler.frontends.inputs import Input, Inputs
from llmc.compiler.frontends.program import export
from llmc.compiler.frontends.torch_export import to_graph
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

ASKED = Inputs((Input("x", ("batch", "seq")),), (), {"batch": (1, 8), "seq": (1, 64)})


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return (self.function(x),)


def exported(function: Any) -> Any:
    return export(Function(function), ASKED, SimpleNamespace(), "config.json")


def bounds(holds: Any) -> Any:
    """Of a model whose code asks whether something holds of its sizes, as XLNet's, ImageGPT's and DeepSeek's does."""
    return exported(lambda x: x * 2 if holds(*x.shape) else x - 1)[1].bounds


def test_what_holds_for_all_sizes_narrows_nothing() -> None:
    assert bounds(lambda b, s: min(32, 32 * s) * s == 32 * s) == ASKED.bounds


def test_bounds_end_where_the_other_branch_begins() -> None:
    assert bounds(lambda b, s: (2 * s - 1) % s != 0) == {"batch": (1, 8), "seq": (2, 64)}
    assert bounds(lambda b, s: s != 64) == {"batch": (1, 8), "seq": (1, 63)}


def test_what_mixes_sizes_and_does_not_always_hold_is_refused() -> None:
    with pytest.raises(LlmcError, match=r"torch\.export cannot trace the model"):
        bounds(lambda b, s: (2 * s - 1) % s != 0 and (b * s) % 13 != 0)


def test_sizes_modulo_others() -> None:
    program, inputs = exported(lambda x: x.new_ones(x.shape[1] % 3 + 2))
    graph = to_graph(program, inputs.given, ["y"], inputs.bounds)
    for seq in (4, 5, 6):
        assert run(graph, {"x": np.zeros((2, seq), np.float32)})["y"].shape == (seq % 3 + 2,)


def test_what_follows_from_sizes_being_at_least_one() -> None:
    assert from_one(dim("1 - Max(0, 1 - seq)")) == 1
    assert from_one(dim("Max(0, seq - 3)")) == dim("Max(0, seq - 3)")
    assert from_one(dim("Max(1, seq)")) == dim("seq")


def test_what_mixes_sizes_alone_is_told_too() -> None:
    """torch.export notes it as a guard of the program, and raises nothing."""
    with pytest.raises(LlmcError, match="computes something else at some sizes") as caught:
        bounds(lambda b, s: (b * s) % 13 != 0)
    assert "% 13) != 0 only, not at " in str(caught.value.found)


def test_what_holds_of_several_sizes_is_no_refusal() -> None:
    assert bounds(lambda b, s: (b * s + s) % s == 0) == ASKED.bounds


def test_the_greater_of_two_sizes_is_known_from_their_bounds() -> None:
    """torch has a Max of its own. A state may hold nothing, so its dim is not one of those that are at least 1."""
    seq, past = (sympy.Symbol(name, integer=True) for name in ("s0", "s1"))
    corners = [{"seq": 1, "past": 0}, {"seq": 9, "past": 0}, {"seq": 1, "past": 8}]
    symbols = Symbols({seq: symbol("seq"), past: symbol("past")}, corners)

    def named(expression: Any) -> str:
        return str(symbols.dim(ShapeEnv().create_symintnode(expression, hint=1)))

    assert named(1 - Max(0, 1 - seq)) == "1"
    assert named(9 - Max(0, 9 - past - seq)) == "past + seq"
    assert named(Min(seq, 9)) == "seq"
    assert named(Max(1, past)) == "Max(1, past)"
