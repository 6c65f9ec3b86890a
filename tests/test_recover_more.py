"""`llmc recover`: values that weights share, adapters beside compressed weights, a training that diverges."""

from __future__ import annotations

import json
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
from llmc.compiler.frontends.lora import pairs_of
from llmc.compiler.frontends.quiet import quiet
from llmc.distillation import Distillation
from llmc.errors import LlmcError
from llmc.low_rank import LowRank
from llmc.masks import graph_of
from llmc.passes.compress.cluster import Share, cluster
from llmc.recover import recover
from llmc.straight_through import Book, Rounding, share_of

GIVEN = {
    "input_ids": np.array([[2, 7, 9, 3]]),
    "attention_mask": np.ones((1, 4), np.int64),
    "token_type_ids": np.zeros((1, 4), np.int64),
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recovering.bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recovering.labelled(tmp_path_factory.mktemp("data") / "train.jsonl")


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recovering.llama(tmp_path_factory.mktemp("models") / "lm")


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recovering.texts(tmp_path_factory.mktemp("data") / "book.txt")


# --- shared values


@pytest.mark.parametrize("spec", ["16", "clusters=5,tables=false"])
def test_share_finds_the_values_it_was_trained_with(classifier, data, tmp_path, spec):
    recover(classifier, data, tmp_path / "out", replace(SETTINGS, prune=None, share=spec))
    graph, change = graph_of(tmp_path / "out", "text-classification"), share_of(spec)
    after = change.run(graph)
    books = [node for node in after.nodes if node.op == "codebook"]
    assert len(books) >= 7
    for node in books:
        assert len(node.inputs[1].attributes["value"].array) <= change.clusters
    chosen = [array for array in change.found(graph).values() if change.gains(array)]
    assert len(chosen) == len(books)
    assert all(len(np.unique(array)) <= change.clusters for array in chosen), "so nothing is lost"
    logits = (interpret.run(g, GIVEN)["logits"] for g in (graph, after))
    assert np.abs(np.subtract(*logits)).max() < 1e-5
    before, trained = weights(classifier), weights(tmp_path / "out")
    name = "bert.encoder.layer.1.output.dense.weight"
    assert len(trained[name].unique()) <= change.clusters
    assert not torch.equal(trained[name], before[name])
    table = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(trained[table], before[table]) == (not change.tables)


def test_a_model_within_answers_as_the_pass_leaves_it(classifier):
    graph = graph_of(classifier, "text-classification")
    after = Share(16).run(graph)
    model = built(classifier)
    with Rounding(Share(16), model, graph).on(), torch.no_grad():
        found = model(**{name: torch.from_numpy(value) for name, value in GIVEN.items()}).logits.numpy()
    assert np.abs(found - interpret.run(after, GIVEN)["logits"]).max() < 1e-5
    assert np.abs(found - interpret.run(graph, GIVEN)["logits"]).max() > 1e-3


def test_values_move_to_the_mean_of_their_weights():
    array = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    array[:40] = 0
    made = Book.of(Share(8), array, [])
    centres, places = cluster(*np.unique(array, return_counts=True), 8)
    assert np.array_equal(made.values.numpy(), centres)
    assert (centres == 0).sum() == 1
    weight = torch.from_numpy(array)
    distinct = np.unique(array)
    assert np.array_equal(made.rounded(weight).numpy(), centres[places[np.searchsorted(distinct, array)]])
    with torch.no_grad():
        made.move([weight * 1.5])
    moved = made.values
    assert (moved == 0).sum() == 1
    assert torch.equal(moved, moved.sort().values)
    assert not np.array_equal(moved.numpy(), centres)


def test_resumed_as_unbroken(classifier, data, tmp_path):
    import signal

    settings = replace(SETTINGS, prune=None, share="16")
    recover(classifier, data, tmp_path / "whole", settings)

    def interrupt(stage: str, done: float) -> None:
        if stage.startswith("step 5,"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        recover(classifier, data, tmp_path / "out", settings, progress=interrupt)
    recover(classifier, data, tmp_path / "out", settings, resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# --- adapters


@pytest.mark.parametrize("asked", [{"prune": None, "quant": "w4"}, {"prune": "0.6"}])
def test_an_adapter_beside_compressed_weights(lm, book, tmp_path, asked):
    settings = replace(SETTINGS, lora=4, rate=5e-3, steps=20, **asked)
    done = recover(lm, book, tmp_path / "out", settings)
    assert done.recovered.perplexity < done.compressed.perplexity
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(lm)
    pairs = pairs_of(tmp_path / "out")
    assert {f"{path}.weight" for path in pairs} <= weights(lm).keys()
    assert len(pairs) == (14 if "quant" in asked else 10), "keys and values are below what prune takes"
    assert all(pair.rank == 4 and np.abs(pair.b).max() > 0 for pair in pairs.values())


def test_peft_reads_it_and_gpt2s_weights_lie_turned(book, tmp_path):
    peft = pytest.importorskip("peft")
    model = recovering.gpt2(tmp_path / "gpt2")
    settings = replace(SETTINGS, prune=None, share="16", lora=2, rate=5e-3, steps=3)
    done = recover(model, book, tmp_path / "out", settings)
    ids = torch.tensor([[5, 9, 11, 40]])
    own = built(model)
    adapter = LowRank(2, own, [f"{path}.weight" for path in pairs_of(tmp_path / "out")], 0)
    for path, pair in pairs_of(tmp_path / "out").items():
        module = adapter.modules[path]
        module.lora_A.data, module.lora_B.data = torch.tensor(pair.a), torch.tensor(pair.b) / 2
    with torch.no_grad(), quiet():
        theirs = peft.PeftModel.from_pretrained(built(model), tmp_path / "out")(input_ids=ids).logits
        assert (own(input_ids=ids).logits - theirs).abs().max() < 1e-4
        assert (built(model)(input_ids=ids).logits - theirs).abs().max() > 1e-4
    assert done.steps == 3


def test_adapters_of_no_use(classifier, data, lm, book, tmp_path):
    def fails(model: Path, texts: Path, **changed: Any) -> str:
        with pytest.raises(LlmcError) as caught:
            recover(model, texts, tmp_path / "out", replace(SETTINGS, lora=4, **changed))
        return str(caught.value)

    assert "causal language model alone" in fails(classifier, data)
    assert "weights that keep their shapes" in fails(lm, book, prune="neurons:0.5")
    assert "weights that keep their shapes" in fails(lm, book, prune=None, layers=1)


# --- a loss that rises


def test_the_best_so_far_is_kept(classifier, data, tmp_path, monkeypatch):
    honest, calls, told = Distillation.__call__, iter(range(1000)), list[str]()

    def broken(self: Distillation, rows: Any) -> Any:
        return honest(self, rows) * (np.nan if next(calls) == 40 else 1)

    monkeypatch.setattr(Distillation, "__call__", broken)
    settings = replace(SETTINGS, steps=60, ramp=0.1)
    done = recover(classifier, data, tmp_path / "out", settings, say=told.append)
    assert done.steps == 40
    assert any("the training diverged in step 41: a loss of nan" in line for line in told)
    assert any("the weights are those after step 32" in line for line in told)
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path / "out").values())
    assert done.recovered.agreement is not None


def test_a_loss_far_above_the_first_ends_it(classifier, data, tmp_path, monkeypatch):
    honest, calls, told = Distillation.__call__, iter(range(1000)), list[str]()

    def rising(self: Distillation, rows: Any) -> Any:
        return honest(self, rows) + max(0, next(calls) - 40)

    monkeypatch.setattr(Distillation, "__call__", rising)
    settings = replace(SETTINGS, steps=200, ramp=0.0, prune=None, quant="w4")
    done = recover(classifier, data, tmp_path / "out", settings, say=told.append)
    assert 40 < done.steps < 60
    assert any("the training diverged in step" in line for line in told)


def test_a_tokenizer_of_another_model(tmp_path):
    """Was an IndexError of PyTorch."""
    folder = recovering.bert(tmp_path / "bert", vocab_size=100)
    data = recovering.labelled(tmp_path / "rows.jsonl")
    with pytest.raises(LlmcError, match="the tokenizer has tokens that the model does not know") as caught:
        recover(folder, data, tmp_path / "out", SETTINGS)
    assert "100 rows in the table" in str(caught.value.found)
    assert not (tmp_path / "out").exists()
