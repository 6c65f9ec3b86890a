"""Every op's NumPy reference against an independent formulation, PyTorch's where it has one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from op_values import Array, Random, apply

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Weight
from llmc.compiler.ops import OPS
from llmc.compiler.ops.split import split_weights

torch.set_num_threads(1)
RANDOM = Random(7)
floats, integers, bools = RANDOM.floats, RANDOM.integers, RANDOM.bools


SPECIAL = np.array([0.0, -0.0, 1.5, -2.5, 2.5, np.inf, -np.inf, np.nan], np.float32)
X, Y = floats(3, 4, 5), floats(4, 1)
N, M = integers(3, 4), integers(4, low=1)
B, C = bools(3, 4), bools(4)
TABLE = floats(11, 6)
IDS = integers(2, 3, low=0, high=11)
W, BIAS, RES = floats(7, 5), floats(7), floats(3, 4, 7)
Q, K, V = floats(2, 4, 3, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 6)
KEEP, ADD = bools(2, 1, 1, 5) | (np.arange(5) == 0), floats(1, 4, 3, 5)
P, R = floats(2, 3, 30), floats(2, 5, 40)
KEYS, PB = bools(2, 5) | (np.arange(5) == 1), floats(1, 3, 3, 5)
BYTES = integers(2, 3, 5, low=0, high=256, dtype="u8")
MASK = (BYTES[0][:, :, None] >> np.arange(8, dtype=np.uint8) & 1).reshape(3, 40).astype(bool)


GATES, STATE, MEMORY, CELL_W = floats(3, 24), floats(3, 6), floats(3, 6), floats(24, 6)


def gru_step(x: Any, h: Any, w: Any, bias: Any) -> Any:
    """PyTorch's cell, whose product with the input gives x."""
    b_hh = torch.cat([torch.zeros(12), bias])
    return torch._VF.gru_cell(x, h, torch.eye(18), w, torch.zeros(18), b_hh)


