"""Each ATen converter against PyTorch, and what happens to programs that cannot be imported."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from aten_lab import Function, compare, exported, imported
from torch import nn
from torch.nn import functional as F
from transformers.integrations import moe

from llmc.compiler.frontends import inplace, masks, step_attention
from llmc.compiler.frontends.aten import TABLE
from llmc.errors import LlmcError

W = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
TABLES = torch.arange(48.0).reshape(6, 8)
KERNEL = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(2))

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "unary": lambda x, i: (-x, x.abs(), x.sign(), x.floor(), x.ceil(), x.exp(), x.abs().log(), i.neg()),
    "unary close": lambda x, i: (x.abs().sqrt(), (x.abs() + 1).rsqrt(), x.sin(), x.cos(), x.tanh(), x.erf()),
    "activations": lambda x, i: (x.sigmoid(), F.relu(x), F.silu(x), F.gelu(x), F.gelu(x, approximate="tanh")),
    "more activations": lambda x, i: (F.leaky_relu(x, 0.1), F.hardtanh(x, -0.5, 0.5), F.relu6(4 * x)),
    "integers promoted": lambda x, i: (i.sqrt(), i / 2, i * 0.5, i + x[:, :, 0], i.exp()),
    "arithmetic": lambda x, i: (x + 1, 1 - x, x * x, x / 3, torch.add(x, x, alpha=2), x.sub(x, alpha=3)),
    "integer arithmetic": lambda x, i: (i + 1, i * 2, 3 - i, i // 2, i % 4, (-i) // 2, i + i),
    "reciprocal square": lambda x, i: (1 / (x.abs() + 1), x.square(), torch.reciprocal(x.abs() + 1)),
    "powers": lambda x, i: (x**1, x**2, x**3, x.abs() ** 0.5, (x.abs() + 1) ** -0.5, x.abs() ** 1.5, 2.0**x),
    "floor division": lambda x, i: (torch.div(x, 0.7, rounding_mode="floor"), torch.floor_divide(x, 0.3)),
    "min max": lambda x, i: (
        torch.maximum(x, -x),
        torch.minimum(x, -x),
        torch.max(i, i.neg()),
        x.clamp(-0.5, 0.5),
    ),
    "clamp one side": lambda x, i: (x.clamp(min=0.1), x.clamp_max(0.3), i.clamp(1, 3), x.clamp_min(0.2)),
    "comparisons": lambda x, i: (x > 0, x >= x, i == 2, i != 2, x < 0.5, x <= 0, i > x[:, :, 0]),
    "bool logic": lambda x, i: ((x > 0) & (x < 1), (x > 0) | (x < -1), ~(x > 0), (x > 0) ^ (x < 1)),
    "logical ops": lambda x, i: (
        torch.logical_and(x, i[:, :, None]),
        torch.logical_not(i),
        (i > 1) * (i < 4),
    ),
    "where": lambda x, i: (torch.where(x > 0, x, 0.0), torch.where(i > 2, 1, 0), x.masked_fill(x > 0, -1e9)),
    "where numbers": lambda x, i: (torch.where(x > 0, 1.0, x), torch.where(x > 0, x, i[:, :, None])),
    "sums": lambda x, i: (
        x.sum(),
        x.sum(1),
        x.sum((0, 2), keepdim=True),
        i.sum(1),
        (i > 2).sum(1),
        x.mean(-1),
    ),
    "extremes": lambda x, i: (x.amax(1), x.amin(-1, keepdim=True), x.max(), x.min(), *x.max(2), *x.min(2)),
    "any all": lambda x, i: ((x > 0).any(1), (x > 0).all(-1), (i > 2).any(), i.any(1), (i > 2).all()),
    "argmax": lambda x, i: (x.argmax(-1), x.argmax(2, keepdim=True)),
    "cumsum": lambda x, i: (x.cumsum(1), i.cumsum(1), (i > 1).cumsum(1)),
    "softmax": lambda x, i: (
        x.softmax(-1),
        x.softmax(1),
        x.log_softmax(-1),
        F.softmax(i, -1, dtype=torch.float32),
    ),
    "norms": lambda x, i: (x.norm(dim=-1), torch.linalg.vector_norm(x, 1, dim=-1), F.normalize(x, dim=1)),
    "variance": lambda x, i: (x.var(-1), x.std(-1, unbiased=False), x.var(-1, keepdim=True, correction=0)),
    "no-ops": lambda x, i: (x.clone() + 0, x.contiguous() * 1, x.detach() + 1, F.dropout(x, 0.5, False), +x),
    "casts": lambda x, i: (
        x.to(torch.long),
        i.float(),
        (x > 0).to(torch.int32),
        i.type_as(x),
        x.bool(),
        i.int(),
    ),
    "views": lambda x, i: (x.view(-1, 6), x.reshape(x.shape[0], -1), x.flatten(1), x.unflatten(2, (2, 3))),
    "axes of one": lambda x, i: (
        x.unsqueeze(1),
        x[:, :, :1].squeeze(-1),
        x[None],
        x[:, :1].squeeze(1),
        x[:1].squeeze(0),
    ),
    "transposes": lambda x, i: (
        x.transpose(1, 2),
        x.permute(2, 0, 1),
        x.mT,
        x.swapaxes(0, 1),
        W.t() + 0,
        W.T * 1,
    ),
    "expansions": lambda x, i: (
        x[:, :1].expand(-1, x.shape[1], -1),
        i[:, :, None].expand_as(x),
        x.repeat(2, 1, 3),
    ),
    "slices": lambda x, i: (
        x[:, :, 1:4],
        x[:, :, ::2],
        x[:, :, -2:],
        x[:, :, :-1],
        x[:, 0],
        x[:, -1],
        x[:, :, -1],
    ),
    "narrow": lambda x, i: (x.narrow(2, 1, 3), x.select(2, -2)),
    "splits": lambda x, i: (*x.split(2, -1), *x.split([1, 5], -1), *x.chunk(3, -1), *x.unbind(2)),
    "joins": lambda x, i: (
        torch.cat([x, x * 2], 1),
        torch.stack([x, -x], 1),
        torch.cat([x, i[:, :, None]], -1),
    ),
    "padding": lambda x, i: (F.pad(x, (1, 2)), F.pad(x, (0, 0, 2, 1), value=3.0), F.pad(i, (1, 0), value=7)),
    "roll": lambda x, i: (x.roll(2, -1), x.roll((1, -1), (2, 2)), x.roll(-3, 1)),
    "gather": lambda x, i: (x.gather(2, i[:, :, None]), x.gather(1, torch.zeros_like(i[:, :1, None]))),
    "index": lambda x, i: (
        TABLES[i],
        TABLES[:, i],
        x[:, :, torch.tensor([0, -1])],
        TABLES[i, i],
        TABLES[i - 6],
    ),
    "index select": lambda x, i: (x.index_select(2, torch.tensor([3, 1])), F.embedding(i, TABLES)),
    "rows by index": lambda x, i: (x[torch.arange(x.shape[0]), i.argmax(1) * 0],),
    "arange": lambda x, i: (torch.arange(x.shape[1]), torch.arange(2, 9, 3), torch.arange(0, 2, 0.5) + 0),
    "sizes in arithmetic": lambda x, i: (x * x.shape[1], i + x.shape[0] * 2, x / (x.shape[1] + 1)),
    "filled": lambda x, i: (torch.ones(2, 3), torch.zeros_like(i), x.new_ones(x.shape), torch.full((2,), 7)),
    "filled alike": lambda x, i: (
        torch.full_like(x, 0.5),
        i.new_zeros((x.shape[1],)),
        torch.ones_like(x),
        x.new_full((2,), 3),
    ),
    "triangles": lambda x, i: (x.tril(), x.triu(1), x.new_ones(x.shape[1], x.shape[1]).tril(-1)),
    "products": lambda x, i: (
        F.linear(x, W),
        x @ W.T,
        x @ x.mT,
        torch.bmm(x, x.mT),
        x @ W[0],
        W[0] @ x[0].mT,
    ),
    "added products": lambda x, i: (
        torch.addmm(W[:, 0], x[0], W.T, alpha=2),
        torch.baddbmm(x[:, :, :1], x, x.mT, beta=3),
    ),
    "layer norm": lambda x, i: (
        F.layer_norm(x, (6,)),
        F.layer_norm(x, (6,), W[0], W[1]),
        F.layer_norm(x, (6,), W[0]),
    ),
    "rms norm": lambda x, i: (F.rms_norm(x, (6,), W[0], 1e-6), F.rms_norm(x, (6,))),
    "convolution": lambda x, i: (
        F.conv1d(x.mT, KERNEL, padding=1),
        F.conv1d(x.mT, KERNEL, W[0, :5], padding="same", dilation=2),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_converters(name: str) -> None:
    compare(Function(FUNCTIONS[name]))


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(2, (2, 3)).transpose(1, 2)


@pytest.mark.parametrize("masked", ["none", "bool", "added", "causal", "scaled"])
def test_attention(masked: str) -> None:
    def function(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        keys = ((i > 2) | (i == i[:, :1]))[:, None, None, :]  # some masked, never all
        options: dict[str, Any] = {
            "none": {},
            "bool": {"attn_mask": keys},
            "added": {"attn_mask": i[:, None, None, :].float()},
            "causal": {"is_causal": True},
            "scaled": {"scale": 0.7},
        }[masked]
        return F.scaled_dot_product_attention(heads(x), heads(2 * x), heads(x + 1), **options)

    graph = compare(Function(function))
    (node,) = [n for n in graph.nodes if n.op == "attention"]
    assert node.attributes["causal"] == (masked == "causal")
    assert math.isclose(node.attributes["scale"], 0.7 if masked == "scaled" else 3**-0.5)


def test_every_converter_is_for_a_real_overload() -> None:
    assert masks  # importing them registers llmc's own ops, and that of transformers
    assert step_attention
    assert moe
    for overload in TABLE:
        name, variant = overload.rsplit(".", 1)
        space, _, op = name.rpartition(".")
        assert hasattr(getattr(getattr(torch.ops, space or "aten"), op), variant), overload


# --- in-place ops


def test_in_place_accumulation_needs_no_functionalisation() -> None:
    def function(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        score = x * 2
        score += x
        return score.masked_fill_(x > 0, 0.0)

    module = Function(function)
    assert inplace.plain(exported(module).graph)
    compare(module)


def test_in_place_write_that_is_read_through_a_view() -> None:
    def function(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        y = x * 2
        view = y.transpose(1, 2)
        y += 1
        return view * 3

    module = Function(function)
    assert not inplace.plain(exported(module).graph)
    compare(module)


# --- what cannot be imported


class Unsupported(nn.Module):
    """Two unsupported ops in two places, one of them in both of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Climbs(), Climbs()])

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for layer in self.layer:
            x = layer(x)
        return (torch.special.i0(x),)


