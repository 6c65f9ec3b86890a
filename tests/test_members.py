"""`llmc recover --bag`, `--boost`: members of an ensemble, and the files that join them."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recovering
import torch
from built_folders import built
from recovering import SETTINGS, weights

from llmc.compiler.frontends.combining_files import read_head, read_weights_of
from llmc.errors import LlmcError
from llmc.fewer_layers import freeze
from llmc.members import _samme, stack, train

BAG = replace(SETTINGS, prune=None, bag=2, steps=4, batch=32, max_seq=16)
ROWS = 1000


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    return recovering.bert(tmp_path_factory.mktemp("models") / "bert", **sizes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word decides which label a text has, mostly."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [
        {"text": text, "label": "positive" if ("good" in text) != (place % 10 == 0) else "negative"}
        for place, text in enumerate(recovering.sentences(ROWS))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bagging(classifier, data, tmp_path):
    told: list[str] = []
    found = train(classifier, data, tmp_path / "out", BAG, say=told.append)
    assert told == ["recover: the embeddings and 1 layer stay as they are"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["member-1", "member-2", "stack.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert (found.trained_rows, found.judged_rows, found.steps) == (900, 50, 8)
    before = weights(classifier)
    first, second = (weights(tmp_path / "out" / name) for name in found.members)
    for name, value in before.items():
        frozen = "embeddings" in name or ".layer.0." in name
        assert torch.equal(value, first[name]) == frozen, name
        assert torch.equal(second[name], first[name]) == frozen, name
    head = read_head(tmp_path / "out" / "stack.json")
    assert head.weight.shape == (2, 4)
    assert not head.probabilities
    assert set(found.together) == {"mean", f"stack:{tmp_path / 'out' / 'stack.json'}"}
    assert found.best in found.together


def test_boosting(classifier, data, tmp_path):
    settings = replace(BAG, bag=None, boost=3, steps=30, rate=1e-3, freeze=0)
    found = train(classifier, data, tmp_path / "out", settings)
    shares = read_weights_of(tmp_path / "out" / "weights.json", found.members)
    assert len(shares) == len(found.weights) == len(found.accuracy) >= 1
    assert sum(shares) == pytest.approx(1)
    assert all(weight > 0 for weight in found.weights)
    assert str(tmp_path / "out" / "weights.json") in found.together


@pytest.mark.parametrize("way", ["bag", "boost"])
def test_resumed_members_are_those_of_an_unbroken_run(classifier, data, tmp_path, way):
    """Interrupted in the second member, with the first one whole."""
    settings = replace(BAG, **{"bag": None, way: 2, "steps": 6, "rate": 1e-3, "freeze": 0})
    whole = train(classifier, data, tmp_path / "whole", settings)

    def interrupt(stage: str, done: float) -> None:
        if stage.startswith("member 2: step 3,"):
            signal.raise_signal(signal.SIGINT)

    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(classifier, data, tmp_path / "out", settings, progress=interrupt, say=told.append)
    assert "after step 3 is in " in told[-1]
    kept = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("state.pt"))
    assert [str(p) for p in kept] == [f"out.checkpoint/member-{number}/state.pt" for number in (1, 2)]
    with pytest.raises(LlmcError, match="a checkpoint of an earlier training is there"):
        train(classifier, data, tmp_path / "out", settings)
    with pytest.raises(LlmcError, match="of another model, data or options"):
        train(classifier, data, tmp_path / "out", replace(settings, rate=1e-4), resume=True)
    stages: list[str] = []
    found = train(
        classifier, data, tmp_path / "out", settings, resume=True, progress=lambda s, _: stages.append(s)
    )
    assert not any(stage.startswith("member 1") for stage in stages), "which is not trained again"
    assert (found.steps, found.accuracy, found.weights) == (whole.steps, whole.accuracy, whole.weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
    for name in found.members:
        one, other = weights(tmp_path / "whole" / name), weights(tmp_path / "out" / name)
        assert all(torch.equal(one[each], other[each]) for each in one)


def test_weights_of_members_are_those_of_samme():
    assert _samme(0.5, 2, 100) == pytest.approx(0)
    assert _samme(0.6, 2, 100) < 0 < _samme(0.6, 3, 100) == pytest.approx(math.log(4 / 3))
    assert _samme(0.2, 2, 100) == pytest.approx(math.log(4))
    assert _samme(0.0, 2, 100) == pytest.approx(math.log(199))


def test_the_stack_is_a_regression_that_scikit_learn_finds_too():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 300)
    answers = np.eye(3)[labels][:, None] * [[[0.1], [1.0]]] + rng.normal(size=(300, 2, 3))
    weight, bias = (np.asarray(v) for v in stack(torch.from_numpy(answers), torch.from_numpy(labels)))
    other = LogisticRegression(C=1e6, max_iter=1000).fit(answers.reshape(300, 6), labels)
    own = (answers.reshape(300, 6) @ weight.T + bias).argmax(1)
    assert (own == other.predict(answers.reshape(300, 6))).mean() > 0.98
    assert np.abs(weight[:, 3:]).sum() > np.abs(weight[:, :3]).sum(), "the member that knows counts more"


def test_lower_layers_stay(classifier):
    model = built(classifier)
    assert freeze(model, None) == 1
    assert not model.bert.embeddings.LayerNorm.weight.requires_grad
    assert not model.bert.encoder.layer[0].output.dense.weight.requires_grad
    assert model.bert.encoder.layer[1].output.dense.weight.requires_grad
    assert freeze(model, 0) == 0
    assert model.bert.encoder.layer[0].output.dense.weight.requires_grad
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    with pytest.raises(LlmcError, match="the model has 2 layers"):
        freeze(model, 2)


def test_data_of_no_use(classifier, data, tmp_path):
    def fails(texts: Path, model: Path = classifier, **changed: Any) -> str:
        with pytest.raises(LlmcError) as caught:
            train(model, texts, tmp_path / "out", replace(BAG, **changed))
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    few = recovering.labelled(tmp_path / "few.jsonl")
    assert "the data has 60 rows, members of an ensemble need 1000" in fails(few)
    assert "there are no labels" in fails(recovering.texts(tmp_path / "texts.txt"))
    numbers = recovering.bert(
        tmp_path / "numbers", num_labels=1, id2label={0: "s"}, problem_type="regression"
    )
    table = recovering.labelled(tmp_path / "numbers.jsonl", labels=(1, 2))
    assert "choose one of several classes" in fails(table, numbers)
