"""The ops' references where they are delicate: rounding, limits, masks, indices from outside."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from op_values import Array, Random, apply

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.ops import OPS, constant, input_, linear, make
from llmc.compiler.ops.float_steps import fma32
from llmc.compiler.ops.linear import ACTIVATIONS

RANDOM = Random(8)
floats, integers = RANDOM.floats, RANDOM.integers
Q, K, V = floats(2, 4, 3, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 6)
P, R = floats(2, 3, 30), floats(2, 5, 40)


@pytest.mark.parametrize("op", sorted(n for n, o in OPS.items() if o.commutative))
def test_commutative_ops_commute(op: str):
    dtype = "bool" if op in ("and", "or", "xor") else "i32" if op.startswith("bit") else "f32"
    a, b = (make("cast", (constant(x),), dtype=dtype) for x in (floats(4), integers(4, low=0, high=2)))
    graph = Graph((), {"ab": make(op, (a, b)), "ba": make(op, (b, a))})
    result = run(graph, {})
    np.testing.assert_array_equal(result["ab"], result["ba"])


def test_half_precision_stays_half():
    x = floats(8).astype(np.float16)
    for op in ("exp", "tanh", "erf", "sqrt", "silu", "neg"):
        assert apply(op, abs(x)).dtype == np.float16


def test_inexact_references_are_rounded_once():
    x = np.linspace(-4, 4, 4001, dtype=np.float32)
    exact = torch.from_numpy(x.astype(np.float64))
    np.testing.assert_array_equal(apply("erf", x), torch.erf(exact).float().numpy())
    np.testing.assert_allclose(apply("gelu", x), F.gelu(exact).float().numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(apply("exp", x), np.exp(x.astype(np.float64)).astype(np.float32))


def test_a_large_weight_is_multiplied_in_parts(monkeypatch: pytest.MonkeyPatch):
    """By blocks of its columns and of rows, on one thread and on several."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 7)).astype(np.float32), rng.standard_normal((11, 7)).astype(np.float32)
    whole = apply("linear", x, w)
    monkeypatch.setattr(linear, "_BLOCK", 21)
    monkeypatch.setattr(linear, "_ROWS", 4)
    np.testing.assert_allclose(apply("linear", x, w), whole, rtol=1e-6)
    monkeypatch.setattr(linear, "_FEW", 10)
    np.testing.assert_allclose(apply("linear", x, w), whole, rtol=1e-6)


@pytest.mark.parametrize("op", ["gelu", "silu"])
def test_limits_at_minus_infinity(op: str):
    np.testing.assert_array_equal(apply(op, np.array([-np.inf, np.inf], np.float32)), [0.0, np.inf])


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 1, 3, 5), np.bool_), np.full((2, 1, 1, 5), -np.inf, np.float32)]
)
def test_fully_masked_query_gives_zeros(mask: Array):
    mask = mask.copy()
    mask[1] = 1
    found = apply("attention", Q, K, V, mask, scale=0.3, has_mask=True)
    assert (found[0] == 0).all()
    np.testing.assert_allclose(found[1], apply("attention", Q, K, V, scale=0.3)[1], rtol=1e-6)


def test_fully_masked_row_of_mha_gives_zeros():
    keys = np.array([[False] * 5, [True] * 5])
    found = apply("mha", P, R, R, keys, heads=3, head_dim=4, scale=0.3, has_keys=True)
    assert (found[0] == 0).all()
    assert (found[1] != 0).any()


