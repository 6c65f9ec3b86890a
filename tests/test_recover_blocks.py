"""Blocks of zeros in training: whole ones, from what `reconstruct` leaves."""

from __future__ import annotations

import numpy as np
import pytest
import recovering
import torch
from built_folders import built

from llmc.distillation import Example, Examples
from llmc.masks import Masks, graph_of, prune_of

BLOCKS = [("4x1:0.8", 4, 1), ("16x4:0.8", 16, 4)]


@pytest.mark.parametrize(("spec", "height", "width"), BLOCKS)
def test_whole_blocks_go_on_the_way(tmp_path, spec, height, width):
    folder = recovering.bert(tmp_path / "bert")
    masks = Masks(prune_of(spec), built(folder), graph_of(folder, "text-classification"))
    for keep in masks.at(0.4).values():
        blocks = keep.reshape(len(keep) // height, height, -1, width).transpose(1, 2).flatten(2)
        assert torch.equal(blocks.any(2), blocks.all(2))
        assert abs(float((~keep).float().mean()) - 0.32) < 0.05


@pytest.mark.parametrize("spec", [spec for spec, *_ in BLOCKS])
def test_training_begins_with_what_reconstruct_leaves(tmp_path, spec):
    folder = recovering.bert(tmp_path / "bert")
    graph = graph_of(folder, "text-classification")
    masks, rng = Masks(prune_of(spec), built(folder), graph), np.random.default_rng(0)
    before = {name: p.detach().clone() for name, p in masks.weights.items()}
    samples = [
        {name.attributes["name"]: rng.integers(0, 2, (1, 12)) for name in graph.inputs} for _ in range(30)
    ]
    assert masks.by_samples
    assert not Masks(prune_of('pattern="4x1",scope="global"'), built(folder), graph).by_samples
    masks.reconstruct(samples)
    keep = masks.at()
    for name, weight in masks.weights.items():
        assert torch.equal(weight != 0, keep[name]), name
        assert not torch.equal(weight[keep[name]], before[name][keep[name]]), "what stays is changed"


def test_samples_end_with_the_tokens_asked_for():
    rows = [Example([1] * 5, [0] * 5, 0.0)] * 9
    found = list(Examples(rows, ("input_ids", "attention_mask"), 0, "softmax").samples(12))
    assert [sample["input_ids"].shape for sample in found] == [(1, 5)] * 3


def test_a_language_model_begins_with_it_as_well(tmp_path):
    """Its graph has no mask, and asks which logits are wanted."""
    folder = recovering.llama(tmp_path / "llama")
    masks = Masks(prune_of("4x1:0.8"), built(folder), graph_of(folder, "text-generation"))
    rng = np.random.default_rng(0)
    rows = [Example(rng.integers(5, 4000, 16).tolist(), [0] * 16) for _ in range(12)]
    before = {name: p.detach().clone() for name, p in masks.weights.items()}
    masks.reconstruct(Examples(rows, ("input_ids", "attention_mask"), 0, "tokens").samples(150))
    assert all(not torch.equal(p, before[name]) for name, p in masks.weights.items())
