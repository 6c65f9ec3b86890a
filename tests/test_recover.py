"""`llmc.recover`: its zeros are those of `prune`, an interrupt loses nothing, mistakes write nothing."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recovering
import torch
from recovering import SETTINGS, weights

from llmc.compiler import interpret
from llmc.compiler.pipeline import Pipeline
from llmc.demo import model_folder
from llmc.distillation import Columns, Distillation, Figures
from llmc.errors import LlmcError, LlmcWarning
from llmc.masks import Masks, graph_of, hold, prune_of
from llmc.passes import PASSES
from llmc.passes.compress.rounding import nearest
from llmc.passes.compress.weights import products
from llmc.passes.quantise import QUANTISATIONS
from llmc.passes.quantise.quantize import quantised_rows
from llmc.recover import Settings, recover, want_room
from llmc.straight_through import Grid, Rounding, by_token

SPECS = (
    "0.5",
    "2:4",
    "4x1:0.8",
    "16x4:0.5",
    'sparsity=0.4,scope="layer"',
    'sparsity=0.3,skip=["*.layer.0.*"]',
)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recovering.bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recovering.labelled(tmp_path_factory.mktemp("data") / "train.jsonl")


def want_same_zeros(folder: Path, spec: str, task: str) -> int:
    """`--prune` of what was recovered with it drops zeros alone; returns how many."""
    change, graph = prune_of(spec), graph_of(folder, task)
    chosen = change.chosen(graph)
    dropped = 0
    for product, mask in zip(chosen, change.masks(chosen), strict=True):
        assert not product.array[~mask].any(), product.place
        assert product.array[mask].all(), product.place
        dropped += int((~mask).sum())
    assert dropped
    return dropped


@pytest.mark.parametrize("spec", SPECS)
def test_prune_takes_the_zeros_it_was_trained_with(classifier, data, tmp_path, spec):
    done = recover(classifier, data, tmp_path / "out", replace(SETTINGS, prune=spec))
    assert want_same_zeros(tmp_path / "out", spec, "text-classification") == done.zeros
    before, after = weights(classifier), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, value in after.items():
        table = "embeddings" in name and "LayerNorm" not in name
        assert torch.equal(value, before[name]) == table, name


@pytest.mark.parametrize("make", [recovering.llama, recovering.gpt2])
def test_language_models(tmp_path, make):
    model, data = make(tmp_path / "lm"), recovering.texts(tmp_path / "book.txt")
    done = recover(model, data, tmp_path / "out", SETTINGS)
    assert want_same_zeros(tmp_path / "out", "0.5", "text-generation") == done.zeros
    assert done.before.agreement == 1 > done.compressed.agreement
    assert done.recovered.perplexity < done.compressed.perplexity


def test_a_table_that_is_a_product_too_stays(tmp_path):
    model, data = recovering.llama(tmp_path / "lm"), recovering.texts(tmp_path / "book.txt")
    recover(model, data, tmp_path / "out", replace(SETTINGS, steps=2))
    name = "model.embed_tokens.weight"
    assert torch.equal(weights(model)[name], weights(tmp_path / "out")[name])


def test_the_folder_is_one_of_transformers(classifier, data, tmp_path):
    import transformers

    recover(classifier, data, tmp_path / "out", SETTINGS)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (classifier / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_training_wins_back_what_pruning_took(tmp_path):
    data = recovering.texts(tmp_path / "texts.txt", 400)
    settings = Settings("0.8", steps=60, rate=5e-4, batch=16, ramp=0.3)
    with pytest.warns(LlmcWarning, match=r"keeps less than 1% of the weights of bert\.pooler\.dense; "):
        done = recover(model_folder(), data, tmp_path / "out", settings)
    assert done.before.agreement == 1
    assert done.before.accuracy is None
    assert done.recovered.agreement > done.compressed.agreement + 0.05


@pytest.mark.parametrize(
    ("config", "labels", "named"),
    [
        (
            {"num_labels": 1, "id2label": {0: "stars"}, "problem_type": "regression"},
            (0.5, "2.25", 4),
            "distance",
        ),
        ({"problem_type": "multi_label_classification"}, ("positive",), "agreement"),
    ],
)
def test_other_classifiers(tmp_path, config, labels, named):
    model = recovering.bert(tmp_path / "model", **config)
    data = recovering.labelled(tmp_path / "data.jsonl", labels=labels)
    done = recover(model, data, tmp_path / "out", SETTINGS)
    assert getattr(done.recovered, named) is not None
    assert (done.recovered.error is not None) == (named == "distance")
    assert done.recovered.accuracy is None
    want_same_zeros(tmp_path / "out", "0.5", "text-classification")


def test_a_training_that_makes_it_worse_is_told(classifier, data, tmp_path):
    told: list[str] = []
    settings = Settings("0.9", steps=12, batch=8, rate=1.0)
    done = recover(classifier, data, tmp_path / "out", settings, say=told.append)
    assert told == ["recover: nothing was won back; train longer, with another --lr, or compress less"] * (
        done.recovered.agreement < done.compressed.agreement
    )
    assert Figures(agreement=0.5).worse_than(Figures(agreement=0.6))
    assert not Figures(agreement=0.6).worse_than(Figures(agreement=0.6))
    assert Figures(distance=0.5).worse_than(Figures(distance=0.4))


# --- rounding


@pytest.mark.parametrize("shape", [(16, 64), (24, 50), (3, 8)])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_weights_are_rounded_as_the_passes_do(shape, scale):
    array = (np.random.default_rng(1).normal(size=shape) * scale).astype(np.float32)
    array[0] = 0
    levels, scales = nearest(array, 4, 32)
    by_block = (levels.astype(np.float32) - 8) * np.repeat(scales.astype(np.float32), 32, 1)[:, : shape[1]]
    weight = torch.from_numpy(array)
    assert np.array_equal(Grid(4, 32, False).rounded(weight).numpy(), by_block)
    assert np.array_equal(Grid(4, 32, True).rounded(weight.T).numpy(), by_block.T)
    whole, scales = quantised_rows(array)
    assert np.array_equal(Grid(8, shape[1], False).rounded(weight).numpy(), whole * scales)
    levels, scales = nearest(array, 8, 32)  # in half precision where there are several to a row
    by_block = (levels.astype(np.float32) - 128) * np.repeat(scales.astype(np.float32), 32, 1)[:, : shape[1]]
    assert np.array_equal(Grid(8, 32, False).rounded(weight).numpy(), by_block)


def test_a_model_within_answers_as_the_pass_leaves_it(classifier):
    """Products and tables of w4: what the interpreter makes of the graph after the pass."""
    from built_folders import built

    graph = graph_of(classifier, "text-classification")
    (first, *_) = Pipeline.parse(QUANTISATIONS["w4"], PASSES).steps
    after = first.change.run(graph)
    model = built(classifier)
    given = {"input_ids": np.array([[2, 7, 9, 3]]), "attention_mask": np.ones((1, 4), np.int64)}
    given["token_type_ids"] = np.zeros((1, 4), np.int64)
    with Rounding("w4", model, graph).on(), torch.no_grad():
        found = model(**{name: torch.from_numpy(value) for name, value in given.items()}).logits
    wanted = interpret.run(after, given)["logits"]
    assert np.abs(found.numpy() - wanted).max() < 1e-5
    assert np.abs(found.numpy() - interpret.run(graph, given)["logits"]).max() > 1e-3


@pytest.mark.parametrize("mode", ["int8", "w4"])
def test_rounding_in_place(classifier, data, tmp_path, mode):
    settings = replace(SETTINGS, prune=None, quant=mode)
    done = recover(classifier, data, tmp_path / "out", settings)
    assert done.before.agreement == 1
    before, after = weights(classifier), weights(tmp_path / "out")
    name = "bert.encoder.layer.1.output.dense.weight"
    grid = Grid(8, 128, False) if mode == "int8" else Grid(4, 32, False)
    assert not torch.equal(after[name], before[name])
    assert not torch.equal(after[name], grid.rounded(after[name]))  # the compile rounds
    table = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(after[table], before[table])


@pytest.mark.slow
def test_rounding_of_language_models(tmp_path):
    settings = replace(SETTINGS, prune=None, quant="w4", steps=20, rate=1e-3)
    for make in (recovering.llama, recovering.gpt2):
        model = make(tmp_path / make.__name__)
        data = recovering.texts(tmp_path / "book.txt")
        done = recover(model, data, tmp_path / f"{make.__name__}-out", settings)
        assert done.recovered.perplexity < done.compressed.perplexity


def test_a_table_that_is_an_output_head_is_rounded_as_one(tmp_path):
    from built_folders import built

    model = recovering.llama(tmp_path / "lm")
    rounding = Rounding("w4", built(model), graph_of(model, "text-generation"))
    assert rounding.grids["model.embed_tokens.weight"] == Grid(8, 64, False)
    assert rounding.grids["model.layers.0.mlp.up_proj.weight"] == Grid(4, 32, False)


def test_activations_are_rounded_by_token_and_their_gradients_are_not():
    x = torch.randn(3, 5, 8, requires_grad=True)
    rounded = by_token(x)
    whole, scales = quantised_rows(x.detach().numpy().reshape(15, 8))
    assert np.abs(rounded.detach().numpy().reshape(15, 8) - whole * scales).max() < 1e-6
    rounded.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


# --- how it is trained


@pytest.mark.slow
def test_the_seed_is_all_that_is_random(classifier, data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recover(classifier, data, tmp_path / name, replace(SETTINGS, seed=seed))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize(("at", "quant"), [(2, None), (9, None), (5, "w4")])
def test_a_resumed_training_ends_as_an_unbroken_one(classifier, data, tmp_path, at, quant):
    settings = SETTINGS if quant is None else replace(SETTINGS, prune=None, quant=quant)
    recover(classifier, data, tmp_path / "whole", settings)

    def interrupt(stage: str, done: float) -> None:
        if stage.startswith(f"step {at},"):
            signal.raise_signal(signal.SIGINT)

    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        recover(classifier, data, tmp_path / "out", settings, progress=interrupt, say=told.append)
    assert f"after step {at} " in told[0]
    assert "--resume" in told[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.checkpoint", "whole"]
    with pytest.raises(LlmcError, match="a checkpoint of an earlier training is there"):
        recover(classifier, data, tmp_path / "out", settings)
    with pytest.raises(LlmcError, match="of another model, data or options"):
        recover(classifier, data, tmp_path / "out", replace(settings, rate=2e-4), resume=True)
    recover(classifier, data, tmp_path / "out", settings, resume=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_second_interrupt_ends_at_once(classifier, data, tmp_path):
    def interrupt(stage: str, done: float) -> None:
        if stage.startswith("step 2,"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        recover(classifier, data, tmp_path / "out", SETTINGS, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_the_time_ends_it_with_all_zeros(classifier, data, tmp_path):
    now = iter(range(10**6))
    settings = replace(SETTINGS, steps=1000, budget=9.0)
    done = recover(classifier, data, tmp_path / "out", settings, clock=lambda: float(next(now)))
    assert done.steps == 9
    want_same_zeros(tmp_path / "out", "0.5", "text-classification")


@pytest.mark.parametrize("spec", SPECS)
def test_masks_grow_to_those_of_the_pass(classifier, spec):
    from built_folders import built

    model = built(classifier)
    masks = Masks(prune_of(spec), model, graph_of(classifier, "text-classification"))
    whole, dropped = masks.at(), 0
    for share in (0.0, 0.3, 0.8, 1.0):
        keep = masks.at(share)
        assert all(bool((mask | ~whole[name]).all()) for name, mask in keep.items())
        hold(masks.weights, keep)
        now = sum(int((~mask).sum()) for mask in keep.values())
        assert now > dropped or share == 0
        dropped = now
    assert all(torch.equal(keep[name], whole[name]) for name in whole)


def test_masks_are_of_the_weights_that_the_graph_has(classifier):
    from built_folders import built

    graph = graph_of(classifier, "text-classification")
    masks = Masks(prune_of("0.5"), built(classifier), graph)
    assert any(p.weight.attributes["value"].name.endswith("self.concat") for p in products(graph))
    assert "bert.encoder.layer.1.attention.self.key.weight" in masks.weights
    assert masks.count == sum(p.array.size for p in prune_of("0.5").chosen(graph))


# --- mistakes


def fails(model: Path, data: Path, folder: Path, **changed: Any) -> str:
    """What is said; nothing is written."""
    before = sorted(folder.rglob("*"))
    columns = changed.pop("columns", Columns())
    with pytest.raises(LlmcError) as caught:
        recover(model, data, folder / "out", replace(SETTINGS, **changed), columns=columns)
    assert sorted(folder.rglob("*")) == before
    return str(caught.value)


def test_data_of_no_use(classifier, tmp_path):
    assert "cannot read the data" in fails(classifier, tmp_path / "none.txt", tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    assert "the data is empty" in fails(classifier, tmp_path / "empty.txt", tmp_path)
    few = recovering.texts(tmp_path / "few.txt", 19)
    assert "the data has 19 rows, recovery needs 20 at least" in fails(classifier, few, tmp_path)
    bad = recovering.labelled(tmp_path / "bad.jsonl", labels=("positive", "positive", "mixed"))
    told = fails(classifier, bad, tmp_path)
    assert "unknown label 'mixed'" in told
    assert "bad.jsonl, line 3" in told
    texts = recovering.texts(tmp_path / "texts.txt")
    assert "there are no labels to learn from" in fails(classifier, texts, tmp_path, alpha=0.5)
    table = recovering.labelled(tmp_path / "good.jsonl")
    assert "there is no column 'stars'" in fails(classifier, table, tmp_path, columns=Columns(label="stars"))
    words = recovering.labelled(tmp_path / "words.jsonl", labels=("good",))
    numbers = recovering.bert(
        tmp_path / "numbers", num_labels=1, id2label={0: "s"}, problem_type="regression"
    )
    assert "words.jsonl, line 1" in fails(numbers, words, tmp_path)


def test_text_that_is_too_short(tmp_path):
    model, book = recovering.gpt2(tmp_path / "lm"), recovering.texts(tmp_path / "book.txt", 20)
    assert "recovery needs 20 windows of 16" in fails(model, book, tmp_path)


def test_options_of_no_use(classifier, data, tmp_path):
    assert "is not understood" in fails(classifier, data, tmp_path, prune="half")
    for spec in ("channels:0.3", "channels:0.3,multiple=4"):
        told = fails(classifier, data, tmp_path, prune=spec)
        assert "recover trains no convolutions" in told
        assert "`llmc compile --prune channels:0.3" in told
        assert "heads and neurons alone" not in told
    assert "no product fits 'x*'" in fails(classifier, data, tmp_path, prune='sparsity=0.5,skip=["x*"]')
    assert "changes nothing" in fails(classifier, data, tmp_path, prune="sparsity=0.5,least=100000000")
    with pytest.raises(
        LlmcError, match="either zeros, rounding, shared values, a smaller model or an ensemble"
    ):
        replace(SETTINGS, quant="w4")
    with pytest.raises(LlmcError, match="does not round as --quant fp16"):
        replace(SETTINGS, prune=None, quant="fp16")
    with pytest.raises(LlmcError, match="temperature is 0, must be within"):
        replace(SETTINGS, temperature=0.0)


def test_models_of_no_use(classifier, data, tmp_path):
    import transformers

    made = transformers.BertForTokenClassification(transformers.BertConfig(**recovering.SIZES, vocab_size=50))
    made.save_pretrained(tmp_path / "tokens")
    assert "no training for the task token-classification" in fails(tmp_path / "tokens", data, tmp_path)
    assert "no model folder" in fails(tmp_path / "none", data, tmp_path)
    assert "no model folder" in fails(data, data, tmp_path)
    bare = recovering.bert(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    assert "tokenizer" in fails(bare, data, tmp_path)


def test_an_output_that_exists_stays(classifier, data, tmp_path):
    (tmp_path / "out").mkdir()
    assert "the output exists" in fails(classifier, data, tmp_path)
    with pytest.raises(LlmcError, match="the folder to write into does not exist"):
        recover(classifier, data, tmp_path / "none" / "out", SETTINGS)
    with pytest.raises(LlmcError, match="no checkpoint to go on from"):
        recover(classifier, data, tmp_path / "new", SETTINGS, resume=True)
    with pytest.raises(LlmcError, match="cannot write the folder"):
        want_room(Path("/proc/out"), tmp_path / "none", resume=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_damaged_checkpoint(classifier, data, tmp_path):
    (tmp_path / "out.checkpoint").mkdir()
    (tmp_path / "out.checkpoint" / "state.pt").write_bytes(b"none")
    with pytest.raises(LlmcError, match="the checkpoint cannot be read"):
        recover(classifier, data, tmp_path / "out", SETTINGS, resume=True)
    (tmp_path / "out.checkpoint" / "member-1").mkdir()
    (tmp_path / "out.checkpoint" / "state.pt").rename(tmp_path / "out.checkpoint" / "member-1" / "state.pt")
    with pytest.raises(LlmcError, match="of another model, data or options"):
        recover(classifier, data, tmp_path / "out", SETTINGS, resume=True)


def test_a_loss_that_is_no_number(classifier, data, tmp_path, monkeypatch):
    honest = Distillation.__call__
    calls = iter(range(100))

    def broken(self: Distillation, rows: Any) -> Any:
        return honest(self, rows) * (np.nan if next(calls) == 4 else 1)

    monkeypatch.setattr(Distillation, "__call__", broken)
    assert "the loss is nan in step 5" in fails(classifier, data, tmp_path)