@pytest.mark.parametrize("bias", [False, True])
def test_fully_masked_row_of_mha_takes_values_evenly(bias: bool):
    """As PyTorch does where the mask adds float32's minimum."""
    keys = np.array([[False] * 5, [True] * 5])
    more, low = (floats(1, 3, 3, 5),) if bias else (), np.finfo(np.float32).min
    q, k, v = (torch.from_numpy(x[..., :12]).unflatten(-1, (3, 4)).transpose(1, 2) for x in (P, R, R))
    added = torch.from_numpy(np.where(keys, np.float32(0), low)[:, None, None] + (more[0] if bias else 0))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, added, scale=0.3)
    given = {"heads": 3, "head_dim": 4, "scale": 0.3, "has_keys": True, "has_bias": bias, "evenly": True}
    found = apply("mha", P, R, R, keys, *more, **given)
    np.testing.assert_allclose(found, expected.transpose(1, 2).flatten(2).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("op", ["gather", "embedding"])
def test_indices_are_clamped(op: str):
    index = np.array([-5, 0, 3, 99])
    x = floats(4)
    attributes = {"axis": 0} if op == "gather" else {}
    np.testing.assert_array_equal(apply(op, x, index, **attributes), x[[0, 0, 3, 3]])


def test_the_last_of_several_values_stays():
    values = floats(4)
    for index, left in (([1, 1, -5, 0], [values[3], values[1]]), ([1, 0, 1, 99], [values[1], values[3]])):
        found = apply("scatter", floats(2), np.array(index), values, axis=0)
        np.testing.assert_array_equal(found, left)


def test_ends_of_groups_are_kept_within_the_rows():
    x, w = floats(4, 2), floats(3, 2, 5)
    found = apply("grouped_matmul", x, w, np.array([3, 1, 99], np.int32))
    np.testing.assert_allclose(found, np.concatenate([x[:3] @ w[0], x[3:] @ w[2]]), rtol=1e-5, atol=1e-6)


def test_symbolic_attributes_take_their_sizes():
    seq = symbol("seq")
    x = input_("x", "f32", (seq, 2))
    outputs = {
        "iota": make("iota", (), length=seq, start=seq + 1),
        "dim": make("dim", (), value=2 * seq),
        "full": make("full", (), shape=(seq,), value=3, dtype="i32"),
        "slice": make("slice", (x,), axis=0, start=1, stop=seq, step=2),
        "reshape": make("reshape", (x,), shape=(2 * seq,)),
        "expand": make("expand", (constant(1.0),), shape=(seq, 2)),
    }
    value = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = run(Graph((x,), outputs, {"seq": (2, 9)}), {"x": value})
    np.testing.assert_array_equal(found["iota"], np.arange(6, 11))
    assert found["dim"] == 10
    np.testing.assert_array_equal(found["full"], np.full(5, 3, np.int32))
    np.testing.assert_array_equal(found["slice"], value[1::2])
    np.testing.assert_array_equal(found["reshape"], value.ravel())
    np.testing.assert_array_equal(found["expand"], np.ones((5, 2)))


def test_fused_multiply_add_is_rounded_once():
    """Against the same in rationals: sums that cancel, ties, results that are subnormal or overflow."""
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=400).astype(np.float32) for _ in range(2))
    close = (-a * b * (1 + rng.normal(size=400) * 2.0 ** -rng.integers(0, 40, 400))).astype(np.float32)
    tiny = np.float32(2.0) ** -rng.integers(60, 75, 400).astype(np.float32)
    for x, y, z in ((a, b, close), (a * tiny, b * tiny, close * tiny * tiny), (a, b, np.float32(1e30) * a)):
        found = fma32(x, y, z)
        for one, *terms in zip(found.tolist(), x.tolist(), y.tolist(), z.tolist(), strict=True):
            exact = Fraction(terms[0]) * Fraction(terms[1]) + Fraction(terms[2])
            below, above = (float(np.nextafter(np.float32(one), np.float32(s))) for s in (-np.inf, np.inf))
            error = abs(Fraction(one) - exact)
            assert error <= abs(Fraction(below) - exact)
            assert error <= abs(Fraction(above) - exact)
    big = np.float32(3e38)
    np.testing.assert_array_equal(fma32(big, big, big), np.inf)
    np.testing.assert_array_equal(fma32(big, np.float32(2), -big), big)
    assert np.isnan(fma32(np.float32(np.inf), np.float32(0), big))


def test_layer_norm_of_large_offset_is_stable():
    x = (floats(2, 64) + 1000).astype(np.float32)
    expected = F.layer_norm(torch.from_numpy(x).double(), (64,), eps=1e-12).numpy()
    found = apply("layer_norm", x, eps=1e-12, has_weight=False, has_bias=False)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_gelu_poly_is_near_gelu():
    x = np.linspace(-20, 20, 40001)
    assert 1e-4 < np.abs(ACTIVATIONS["gelu_poly"](x) - ACTIVATIONS["gelu"](x)).max() < 5e-4
    far = np.array([-np.inf, -1e9, 1e9, np.inf, np.nan])
    np.testing.assert_allclose(
        ACTIVATIONS["gelu_poly"](far), [0, 0, 1e9, np.inf, np.nan], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("shape", [None, (3, 1, 1, 11), (1, 4, 9, 11), (9, 11)])
def test_attention_of_many_tokens_is_computed_in_parts(shape, monkeypatch):
    """The scores of an image of 7,000 patches would take gigabytes."""
    from llmc.compiler.ops import attention

    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 4, 9, 8)), rng.normal(size=(3, 2, 11, 8)), rng.normal(size=(3, 2, 11, 5))
    mask = None if shape is None else rng.normal(size=shape)
    whole = attention.attention64(q, k, v, mask, 0.5, False)
    monkeypatch.setattr(attention, "MOST_SCORES", 100)
    np.testing.assert_allclose(attention.attention64(q, k, v, mask, 0.5, False), whole, rtol=1e-12)
