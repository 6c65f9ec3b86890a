"""The model that ships with llmc: small enough, whole, and able to tell praise from blame."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from llmc import demo

BENCH = Path(__file__).resolve().parents[2] / "bench"
CLEAR = [
    ("An unforgettable, moving and brilliant film.", 1),
    ("One of the best comedies of the year.", 1),
    ("A dull, lifeless waste of time.", 0),
    ("The worst script in years, badly acted.", 0),
]


@pytest.fixture
def training(monkeypatch):
    """bench/sentiment.py as a module."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("sentiment")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(demo.model_folder() / "tokenizer.json"))


def test_weights_are_at_most_six_megabytes_of_finite_halves(demo_folder):
    assert (demo_folder / "model.safetensors").stat().st_size <= 6_000_000
    weights = load_file(demo_folder / "model.safetensors")
    assert {str(w.dtype) for w in weights.values()} == {"float16"}
    assert all(np.isfinite(w).all() for w in weights.values())


def test_configuration_says_what_it_is(demo_folder):
    config = json.loads((demo_folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["dtype"] == "float32"
    assert config["id2label"] == {"0": "negative", "1": "positive"}


def test_any_ascii_text_tokenises(tokenizer):
    for text in ("Xylophonic qwzjkv!", "".join(map(chr, range(33, 127)))):
        assert "[UNK]" not in tokenizer.encode(text).tokens
    assert tokenizer.encode("a film").tokens == ["[CLS]", "a", "film", "[SEP]"]
    assert len(tokenizer.encode("word " * 1000).ids) == 256
    assert tokenizer.get_vocab_size() == 3000


def test_it_tells_praise_from_blame(demo_folder, tokenizer):
    torch.set_num_threads(1)
    model = demo.load_torch(demo_folder)
    for text, label in CLEAR:
        ids = np.array([tokenizer.encode(text).ids])
        logits = demo.torch_call(model, {"input_ids": ids, "attention_mask": np.ones_like(ids)})()
        assert logits.dtype == np.float32
        assert logits.argmax() == label, text


def test_split_has_no_overlap_and_does_not_depend_on_order(training):
    rated = [(f"text {i}", (-1) ** i * (0.5 + i / 5000)) for i in range(4000)] + [("unclear", 0.4)]
    parts = training.split(rated)
    assert [len(part) for part in parts] == [1200, 800, 2000]
    texts = [{text for text, _ in part} for part in parts]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    assert all("unclear" not in part for part in texts)
    assert training.split(rated[::-1]) == parts
    assert all(label == (int(text.split()[1]) + 1) % 2 for part in parts for text, label in part)


def test_batches_hold_every_text_once_and_like_lengths(training):
    ids = [[1] * (1 + i * 7 % 40) for i in range(100)]
    for seed in (None, 3):
        groups = list(training.batches(ids, 8, seed))
        assert sorted(i for group in groups for i in group) == list(range(100))
        assert max(max(len(ids[i]) for i in g) - min(len(ids[i]) for i in g) for g in groups) <= 12


def test_padding_is_masked(training):
    ids, mask = training.pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_hidden_tokens_are_neither_the_first_nor_padding(training):
    torch.manual_seed(0)
    ids, mask = training.pad([[5] * 50, [5] * 20])
    hidden = training.hide(ids, mask, 4, 0.5)
    assert (hidden[:, 0] == 5).all()
    assert (hidden[1, 20:] == 0).all()
    share = (hidden == 4).sum().item() / 68
    assert 0.3 < share < 0.7


def test_spans_are_parts_of_their_texts(training):
    texts = ["one two three four five six seven", "too short"]
    (span,) = training.spans(texts, 0)
    assert span in texts[0]
    assert 3 <= len(span.split()) <= 6
