"""ATen's rarer ops, written out in those of the IR, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from aten_lab import Function, compare, imported
from torch.nn import functional as F

from llmc.compiler.frontends import foreign
from llmc.compiler.frontends.inputs import Input
from llmc.compiler.frontends.torch_export import to_graph
from llmc.compiler.frontends.tracing import trace
from llmc.compiler.graph import Source
from llmc.compiler.ops import constant
from llmc.errors import LlmcError

W = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
HEADS = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(2))
EDGES = torch.tensor([-0.5, 0.0, 0.7])
LOW = torch.tensor([3, 1])
ROW = torch.tensor([[2], [0]])


def nothing_written(x: Any, i: Any) -> Any:
    """Steps over no elements, as Qwen 3.5's rotary parts of heads of few features."""
    made = x * 2
    made[..., 1:0:3] = x[..., 1:0:3]
    made[:, :, 2:2] = 1.0
    return made, torch.cat((x, x[..., 2:1:2], x[..., 1:0:3]), -1)


def written(x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In-place writes into parts of new tensors."""
    parts, steps, one = torch.empty_like(x), torch.zeros_like(x), x.clone()
    parts[..., :2], parts[..., 2:] = x[..., 4:], x[..., :4]
    steps[..., 1::2] = 2 * x[..., :3]
    one[:, 0] = 7.0
    marked = i.clone()
    marked[i > 2] = -1
    return parts, steps, one, marked.fill_(3), marked


def placed(x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
    order = i.flatten().argsort(stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(order.shape[0])
    table = x.new_zeros(6, 3)
    return (
        back,
        table.index_put((i,), x[..., :3]),
        table.index_put((i,), x[..., :3], accumulate=True),
        table.index_put((i % 6, i % 3), torch.tensor(2.0)),
        torch.ops.aten.index_put(x, [None, None, LOW], x[..., :2]),
        torch.ops.aten.index_put(x, [torch.tensor([0]), None, ROW], torch.tensor([5.0])),
    )


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "repeated": lambda x, i: (
        x.repeat_interleave(2, -1),
        i.repeat_interleave(3),
        x.tile(2, 1),
        x.tile(1, 2, 1, 1),
        x.flip(1),
        x.flip(0, -1),
    ),
    "laid out": lambda x, i: (
        x.movedim(0, 2),
        x.movedim((2, 0), (0, 1)),
        *torch.meshgrid(i[0], torch.arange(3), indexing="ij"),
        *torch.meshgrid(i[0], torch.arange(3), indexing="xy"),
        torch.eye(3, 4) + 0,
        (x.mT @ x).diagonal(1, 1, 2),
        *torch.broadcast_tensors(i[:, :, None], x),
    ),
    "einsum": lambda x, i: (
        torch.einsum("bsd,ed->bse", x, W),
        torch.einsum("bsd,dhe->bhse", x, HEADS),
        torch.einsum("...id,...jd->...ij", x, x),
        torch.einsum("bsd,btd->bts", x, 2 * x),
        torch.einsum("bsd->bd", x),
        torch.einsum("bdd->bd", x.mT @ x),
        torch.einsum("bs,bsd,ed->be", i.float(), x, W),
        torch.einsum("i,j", x[0, 0], W[0]),
        torch.einsum("bsd,bsd->bs", x, x),
        torch.einsum("bid,jd", x, W),
    ),
    "products": lambda x, i: (
        torch.outer(x[0, 0], W[0]),
        torch.dot(x[0, 0], W[0]),
        torch.mv(x[0], W[1]),
        torch.inner(x, W),
        torch.tensordot(x, HEADS, dims=([2], [0])),
    ),
    "order": lambda x, i: (
        *x.topk(2),
        *x.topk(4, 2, largest=False),
        *i.sort(stable=True, dim=1),
        *i.sort(dim=0, descending=True, stable=True),
        i.argsort(stable=True),
        (i > 2).sort(stable=True, dim=-1)[1],
        x.msort(),
        x.kthvalue(3)[0],
    ),
    "places": lambda x, i: (
        torch.bucketize(x, EDGES),
        torch.bucketize(i, LOW.sort()[0], right=True, out_int32=True),
        torch.searchsorted(EDGES, x),
        torch.searchsorted(x.sort(-1)[0], x, right=True),
        torch.isin(i, LOW),
        F.one_hot(i, 7),
        i.flatten().float().histc(6, 0, 5),
    ),
    "scattered": lambda x, i: (
        x.scatter(2, i[:, :, None], 1.5),
        x.scatter(-1, i[..., None] % 2, x[..., 3:4]),
        x.scatter_add(2, i[:, :, None].expand(-1, -1, 9) % 6, x.repeat(1, 1, 2)),
        x[:, :1].scatter(2, LOW[None, None], x[:1, :, 1:3]),
        x.scatter_reduce(2, i[:, :, None], x, "amax"),
        x.scatter_reduce(2, i[:, :, None], x, "prod", include_self=False),
        x.scatter_reduce(1, i[:, :, None] * 0, x, "sum"),
    ),
    "lines": lambda x, i: (
        x.index_add(2, LOW, x[..., :2], alpha=2),
        x.index_copy(2, LOW, x[..., :2]),
        x.index_fill(2, LOW, 0.5),
        x.masked_scatter(x > 0, x.abs().flatten().cumsum(0)),
        W.take_along_dim(LOW[None], 1) + 0,
    ),
    "written": written,
    "nothing is written": nothing_written,
    "placed": placed,
    "parts": lambda x, i: (
        x.slice_scatter(x[..., :2], 2, -3, -1),
        x.select_scatter(x[:, :, 0], 2, -1),
        x.slice_scatter(x[:, :1], 1, 0, 1),
        x.diff(),
    ),
    "index lists": lambda x, i: (
        x[:, :, LOW],
        x[:, :1][:, torch.tensor([0, 0]), LOW],
        x[torch.tensor([0, 0]), :, LOW],
        x[:, None][0, :, ROW * 0, LOW],
        HEADS[:, LOW % 2, ROW],
    ),
    "reductions": lambda x, i: (
        x.argmin(-1),
        x[:1, :1].argmax(),
        i.argmin(0, keepdim=True),
        x.prod(1),
        (i + 1).prod(),
        x.logsumexp(-1, keepdim=True),
        torch.logsumexp(torch.where(x > 0, x, -torch.inf), 1),
        (i > 2).count_nonzero(),
        *x.aminmax(dim=1),
    ),
    "moments": lambda x, i: (
        x.var((0, 1), correction=0),
        x.std(1, correction=0),
        *torch.var_mean(x, -1, correction=0, keepdim=True),
        *torch.std_mean(x, (1, 2), correction=0),
        x.norm(3, dim=1),
        torch.linalg.vector_norm(x, torch.inf, dim=-1),
        torch.linalg.vector_norm(x),
        torch.linalg.norm(x),
        torch.linalg.norm(x, dim=-1, keepdim=True),
        torch.linalg.norm(x, 3, dim=1),
    ),
    "special values": lambda x, i: (
        (x / x.relu()).isnan(),
        (x / x.relu()).isinf(),
        (x / x.relu()).isfinite(),
        (x / x.relu()).nan_to_num(),
        i.isfinite(),
    ),
    "integers": lambda x, i: (
        i & 3,
        i | 4,
        i ^ 5,
        ~i,
        i << 2,
        (i - 3) >> 1,
        (i - 3).fmod(2),
        (i - 3) % -2,
        (i - 3).div(2, rounding_mode="trunc"),
        (i - 3) // 2,
    ),
    "rounded": lambda x, i: (
        x.trunc(),
        x.frac(),
        (2 * x).round() + (i[..., None] / 2).round(),
        x.fmod(0.7),
        x.div(0.3, rounding_mode="trunc"),
        i.round(),
    ),
    "composed": lambda x, i: (
        torch.addcmul(x, x, x, value=0.5),
        torch.addcdiv(x, x, x.abs() + 1),
        torch.lerp(x, -x, 0.3),
        torch.lerp(x, -x, 0.8),
        x.tan().clamp(-3, 3),
        x.sinh() / x.cosh(),
        torch.multiply(x, 2) + torch.subtract(x, 1),
        torch.concat([x, x], 1),
        torch.clip(x, -0.5, 0.5).negative(),
        torch.greater(x, 0),
    ),
    "angles": lambda x, i: (x.atan(), x.clamp(-0.9, 0.9).acos(), x.clamp(-0.9, 0.9).asin(), x.tanh().acos()),
    "windows": lambda x, i: (
        x.unfold(2, 3, 2),
        x.unfold(-1, 6, 1),
        x[:, :1].unfold(1, 1, 1),
        i.unfold(1, 1, 1),
    ),
    "samples": lambda x, i: (
        F.grid_sample(x[:, None], x[:, :, None, :2] * 2, align_corners=False),
        F.grid_sample(x[:, None, :1], x[:, :, None, 1:3], "nearest", "border", align_corners=True),
    ),
    "Fourier": lambda x, i: (
        torch.fft.fftn(x, dim=(1, 2)).real,
        torch.fft.fft(x, dim=1).imag,
        torch.fft.ifft(torch.fft.fft(x, dim=-1), dim=-1).real,
        torch.fft.rfft(x, norm="ortho").abs(),
        torch.fft.fft2(x, norm="forward").real,
        torch.fft.fft(x[0, 0]).imag,
    ),
}


class Tables(torch.nn.Module):
    """Buffers in dtypes that the IR has not, and an op on constants that it has not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fine", torch.arange(6, dtype=torch.float64) / 3)
        self.register_buffer("short", torch.arange(6).to(torch.bfloat16) / 3)
        self.register_buffer("turns", torch.polar(torch.ones(6), torch.arange(6.0)))

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
        steps = torch.arange(6, dtype=torch.float64) * self.fine
        gamma = torch.lgamma(self.fine.float() + 1)
        window = torch.hann_window(6)
        return x * steps.exp().float(), x + self.short.float() * window, x * gamma, (x * self.turns).imag


class Masks(torch.nn.Module):
    """Constant masks, of which PyTorch does not know how much they keep."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([1, 0, 1, 1, 0, 0]).bool())
        self.register_buffer("square", torch.eye(4, 6).bool())

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept = x[:, :, self.mask]
        return kept + 1, W[self.square] * 2, kept.sum(-1), self.mask.nonzero() + 0


def test_constant_masks() -> None:
    compare(Masks())


def test_only_small_constants_are_computed() -> None:
    """A file may state any call: neither memory without end nor ops that are not known to be harmless."""
    one, source = constant(np.ones(2, np.float32)), Source("m")
    aten = torch.ops.aten
    assert foreign.computed(aten.exp.default, {"self": one}, source) is not None
    assert foreign.computed(aten.repeat.default, {"self": one, "repeats": [1 << 40]}, source) is None
    assert foreign.computed(aten.full.default, {"size": [1 << 40], "fill_value": 1.0}, source) is None
    assert foreign.computed(aten.from_file.default, {"filename": "/etc/hostname", "size": 1}, source) is None
    assert foreign.computed(aten.sort.default, {"self": one}, source) is None


class Turning(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x * x,)


@pytest.mark.parametrize("where", ["input", "output"])
def test_complex_numbers_stay_inside(where: str) -> None:
    if where == "output":
        with pytest.raises(LlmcError, match="an output of the model is complex"):
            imported(Function(lambda x, i: torch.fft.fft(x)))
        return
    program = trace(Turning().eval(), (torch.zeros(2, dtype=torch.complex64),), ({},))
    with pytest.raises(LlmcError, match="a complex input"):
        to_graph(program, [Input("x", (2,))], ["y"], {})


def test_constants_of_other_dtypes() -> None:
    graph = compare(Tables())
    assert not {n.op for n in graph.nodes} - {"input", "constant", "mul", "add"}


def rotated(x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rotary positions in complex numbers."""
    turns = torch.polar(torch.ones_like(x[..., :3]), i[..., None].float())
    pairs = torch.view_as_complex(x.unflatten(2, (3, 2)))
    both = torch.stack([pairs * turns, pairs + 2 * turns.conj()], 2)
    return torch.view_as_real(both[:, :, 0]).flatten(2), both.transpose(1, 2).abs(), (-pairs).imag


@pytest.mark.parametrize("name", [*FUNCTIONS, "rotated"])
def test_ops(name: str) -> None:
    compare(Function(FUNCTIONS.get(name, rotated)))
