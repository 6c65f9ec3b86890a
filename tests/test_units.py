"""`llmc recover --prune heads:F --prune neurons:F`: what is zero in the folder is what `--prune` then takes away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recovering
import torch
from built_folders import built
from recovering import SETTINGS, weights

from llmc.compiler import interpret
from llmc.compiler.frontends.folder import inspect
from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pipeline
from llmc.distillation import Columns, examples_of
from llmc.errors import LlmcError
from llmc.masks import graph_of, hold
from llmc.passes import PASSES
from llmc.passes.compress import shortcuts
from llmc.recover import recover
from llmc.units import Units, changes_of, importance

BOTH = ("heads:0.25", "neurons:0.4")
GIVEN = {
    "input_ids": np.array([[2, 7, 9, 3]]),
    "attention_mask": np.ones((1, 4), np.int64),
    "token_type_ids": np.zeros((1, 4), np.int64),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return recovering.labelled(tmp_path / "train.jsonl")


def pruned(graph: Graph, specs: Sequence[str]) -> Graph:
    """As a compile leaves it."""
    return Pipeline.parse(shortcuts.compression(specs), PASSES).run(graph)[0]


def sizes(graph: Graph) -> tuple[list[int], list[int]]:
    """Heads of each attention, and the outputs of each product."""
    heads = [n.attributes["heads"] for n in graph.nodes if n.op == "mha"]
    return heads, sorted(int(n.shape[-1]) for n in graph.nodes if n.op == "linear")


def logits(graph: Graph) -> Any:
    (found,) = interpret.run(
        graph, {node.attributes["name"]: GIVEN[node.attributes["name"]] for node in graph.inputs}
    ).values()
    return found


@pytest.mark.parametrize("way", ["gradients", "magnitude"])
@pytest.mark.parametrize("specs", [BOTH, ("heads:0.5",), ("neurons:0.3",)])
def test_prune_takes_away_what_is_zero(tmp_path, data, specs, way):
    model = recovering.bert(tmp_path / "bert")
    done = recover(model, data, tmp_path / "out", replace(SETTINGS, prune=specs, importance=way))
    graph = graph_of(tmp_path / "out", "text-classification")
    less = pruned(graph, specs)
    assert sizes(less) == sizes(pruned(graph_of(model, "text-classification"), specs)) != sizes(graph)
    assert np.abs(logits(less) - logits(graph)).max() < 1e-5, "only zeros went"
    assert 0 < done.zeros < done.weights
    before, after = weights(model), weights(tmp_path / "out")
    assert all(value.shape == before[name].shape for name, value in after.items())
    bias = "bert.encoder.layer.0.output.dense.bias"
    assert after[bias].all(), "what reads units keeps its bias"


@pytest.mark.parametrize("make", [recovering.llama, recovering.gpt2])
def test_language_models(tmp_path, make):
    """Their heads stay, as they keep keys and values."""
    model, data = make(tmp_path / "lm"), recovering.texts(tmp_path / "book.txt")
    done = recover(model, data, tmp_path / "out", replace(SETTINGS, prune="neurons:0.4"))
    assert done.recovered.perplexity < done.compressed.perplexity
    inner = {"llama": "mlp.up_proj", "gpt2": "mlp.c_fc"}[make.__name__]
    for name, value in weights(tmp_path / "out").items():
        if inner in name and name.endswith("weight"):
            rows = value if make is recovering.llama else value.T
            assert int((rows == 0).all(1).sum()) == rows.shape[0] - -(-round(0.6 * rows.shape[0]) // 16) * 16
    graph = graph_of(tmp_path / "out", "text-generation")
    assert sizes(pruned(graph, ["neurons:0.4"])) != sizes(graph)


def test_zeros_grow_and_what_is_zero_is_not_missed(tmp_path):
    """Held in PyTorch and taken from the graph are the same model."""
    folder = recovering.bert(tmp_path / "model")
    model, graph = built(folder), graph_of(folder, "text-classification")
    units = Units(changes_of(BOTH), model, graph)
    before = 0
    for share in (0.0, 0.4, 1.0):
        dropped = sum(int((~mask).sum()) for mask in units.at(share).values())
        assert dropped > before or share == 0
        before = dropped
    hold(units.weights, units.at())
    with torch.no_grad():
        found = model(**{name: torch.from_numpy(value) for name, value in GIVEN.items()}).logits.numpy()
    assert np.abs(found - logits(pruned(graph, BOTH))).max() < 1e-5, "magnitudes are those of the passes"


def test_gradients_find_what_magnitude_does_not(tmp_path, data):
    """A head that writes much, which nobody asks: what reads it turns with the norm's sum and cancels."""
    folder = recovering.bert(tmp_path / "model")
    model = built(folder)
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        layer.attention.output.dense.weight[:, :16] = 10.0  # the same to all features: the norm takes it off
        layer.intermediate.dense.weight[5] *= 30
        layer.intermediate.dense.bias[5] = -1e4  # never active
    graph = graph_of(folder, "text-classification")
    units = Units(changes_of(BOTH), built(folder), graph)
    examples, _ = examples_of(inspect(folder), model, data, Columns(), 16, 0)
    found = importance(units, model, examples, 8)
    heads = found["bert.encoder.layer.1.attention.output.dense.weight"]
    neurons = found["bert.encoder.layer.1.output.dense.weight"]
    assert len(heads) == 4
    assert len(neurons) == 128
    assert heads.argmin() == 0
    assert neurons[5] == 0
    units.rank(found)
    kept = {group.read[0].name: kept for group, kept in units.kept()}
    assert 0 not in kept["bert.encoder.layer.1.attention.output.dense.weight"]
    assert 5 not in kept["bert.encoder.layer.1.output.dense.weight"]
    assert all(weight.grad is None for weight in model.parameters())


