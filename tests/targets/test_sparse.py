"""Products that skip zero blocks have the bits of the dense product, at the edges of tiles, panels and lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, run_all, same_bits

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.targets.cpu.products import sparse

ROWS = (1, 2, 4, 5, 8, 9, 16, 17, 33, 64, 65, 150)


def weight(n: int, k: int, height: int, share: float) -> Node:
    """Blocks of which `share` are zero, many more in the first rows than in the last: lists differ in length."""
    rng = np.random.default_rng(n + k)
    bound = share * np.linspace(1.5, 0.5, n // height)[:, None] if 0 < share < 1 else share
    keep = rng.random((n // height, k)) >= bound
    values = rng.normal(size=int(keep.sum()) * height).astype(np.float32)
    parts = (constant(np.packbits(keep, -1, bitorder="little"), "m"), constant(values, "v"))
    return make("bitmask", parts, columns=k, height=height)


def decoded(node: Node) -> np.ndarray[Any, Any]:
    arrays = [i.attributes["value"].array for i in node.inputs]
    return np.asarray(OPS[node.op].reference(*arrays, **node.attributes))


CASES = [
    *((4, *case) for case in ((4, 7, 0.5), (100, 64, 0.8), (64, 33, 0.0), (48, 20, 1.0), (16, 9000, 0.9))),
    *((16, *case) for case in ((16, 7, 0.5), (112, 64, 0.8), (64, 33, 0.0), (48, 20, 1.0))),
]


@pytest.mark.parametrize(("height", "n", "k", "share"), CASES)
def test_the_bits_of_the_dense_product(kernels: Lab, height: int, n: int, k: int, share: float) -> None:
    rng = np.random.default_rng(k)
    w, bias = weight(n, k, height, share), constant(rng.normal(size=n).astype(np.float32))
    x, r = input_("x", "f32", (symbol("m"), k)), input_("r", "f32", (symbol("m"), n))
    outputs = {
        name: make("linear", (x, array, bias, r), epilogue=("bias", "gelu", "residual"))
        for name, array in (("sparse", w), ("dense", constant(decoded(w))))
    }
    assert kernels.call_of(outputs["sparse"]).kernel.family == "linear_sparse"
    graph = Graph((x, r), outputs, {"m": (1, 999)})
    for rows in ROWS:
        given = {
            "x": rng.normal(size=(rows, k)).astype(np.float32),
            "r": rng.normal(size=(rows, n)).astype(np.float32),
        }
        results = run_all(kernels, graph, given)
        assert same_bits(results["sparse"], results["dense"]), rows


@pytest.mark.parametrize("height", sparse.HEIGHTS)
def test_no_zero_is_read(kernels: Lab, height: int) -> None:
    """What is infinite stays with the outputs that read it: the dense product makes NaN of it everywhere."""
    array = decoded(weight(112, 64, height, 0.8))
    x = input_("x", "f32", (symbol("m"), 64))
    graph = Graph((x,), {"y": make("linear", (x, weight(112, 64, height, 0.8)))}, {"m": (1, 99)})
    for rows in (1, 4, 20):
        given = np.ones((rows, 64), np.float32)
        given[:, 3] = np.inf
        (y,) = run_all(kernels, graph, {"x": given}).values()
        reads = np.broadcast_to(array[:, 3] != 0, y.shape)
        assert np.array_equal(np.isfinite(y), ~reads)


@pytest.mark.parametrize("height", sparse.HEIGHTS)
def test_the_layout_is_the_weight(height: int) -> None:
    array = decoded(weight(5 * height, 21, height, 0.6))
    heads = sparse.heads(array, height=height).reshape(-1, 1 + 2 * sparse.LISTS)
    inputs = sparse.places(array, height=height).view("<u2").reshape(-1, sparse.LISTS)
    values = sparse.blocks(array, height=height)
    found = np.zeros_like(array)
    for start, *numbers in heads[:-1]:
        for i, (count, row) in enumerate(zip(numbers[:4], numbers[4:], strict=True)):
            steps = range(start, start + count)
            assert list(inputs[steps, i]) == sorted(set(inputs[steps, i]))
            for step in steps:
                at = (step * sparse.LISTS + i) * height
                found[row * height : (row + 1) * height, inputs[step, i]] = values[at : at + height]
    assert np.array_equal(found, array)
    assert heads[:-1, 1].tolist() == sorted(heads[:-1, 1], reverse=True)


def test_other_heights_and_long_rows_are_decoded(kernels: Lab) -> None:
    x = input_("x", "f32", (symbol("m"), 12))
    node = make("linear", (x, weight(24, 12, 8, 0.5)))
    assert kernels.call_of(node).kernel.family == "linear_decoded"
    w = decoded(node.inputs[1])
    given = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    (y,) = run_all(kernels, Graph((x,), {"y": node}, {"m": (1, 9)}), {"x": given}).values()
    np.testing.assert_allclose(y, given @ w.T, rtol=1e-5, atol=1e-5)


def test_rows_by_themselves(kernels: Lab) -> None:
    """What no product reads is decoded on its own."""
    for height in (1, 4):
        node = weight(24, 21, height, 0.6)
        graph = Graph((), {"w": node}, {})
        assert same_bits(kernels.run(graph, {})["w"], decoded(node))
