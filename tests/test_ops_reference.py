"""Every op's NumPy reference against an independent formulation, PyTorch's where it has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from op_cases import PRODUCTS, Case
from op_formulations import (
    BIAS,
    CELL_W,
    CHAIN,
    GATES,
    IDS,
    MEMORY,
    SPECIAL,
    STATE,
    TABLE,
    B,
    C,
    M,
    N,
    X,
    Y,
    floats,
    half_turned,
    integers,
    norm,
    pairs_turned,
)
from op_values import apply

from llmc.compiler.graph import Weight
from llmc.compiler.ops import OPS

torch.set_num_threads(1)
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
    ("ensure_shape", (X,), {"shape": (3, 4, 5)}, lambda x: x),
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
    ("rotary", (X, floats(4, 4), floats(4)), {}, half_turned),
    ("rotary", (X, floats(4, 4), floats(4)), {"interleaved": True}, pairs_turned),
    *PRODUCTS,
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


def test_references_do_not_mind_how_arrays_lie():
    """A transposed array, as another reference may give it, is what its numbers are."""
    for op, arrays, attributes, _ in CASES:
        wanted = apply(op, *arrays, **attributes)
        found = apply(op, *(np.asfortranarray(a) if a.ndim > 1 else a for a in arrays), **attributes)
        assert found.shape == wanted.shape
        if OPS[op].accuracy == "exact":
            np.testing.assert_array_equal(found, wanted, err_msg=op)
        else:
            np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6, err_msg=op)


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


@pytest.mark.parametrize(
    ("rows", "columns", "depth"), [(1, 3, 5), (50, 1100, 70), (40, 900, 200), (0, 4, 5), (3, 2, 0)]
)
def test_products_by_blocks_and_threads_are_products(rows: int, columns: int, depth: int) -> None:
    """Weights are widened a block at a time, and the rows that read it come a few at a time."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((2, rows, depth)).astype(np.float32)
    w = rng.standard_normal((columns, depth)).astype(np.float32)
    found = OPS["linear"].reference(x, w, epilogue=())
    wanted = x.astype(np.float64) @ w.astype(np.float64).T
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-12)