def halves(packed: torch.Tensor) -> torch.Tensor:
    """The two 4-bit numbers of each byte, the low one first."""
    return torch.stack([packed % 16, packed // 16], -1).flatten(-2).long()


def spread(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The values where a bit is set, in order."""
    return torch.zeros(3, 37).masked_scatter_(torch.from_numpy(MASK[:, :37]), values)


def sdpa(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    causal: bool = False,
    scale: float = 0.3,
    window: int | None = None,
) -> Any:
    if causal:  # the last query sees all keys; PyTorch's flag has the first query see one
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        mask = mask if window is None else mask.triu(k.shape[2] - q.shape[2] - window + 1)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)


def mha(q: Any, k: Any, v: Any, keys: Any, bias: Any) -> Any:
    """Three heads of four columns from columns 2, 3 and 20 on."""
    split = [x[..., o : o + 12].unflatten(-1, (3, 4)).transpose(1, 2) for x, o in ((q, 2), (k, 3), (v, 20))]
    mask = bias.masked_fill(~keys[:, None, None, :], -torch.inf)
    return sdpa(*split, mask).transpose(1, 2).flatten(2)


# A hole, no padding, padding on the left, and a row of nothing: the first place is kept whatever the mask says.
HOLES = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]])
PLACES = [[0, -1, 1], [2, 3, 4], [-1, -1, 6], [-1, -1, -1]]
INDEX, STARTS = np.array([0, 2, 3, 4, 5, 6, 8, 9]), np.array([0, 2, 5, 7, 8])
RAGGED = (floats(8, 30), floats(8, 40), floats(8, 40), (HOLES != 0).ravel()[INDEX], INDEX, STARTS)
HEADS = {"heads": 3, "head_dim": 4, "scale": 0.3, "seq": 3, "offsets": (2, 3, 20)}


def ragged_mha(q: Any, k: Any, v: Any, keys: Any, index: Any, starts: Any, *bias: Any) -> Any:
    """Each sequence alone, a query without keys giving zeros."""
    parts = []
    for low, high in itertools.pairwise(starts.tolist()):
        at, one = index[low:high] % 3, keys[low:high]
        added = bias[0][:, :, at][..., at] if bias else torch.zeros(1, 3, high - low, high - low)
        rows = mha(*(x[None, low:high] for x in (q, k, v)), one[None], added)
        parts.append(rows[0] if one.any() else torch.zeros_like(rows[0]))
    return torch.cat(parts)


def norm(x: Any, *rest: Any, eps: float = 1e-3) -> Any:
    return F.layer_norm(x, x.shape[-1:], *rest, eps=eps)


Q8, S8 = integers(3, 4, 5, low=-127, high=128, dtype="i8"), abs(floats(3, 4, 1)) + np.float32(0.01)
W8, WS = integers(7, 5, low=-127, high=128, dtype="i8"), abs(floats(7))


def packed(q: Any, scale: Any) -> Any:
    """Rows of 5 values: 16 bytes of them, 128 standing for 0, then the scale and 44 zeros."""
    low = F.pad((q.int() + 128).to(torch.uint8), (0, 11), value=128)
    return torch.cat([low, F.pad(scale.expand(3, 4, 1).contiguous().view(torch.uint8), (0, 44))], -1)


def round_by(x: Any, scale: Any) -> Any:
    return torch.clamp(torch.round(x * (1 / scale)), -127, 127).to(torch.int8)


def row_scale(x: Any) -> Any:
    return x.abs().amax(-1, keepdim=True) / 127


ROWS = packed(torch.from_numpy(Q8), torch.from_numpy(S8)).numpy()


def qlinear(rows: Any, w: Any, ws: Any, *extras: Any) -> Any:
    """In float64: where large sums cancel, float32 would keep few digits."""
    x = torch.from_numpy(Q8.astype(np.float64) * S8)
    return F.linear(x, w.double() * ws.double()[:, None], *(e.double() for e in extras)).float()


def in_parts(x: Any) -> Any:
    """Fixed point of 24 bits written out: h, then m, then l, 64 bytes each, all + 128."""
    scale = x.abs().amax(-1, keepdim=True) / (8355711 / 65536)
    fixed = torch.round(x * (65536 / scale)).clamp(-8355711, 8355711).to(torch.int64) + 0x808080
    parts = [F.pad((fixed >> shift & 255).to(torch.uint8), (0, 59), value=128) for shift in (16, 8, 0)]
    rest = F.pad(scale.contiguous().view(torch.uint8), (0, 60))
    return torch.cat([*parts, rest], -1)


def split_linear(rows: Any, w: Any, ws: Any, *extras: Any) -> Any:
    return F.linear(torch.from_numpy(X).double(), torch.from_numpy(W).double(), *extras).float()


SPLIT_ROWS = OPS["split_rows"].reference(X)
SPLIT_W = split_weights(W)

TIES = integers(3, 4, 9, low=-2, high=3)
HOLED = np.concatenate([SPECIAL, SPECIAL[::-1]])[None]
HERE, PUT = integers(3, 6, 5, low=0, high=4), floats(3, 6, 5)
EXPERTS, ROWS_OF = floats(4, 5, 3), floats(12, 5)


def first_of(x: Any, count: int, down: bool) -> Any:
    return torch.sort(x, dim=-1, descending=down, stable=True)[1][..., :count]


def by_group(x: Any, w: Any, ends: Any) -> Any:
    """Each row by the matrix of the first group that ends behind it."""
    group = torch.searchsorted(ends, torch.arange(12), right=True)
    return torch.einsum("rk,rkn->rn", x, torch.cat([w, torch.zeros(1, 5, 3)])[group])


CHAIN = (("mul", (0, 1), ()), ("gelu", (-1,), (("approximate", "tanh"),)), ("add", (-2, 0), ()))

# op, inputs, attributes, PyTorch
Case = tuple[str, tuple[Array, ...], dict[str, Any], Callable[..., Any]]
CASES: list[Case] = [
    *[(n, (a,), {}, getattr(torch, n)) for n in ("neg", "abs", "sign") for a in (X, SPECIAL, N)],
    *[(n, (a,), {}, getattr(torch, n)) for n in ("floor", "ceil") for a in (3 * X, SPECIAL)],
    *[(n, (3 * X,), {}, getattr(torch, n)) for n in ("exp", "sin", "cos", "tanh", "sigmoid", "erf")],
    *[(n, (abs(X),), {}, getattr(torch, n)) for n in ("log", "rsqrt")],
    (
        "sqrt",
        (abs(X),),
        {},
        lambda x: x.double().sqrt().float(),
    ),  # torch's own on floats is not rounded exactly
    *[(n, (SPECIAL,), {}, getattr(torch, n)) for n in ("exp", "log", "sqrt", "tanh", "sigmoid", "erf")],
    ("relu", (SPECIAL,), {}, torch.relu),
    ("relu", (N,), {}, torch.relu),
    ("silu", (X,), {}, F.silu),
    ("gelu", (3 * X,), {}, F.gelu),
    ("gelu", (3 * X,), {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    ("not", (B,), {}, torch.logical_not),
    ("cast", (5 * X,), {"dtype": "i32"}, lambda x: x.to(torch.int32)),
    ("cast", (SPECIAL,), {"dtype": "bool"}, lambda x: x.bool()),
    ("cast", (B,), {"dtype": "f32"}, lambda x: x.float()),
    ("cast", (X,), {"dtype": "f16"}, lambda x: x.half()),
    ("cast", (N,), {"dtype": "u8"}, lambda x: x.to(torch.uint8)),
    *[(n, (X, Y), {}, getattr(torch, n)) for n in ("add", "sub", "mul", "div", "maximum", "minimum")],
    *[(n, (N, M), {}, getattr(torch, n)) for n in ("add", "sub", "mul", "maximum", "minimum")],
    *[(n, (SPECIAL, SPECIAL[::-1].copy()), {}, getattr(torch, n)) for n in ("add", "mul", "div", "maximum")],
    ("add", (integers(9, low=90, high=127, dtype="i8"),) * 2, {}, torch.add),
    ("pow", (abs(X), Y), {}, torch.pow),
    ("floordiv", (N, M), {}, torch.floor_divide),
    ("floordiv", (5 * X, Y), {}, torch.floor_divide),
    ("mod", (N, M), {}, torch.remainder),
    ("mod", (5 * X, Y), {}, torch.remainder),
    *[(n, (N, M), {}, getattr(torch, n)) for n in ("eq", "ne", "lt", "le", "gt", "ge")],
    *[(n, (SPECIAL, SPECIAL), {}, getattr(torch, n)) for n in ("eq", "ne", "lt", "le", "gt", "ge")],
    *[(n, (B, C), {}, getattr(torch, f"logical_{n}")) for n in ("and", "or", "xor")],
    ("where", (B, floats(4), floats(3, 1)), {}, torch.where),
    ("chain", (X, Y), {"body": CHAIN}, lambda x, y: F.gelu(x * y, approximate="tanh") + x),
    ("chain", (X, Y), {"body": CHAIN[:2]}, lambda x, y: F.gelu(x * y, approximate="tanh")),
    ("reshape", (X,), {"shape": (5, 12)}, lambda x: x.reshape(5, 12)),
    ("transpose", (X,), {"perm": (2, 0, 1)}, lambda x: x.permute(2, 0, 1)),
    ("expand", (Y,), {"shape": (3, 4, 5)}, lambda y: y.expand(3, 4, 5)),
    ("slice", (X,), {"axis": 2, "start": 1, "stop": 4, "step": 2}, lambda x: x[:, :, 1:4:2]),
    ("slice", (X,), {"axis": 1, "start": 2, "stop": 2}, lambda x: x[:, 2:2]),
    ("concat", (X, floats(3, 2, 5)), {"axis": 1}, lambda *a: torch.cat(a, 1)),
    (
        "pad",
        (X,),
        {"before": (0, 1, 2), "after": (0, 0, 3), "value": -1.5},
        lambda x: F.pad(x, (2, 3, 1, 0), value=-1.5),
    ),
    ("gather", (X, integers(3, 4, 8, low=0, high=5)), {"axis": 2}, lambda x, i: torch.gather(x, 2, i)),
    ("embedding", (TABLE, IDS), {}, lambda t, i: F.embedding(i, t)),
    ("iota", (), {"length": 6, "start": 3, "step": -2}, lambda: torch.arange(3, -9, -2)),
    ("iota", (), {"length": 4, "dtype": "f32"}, lambda: torch.arange(4.0)),
    ("full", (), {"shape": (2, 3), "value": 1.5, "dtype": "f32"}, lambda: torch.full((2, 3), 1.5)),
    ("dim", (), {"value": 5}, lambda: torch.tensor(5)),
    ("constant", (), {"value": Weight(X)}, lambda: torch.from_numpy(X)),
    *[
        (n, (X,), {"axes": (0, 2), "keepdims": k}, lambda x, f=f, k=k: f(x, dim=(0, 2), keepdim=k))
        for n, f in (("sum", torch.sum), ("mean", torch.mean), ("max", torch.amax), ("min", torch.amin))
        for k in (True, False)
    ],
    ("sum", (N,), {"axes": (1,)}, lambda x: x.sum(1)),
    ("max", (SPECIAL,), {"axes": (0,)}, lambda x: x.amax(0)),
    ("any", (B,), {"axes": (1,)}, lambda x: x.any(1)),
    ("all", (B,), {"axes": (0,), "keepdims": True}, lambda x: x.all(0, keepdim=True)),
    ("argmax", (X,), {"axis": 1}, lambda x: x.argmax(1)),
    ("argmax", (np.array([[1, 7, 7, 2]]),), {"axis": 1, "keepdims": True}, lambda x: torch.tensor([[1]])),
    ("cumsum", (X,), {"axis": 1}, lambda x: x.cumsum(1)),
    ("cumsum", (N,), {"axis": 0}, lambda x: x.cumsum(0)),
    ("softmax", (5 * X,), {"axis": 1}, lambda x: x.softmax(1)),
    ("softmax", (np.full((2, 3), -np.inf, np.float32),), {"axis": 1}, lambda x: x.softmax(1)),
    ("log_softmax", (5 * X,), {"axis": 2}, lambda x: x.log_softmax(2)),
    ("layer_norm", (X, floats(5), floats(5)), {"eps": 1e-3}, norm),
    ("layer_norm", (X, BIAS[:5]), {"eps": 1e-3, "has_bias": False}, norm),
    ("layer_norm", (X, BIAS[:5]), {"eps": 1e-3, "has_weight": False}, lambda x, b: norm(x, None, b)),
    ("layer_norm", (X,), {"eps": 1e-3, "has_weight": False, "has_bias": False}, norm),
    ("rms_norm", (X, floats(5)), {"eps": 1e-3}, lambda x, w: F.rms_norm(x, (5,), w, 1e-3)),
    ("linear", (X, W), {}, F.linear),
    ("linear", (X, W, BIAS), {"epilogue": ("bias",)}, F.linear),
    *[
        ("linear", (X, W, BIAS), {"epilogue": ("bias", n)}, lambda *a, f=f: f(F.linear(*a)))
        for n, f in (
            ("gelu", F.gelu),
            ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
            ("relu", F.relu),
            ("tanh", torch.tanh),
            ("silu", F.silu),
            ("sigmoid", torch.sigmoid),
        )
    ],
    (
        "linear",
        (X, W, RES, BIAS),
        {"epilogue": ("residual", "relu", "bias")},
        lambda x, w, r, b: F.relu(F.linear(x, w) + r) + b,
    ),
    ("linear", (X, W.astype(np.float16)), {}, lambda x, w: F.linear(x, w.float())),
    ("row_scale", (X,), {}, row_scale),
    ("row_scale", (np.zeros((2, 3), np.float32),), {}, lambda x: torch.ones(2, 1)),
    *[("quantize", (99 * X, s), {}, round_by) for s in (S8, np.float32([0.5]), abs(floats(5)))],
    ("dequantize", (Q8, S8), {}, lambda q, s: q * s),
    ("quantize_rows", (X,), {}, lambda x: packed(round_by(x, row_scale(x)), row_scale(x))),
    (
        "quantize_rows",
        (99 * X, np.array(0.5, np.float32)),
        {"has_scale": True},
        lambda x, s: packed(round_by(x, s), s.reshape(1)),
    ),
    ("dequantize_rows", (ROWS,), {"size": 5}, lambda rows: torch.from_numpy(Q8 * S8)),
    ("qlinear", (ROWS, W8, WS), {}, qlinear),
    ("qlinear", (ROWS, W8, WS, BIAS), {"epilogue": ("bias",)}, qlinear),
    ("split_rows", (X,), {}, in_parts),
    ("split_linear", (SPLIT_ROWS, *SPLIT_W), {}, split_linear),
    (
        "split_linear",
        (SPLIT_ROWS, *SPLIT_W, RES, BIAS),
        {"epilogue": ("residual", "gelu", "bias")},
        lambda rows, w, ws, r, b: F.gelu(split_linear(rows, w, ws) + r) + b,
    ),
    (
        "qlinear",
        (ROWS, W8, WS, RES, BIAS),
        {"epilogue": ("residual", "gelu", "bias")},
        lambda rows, w, ws, r, b: F.gelu(qlinear(rows, w, ws) + r) + b,
    ),
    (
        "embed_norm",
        (ROWS[0, :, :32], integers(2, 3, low=0, high=4), floats(5), floats(5)),
        {"eps": 1e-3, "tables": 1},
        lambda t, i, *p: norm(F.embedding(i, torch.from_numpy(Q8[0] * S8[0])), *p),
    ),
    ("matmul", (floats(2, 1, 3, 4), floats(5, 4, 6)), {}, torch.matmul),
    ("attention", (Q, K, V), {"scale": 0.3}, sdpa),
    ("attention", (Q, K, V), {"scale": 0.3, "causal": True}, lambda q, k, v: sdpa(q, k, v, causal=True)),
    (
        "attention",
        (Q, K, V),
        {"scale": 0.3, "causal": True, "window": 2},
        lambda q, k, v: sdpa(q, k, v, causal=True, window=2),
    ),
    ("attention", (Q, K, V, KEEP), {"scale": 0.3, "has_mask": True}, sdpa),
    ("attention", (Q, K, V, ADD), {"scale": 0.3, "has_mask": True}, sdpa),
    (
        "mha",
        (P, R, R, KEYS, PB),
        {"heads": 3, "head_dim": 4, "scale": 0.3, "offsets": (2, 3, 20), "has_keys": True, "has_bias": True},
        mha,
    ),
    (
        "mha",
        (P, P, P),
        {"heads": 2, "head_dim": 5, "scale": 0.3, "causal": True, "offsets": (0, 10, 20)},
        lambda q, k, v: (
            sdpa(
                *(
                    x[..., o : o + 10].unflatten(-1, (2, 5)).transpose(1, 2)
                    for x, o in ((q, 0), (k, 10), (v, 20))
                ),
                causal=True,
            )
            .transpose(1, 2)
            .flatten(2)
        ),
    ),
    ("pack_index", (HOLES,), {"tokens": symbol("tokens")}, lambda m: torch.tensor([*INDEX, 10, 11])),
    (
        "pack_offsets",
        (HOLES,),
        {},
        lambda m: torch.tensor([0, 2, 5, 7, 10]),
    ),  # a row without tokens is kept whole
    ("pack_places", (HOLES,), {}, lambda m: torch.tensor(PLACES)),
    (
        "unpack_rows",
        (floats(8, 5), np.array(PLACES)),
        {},
        lambda x, at: torch.where((at >= 0)[..., None], x[at.clamp(min=0)], 0),
    ),
    ("ragged_mha", RAGGED, HEADS, ragged_mha),
    ("ragged_mha", (*RAGGED, PB[..., :3]), {**HEADS, "has_bias": True}, ragged_mha),
    ("add_norm", (X, floats(3, 4, 5), floats(5), floats(5)), {"eps": 1e-3}, lambda x, r, *p: norm(x + r, *p)),
    (
        "embed_norm",
        (TABLE, IDS, floats(4, 6), integers(1, 3, low=0, high=4), floats(6), floats(6)),
        {"eps": 1e-3, "tables": 2},
        lambda t, i, u, j, *p: norm(F.embedding(i, t) + F.embedding(j, u), *p),
    ),
    ("codebook", (BYTES, floats(200)), {"columns": 5}, lambda i, v: v[i.long().clamp(max=199)]),
    ("codebook", (BYTES, floats(16)), {"columns": 9, "bits": 4}, lambda i, v: v[halves(i)[..., :9]]),
    (
        "conv2d",
        (floats(2, 4, 7, 6), floats(6, 2, 3, 2), floats(6)),
        {"stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2), "groups": 2, "epilogue": ("bias",)},
        lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 1, 2)), w, b, (2, 1), 0, (1, 2), 2),
    ),
    (
        "max_pool2d",
        (floats(2, 4, 7, 6),),
        {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0, 0, 1), "dilation": (1, 2)},
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 1, 0), value=-torch.inf), (3, 2), (2, 1), 0, (1, 2)),
    ),
    (
        "avg_pool2d",
        (floats(2, 4, 7, 6),),
        {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0, 0, 1)},
        lambda x: F.avg_pool2d(F.pad(x, (0, 1, 1, 0)), (3, 2), (2, 1)),
    ),
    ("gru_cell", (GATES[:, :18], STATE, CELL_W[:18], BIAS[:6]), {}, gru_step),
    ("append", (X, X[:1]), {}, lambda state, new: torch.cat((state, new))),
    ("append", (X[:0], X), {}, lambda state, new: new),
    ("bitmask", (BYTES[0], floats(int(MASK[:, :37].sum()))), {"columns": 37}, spread),
    *[(n, (N, M), {}, getattr(torch, f"{n[:3]}wise_{n[3:]}")) for n in ("bitand", "bitor", "bitxor")],
    ("prod", (X,), {"axes": (1,), "keepdims": True}, lambda x: x.prod(1, keepdim=True)),
    ("prod", (N,), {"axes": (1,)}, lambda x: x.prod(1)),
    *[
        ("argsort", (x,), {"count": n, "descending": d}, lambda x, n=n, d=d: first_of(x, n, d))
        for x, n in ((TIES, 9), (TIES, 4), (X, 2), (HOLED, 16), (HOLED, 5))
        for d in (False, True)
    ],
    ("scatter", (X, HERE[:, :1], PUT[:, :1]), {"axis": 1}, lambda x, i, u: x.scatter(1, i, u)),
    ("scatter", (X, np.array([2, 0]), PUT[:, :2]), {"axis": 1}, lambda x, i, u: x.index_copy(1, i, u)),
    *[
        (
            "scatter",
            (X, HERE, PUT),
            {"axis": 1, "reduce": r},
            lambda x, i, u, f=f: x.scatter_reduce(1, i, u, f),
        )
        for r, f in (("add", "sum"), ("mul", "prod"), ("max", "amax"), ("min", "amin"))
    ],
    (
        "scatter",
        (X, np.array([3, 1, 3]), PUT[:, :3]),
        {"axis": 1, "reduce": "add"},
        lambda x, i, u: x.index_add(1, i, u),
    ),
    ("grouped_matmul", (ROWS_OF, EXPERTS, np.array([3, 3, 7, 10])), {}, by_group),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def test_reference_agrees_with_torch(case: Case):
    op, arrays, attributes, formulation = case
    found = apply(op, *arrays, **attributes)
    expected = formulation(*(torch.from_numpy(a) for a in arrays)).numpy()
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if OPS[op].accuracy == "exact":
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_lstm_cell_agrees_with_torch():
    found = OPS["lstm_cell"].reference(GATES, STATE, MEMORY, CELL_W)
    tensors = [torch.from_numpy(a) for a in (GATES, STATE, MEMORY, CELL_W)]
    x, h, c, w = tensors
    expected = torch._VF.lstm_cell(x, (h, c), torch.eye(24), w, torch.zeros(24), torch.zeros(24))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=2e-5, atol=2e-6)


def test_every_op_is_compared():
    elsewhere = {"input", "state", "lstm_cell", "loop", "branch", "result"}  # the last three: test_control.py
    assert {c[0] for c in CASES} | elsewhere == set(OPS)
