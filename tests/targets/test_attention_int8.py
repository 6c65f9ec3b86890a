"""Attention on int8: every variant has the bits of the reference, at the edges of blocks and of tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, run_all, same_bits

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import OPS, input_, make

B, S, T = symbol("batch"), symbol("seq"), symbol("keys")
EDGES = [(1, 1), (2, 65), (16, 63), (17, 64), (63, 17), (64, 128), (65, 3), (31, 130), (130, 31), (193, 70)]
Array = np.ndarray[Any, Any]


def run(lab: Lab, q: Array, k: Array, v: Array, keys: Array | None = None, **attributes: Any) -> Array:
    """On all variants and cuts; bit for bit as the reference."""
    width = q.shape[2]
    nodes = [
        input_("q", "f32", (B, S, width)),
        *(input_(n, "f32", (B, T, x.shape[2])) for n, x in zip("kv", (k, v), strict=True)),
    ]
    given = {"q": q, "k": k, "v": v}
    if keys is not None:
        nodes.append(input_("flags", "bool", (B, T)))
        given["flags"] = keys
    node = make("mha", tuple(nodes), scale=0.21, has_keys=keys is not None, int8=True, **attributes)
    found = run_all(lab, Graph(tuple(nodes), {"y": node}), given)["y"]
    expected = OPS["mha"].reference(*given.values(), **node.attributes)
    wrong = np.argwhere((found != expected) & ~(np.isnan(found) & np.isnan(expected)))
    assert same_bits(found, expected), (wrong[:4].tolist(), len(wrong), found.size)
    return found


def floats(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.standard_normal(shape) * rng.uniform(0.1, 3, shape[-1])).astype(np.float32)


@pytest.mark.parametrize(("queries", "keys"), EDGES)
@pytest.mark.parametrize("flags", [False, True])
def test_edges_of_blocks(queries: int, keys: int, flags: bool, kernels: Lab) -> None:
    rng = np.random.default_rng(queries + keys)
    given = [floats(rng, 2, length, 96) for length in (queries, keys, keys)]
    mask = rng.random((2, keys)) < 0.7 if flags else None
    run(kernels, *given, mask, heads=3, head_dim=32)


@pytest.mark.parametrize("size", [16, 48, 64, 96, 128])
def test_sizes_of_heads(size: int, kernels: Lab) -> None:
    rng = np.random.default_rng(size)
    given = [floats(rng, 2, length, 2 * size) for length in (33, 70, 70)]
    run(kernels, *given, heads=2, head_dim=size)


def test_many_blocks(kernels: Lab) -> None:
    """More keys than those whose levels are kept from one block of queries to the next; heads that share keys."""
    rng = np.random.default_rng(5)
    given = [floats(rng, 1, 600, 64), floats(rng, 1, 600, 32), floats(rng, 1, 600, 32)]
    run(kernels, *given, rng.random((1, 600)) < 0.8, heads=2, head_dim=32, kv_heads=1)


def test_near_attention_in_float(kernels: Lab) -> None:
    rng = np.random.default_rng(6)
    given = [floats(rng, 2, length, 64) for length in (40, 90, 90)]
    found = run(kernels, *given, heads=2, head_dim=32)
    exact = OPS["mha"].complete({"heads": 2, "head_dim": 32, "scale": 0.21})
    expected = OPS["mha"].reference(*given, **exact)
    assert 0 < np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize("case", ["zeros", "tiny", "large", "one key", "no key", "equal"])
def test_unusual_values(case: str, kernels: Lab) -> None:
    rng = np.random.default_rng(7)
    q, k, v = (floats(rng, 2, length, 32) for length in (5, 67, 67))
    keys = np.ones((2, 67), np.bool_)
    if case == "zeros":
        q[0, 1], k[0, :, 3], v[1, :, 4] = 0, 0, 0
    elif case in ("tiny", "large"):
        q, k, v = (x * np.float32(1e-38 if case == "tiny" else 1e17) for x in (q, k, v))
    elif case == "one key":
        keys[:, :66] = False
    elif case == "no key":
        keys[1] = False
    else:
        k[:] = k[:, :1]
    found = run(kernels, q, k, v, keys, heads=2, head_dim=16)
    assert np.isfinite(found).all()
    if case == "no key":
        assert not found[1].any()
        even = run(kernels, q, k, v, keys, heads=2, head_dim=16, evenly=True)
        np.testing.assert_array_equal(even[0], found[0])
        np.testing.assert_allclose(even[1], np.tile(v[1].mean(0), (5, 1)), rtol=0, atol=0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float, kernels: Lab) -> None:
    """In a query: that row. In a key: every row of its head. In a value: its feature. In a masked key: none."""
    rng = np.random.default_rng(8)
    given = [floats(rng, 1, 20, 32) for _ in "qkv"]
    keys = np.ones((1, 20), np.bool_)
    keys[0, 7] = False

    def broken(operand: int, token: int, feature: int) -> Array:
        values = [x.copy() for x in given]
        values[operand][0, token, feature] = bad
        return ~np.isfinite(run(kernels, *values, keys, heads=2, head_dim=16)[0])

    assert np.argwhere(broken(0, 3, 18).any(1)).ravel().tolist() == [3]
    assert broken(0, 3, 18)[3].tolist() == [False] * 16 + [True] * 16
    assert broken(1, 2, 5).all(0).tolist() == [True] * 16 + [False] * 16
    assert broken(2, 2, 21).any(0).tolist() == [i == 21 for i in range(32)]
    assert not any(broken(operand, 7, 3).any() for operand in (1, 2))
