"""`prune` by patterns: blocks of outputs, N of M; what an importance that is no magnitude leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.graph import Graph, Source
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.compress.prune import SKIPPING, Pattern, Prune, kept
from llmc.passes.compress.weights import products, values


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


def stored_as(text: str, n: int = 64, k: int = 96) -> tuple[str, dict[str, Any]]:
    node = run(text, product(n, k)).outputs["y"].inputs[1]
    return node.op, dict(node.attributes)


def test_blocks_are_stored_where_products_that_skip_them_are_faster():
    assert stored_as('prune{pattern="4x1"}') == ("bitmask", {"columns": 96, "height": 4})
    assert stored_as('prune{pattern="4x1",sparsity=0.6}')[0] == "constant"
    assert stored_as('prune{pattern="4x1",sparsity=0.6,small=true}') == (
        "bitmask",
        {"columns": 96, "height": 4},
    )
    assert stored_as('prune{pattern="16x1",sparsity=0.5}') == ("bitmask", {"columns": 96, "height": 16})
    assert stored_as('prune{pattern="2:4"}') == ("bitmask", {"columns": 96, "height": 1})


def test_what_is_not_skipped_is_told():
    for share, changed in (("0.8", 1), ("0.6", 0)):
        with listening() as heard:
            Prune(float(share), "4x1").run(product(64, 96))
        weights, skipping = heard
        assert (weights.changed, skipping.what, skipping.changed) == (1, SKIPPING, changed)
    assert skipping.left == {"whose 40% of blocks left take up to 1.33 of a dense product's time": 1}


def test_a_zero_within_a_block_that_stays():
    graph = product(8, 8)
    keep = np.zeros((8, 8), bool)
    keep[1:4, 2] = True  # the first of its four is zero
    (found,) = products(graph)
    left = replace(found, array=np.where(keep, found.array, np.float32(0)))
    after = Prune(pattern="4x1", least=1).with_zeros(graph, [(left, keep)])
    assert after.outputs["y"].inputs[1].op == "bitmask"
    assert np.array_equal(weight(after) != 0, keep)


def test_the_same_zeros_again():
    """What was pruned so already loses nothing more: `llmc recover` holds zeros that a compile finds again."""
    for text in ('prune{pattern="4x1"}', 'prune{pattern="16x1",sparsity=0.75}', 'prune{pattern="1:4"}'):
        once = weight(run(text, product(64, 96)))
        x = input_("x", "f32", (symbol("batch"), 96))
        graph = Graph((x,), {"y": make("linear", (x, constant(once, "w")))}, {"batch": (1, 8)})
        assert np.array_equal(weight(run(text, graph)), once), text


@pytest.mark.parametrize("height", [4, 16])
def test_the_op_in_numpy(height):
    rng = np.random.default_rng(height)
    keep = rng.random((3, 21)) < 0.4
    blocks = rng.normal(size=(int(keep.sum()), height)).astype(np.float32)
    mask = np.packbits(keep, -1, bitorder="little")
    node = make("bitmask", (constant(mask), constant(blocks.reshape(-1))), columns=21, height=height)
    found, number = np.zeros((3 * height, 21), np.float32), iter(blocks)
    for row, column in np.argwhere(keep):
        found[row * height : (row + 1) * height, column] = next(number)
    assert node.shape == found.shape
    assert np.array_equal(values(node), found)


def test_all_that_a_pattern_does_not_divide_is_named():
    shapes = ((10, 8), (8, 8), (6, 8), (9, 8))
    x = input_("x", "f32", (2, 8))
    made = [
        make("linear", (x, constant(np.ones(shape, np.float32), f"w{i}")), Source(f"layer.{i}"), epilogue=())
        for i, shape in enumerate(shapes)
    ]
    graph = Graph((x,), {f"y{i}": y for i, y in enumerate(made)})
    with pytest.raises(LlmcError) as caught:
        run('prune{pattern="4x1",least=1}', graph)
    assert caught.value.at == "layer.0"
    assert caught.value.found == "a weight of [10, 8], and 2 more products that it does not divide"
    assert caught.value.hint == 'leave them out: skip=["layer.0","layer.2","layer.3"]'
    run(f'prune{{pattern="4x1",least=1,{caught.value.hint.split(": ")[1]}}}', graph)