class Climbs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cummax(-1)[0] + 1


def test_everything_unsupported_is_reported_at_once() -> None:
    with pytest.raises(LlmcError) as caught:
        imported(Unsupported())

    text = str(caught.value)
    assert "2 ops" in caught.value.problem
    assert "aten.cummax" in text
    assert "x2 at layer.*" in text
    assert "aten.special_i0" in text
    assert "test_torch_export.py:" in text
    assert caught.value.hint


def test_unsupported_forms_of_supported_ops_say_why() -> None:
    with pytest.raises(LlmcError, match=r"layer_norm over several axes"):
        imported(Function(lambda x, i: F.layer_norm(x.unflatten(2, (2, 3)), (2, 3))))
    with pytest.raises(LlmcError, match=r"indexing by a computed mask"):
        imported(Function(lambda x, i: x[x > 0]))
    with pytest.raises(LlmcError, match=r"dtype float64"):
        imported(Function(lambda x, i: x.double() + 1))
    with pytest.raises(LlmcError, match=r"the diagonal of axes of dynamic size in einsum"):
        imported(Function(lambda x, i: torch.einsum("bss->bs", x @ x.mT)))
    with pytest.raises(LlmcError, match=r"histc of other than integers"):
        imported(Function(lambda x, i: x.histc(4, 0, 3)))
    with pytest.raises(LlmcError, match=r"complex numbers"):
        imported(Function(lambda x, i: torch.fft.fft(x).sqrt().real))


def test_control_flow_on_values_names_the_line(capfd: pytest.CaptureFixture[str]) -> None:
    def function(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x

    with pytest.raises(LlmcError, match="cannot trace") as caught:
        exported(Function(function))
    assert (caught.value.at or "").startswith("test_torch_export.py:")
    assert "def forward" not in "".join(capfd.readouterr())
    assert len(str(caught.value)) < 600


def test_a_size_that_depends_on_values() -> None:
    with pytest.raises(LlmcError, match=r"a size that depends on values") as caught:
        imported(Function(lambda x, i: x.nonzero()))
    assert "aten.nonzero.default" in caught.value.problem
    assert "built-in" not in str(caught.value)


def test_a_dynamic_size_that_must_be_even() -> None:
    with pytest.raises(LlmcError, match="cannot trace"):
        imported(Function(lambda x, i: x.reshape(x.shape[0], x.shape[1] // 2, 12)))
