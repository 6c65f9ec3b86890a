"""`prune` by patterns: blocks of outputs, N of M; what an importance that is no magnitude leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.passes import PASSES
from llmc.passes.compress.prune import Pattern, kept
from llmc.passes.compress.weights import values


def product(n: int, k: int, seed: int = 0) -> Graph:
    x = input_("x", "f32", (symbol("batch"), k))
    w = constant(np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32), "w")
    return Graph((x,), {"y": make("linear", (x, w))}, {"batch": (1, 8)})


def run(text: str, graph: Graph) -> Graph:
    return Pipeline.parse(text, PASSES).run(graph)[0]


def weight(graph: Graph) -> np.ndarray[Any, Any]:
    found = values(graph.outputs["y"].inputs[1])
    assert found is not None
    return found


def test_one_of_four():
    new = weight(run('prune{pattern="1:4"}', product(64, 96)))
    assert ((new.reshape(64, 24, 4) != 0).sum(-1) == 1).all()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_blocks_of_outputs(scope):
    before = product(64, 96)
    new = weight(run(f'prune{{pattern="4x1",sparsity=0.75,scope={scope}}}', before))
    old = weight(before)
    blocks = (new.reshape(16, 4, 96) != 0).sum(1)
    assert set(np.unique(blocks)) == {0, 4}
    assert (blocks == 4).sum() == 16 * 96 // 4
    norms = np.square(old, dtype=np.float64).reshape(16, 4, 96).sum(1)
    assert norms[blocks == 4].min() >= norms[blocks == 0].max()


def test_kept_by_any_importance():
    importance = np.ones((8, 8), np.float32)
    importance[4:, :2] = 2
    for text, share in (("4x1", 7 / 8), ("unstructured", 7 / 8)):
        (keep,) = kept([importance], Pattern.parse(text), share)
        assert np.array_equal(keep, importance == 2), text