def test_gradients_without_labels_and_of_numbers(tmp_path):
    for name, config in {
        "softmax": {},
        "sigmoid": {"problem_type": "multi_label_classification"},
        "none": {"num_labels": 1, "id2label": {0: "stars"}, "problem_type": "regression"},
    }.items():
        folder = recovering.bert(tmp_path / name, **config)
        texts = recovering.texts(tmp_path / "texts.txt", 20)
        model = built(folder)
        units = Units(changes_of(BOTH), model, graph_of(folder, "text-classification"))
        examples, _ = examples_of(inspect(folder), model, texts, Columns(), 16, 0)
        first, again = (importance(units, model, examples, 8) for _ in range(2))
        assert all((values > 0).any() and np.array_equal(values, again[key]) for key, values in first.items())


def test_a_narrower_student(tmp_path, data):
    import transformers

    model = recovering.bert(tmp_path / "bert")
    done = recover(model, data, tmp_path / "out", replace(SETTINGS, prune=None, neurons=40))
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.intermediate_size == 40
    assert weights(tmp_path / "out")["bert.encoder.layer.1.output.dense.weight"].shape == (64, 40)
    assert 40 in sizes(graph_of(tmp_path / "out", "text-classification"))[1]
    assert done.before.agreement == 1
    for make in (recovering.gpt2, recovering.llama):
        lm, book = make(tmp_path / make.__name__), recovering.texts(tmp_path / "book.txt")
        recover(
            lm, book, tmp_path / f"{make.__name__}-out", replace(SETTINGS, prune=None, neurons=48, steps=2)
        )
        graph_of(tmp_path / f"{make.__name__}-out", "text-generation")


def test_options_of_no_use(tmp_path, data):
    model = recovering.bert(tmp_path / "bert")

    def fails(**changed: Any) -> str:
        with pytest.raises(LlmcError) as caught:
            recover(model, data, tmp_path / "out", replace(SETTINGS, **changed))
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    told = fails(prune=("heads:0.5", "0.5"))
    assert "either heads and neurons at zero, once each, or single weights" in told
    assert "--prune heads:0.5 --prune 0.5" in told
    assert "once each" in fails(prune=("heads:0.5", "heads:0.25"))
    assert "changes nothing" in fails(prune=("heads:0",))
    assert "give from 1 to 127" in fails(prune=None, neurons=128)
    assert "no such importance" in fails(importance="luck")
    lm, book = recovering.llama(tmp_path / "lm"), recovering.texts(tmp_path / "book.txt")
    with pytest.raises(LlmcError, match="--prune changes nothing in this model") as caught:
        recover(lm, book, tmp_path / "out", replace(SETTINGS, prune="heads:0.5"))
    kept = "0 of 2 attentions; left: 2 of keys and values that are kept from call to call"
    assert (caught.value.at, caught.value.found) == ("prune-heads{fraction=0.5}", kept)
