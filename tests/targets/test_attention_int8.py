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
EDGES = [(1, 1), (2, 65), (16, 63), (17, 64), (63, 17), (64, 128), (65, 3), (31, 130)]  # queries, keys
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
