"""What config.json says in other words than transformers writes, and what the import tells of its bounds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_any import TEXT, made

from llmc.compiler.frontends import huggingface
from llmc.compiler.frontends.huggingface import inspect, load
from llmc.compiler.frontends.tasks import architecture_of
from llmc.errors import LlmcError, LlmcWarning

pytestmark = pytest.mark.imports
SMALL = {**TEXT, "num_hidden_layers": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made("BertForSequenceClassification", SMALL).save_pretrained(tmp_path)
    return tmp_path


def say(folder: Path, **words: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **words}))


def test_one_architecture_as_a_text(folder: Path) -> None:
    say(folder, architectures="BertForSequenceClassification")
    assert inspect(folder).task.name == "text-classification"
    assert load(folder, max_batch=2, max_seq=64).architecture == "BertForSequenceClassification"


@pytest.mark.parametrize("named", [None, [], 7, {}])
def test_no_architecture(named: Any) -> None:
    assert architecture_of({"architectures": named}) == ""


def test_a_wrong_problem_type_shows_before_any_work(folder: Path, monkeypatch: Any) -> None:
    say(folder, problem_type="multi_label")
    monkeypatch.setattr(huggingface, "build", lambda *_: pytest.fail("the model was built"))
    with pytest.raises(LlmcError, match="no problem_type 'multi_label'"):
        load(folder)


def test_bounds_that_the_code_narrows_are_told(folder: Path, monkeypatch: Any) -> None:
    export = huggingface.export

    def narrowed(*given: Any) -> Any:
        program, inputs = export(*given)
        return program, replace(inputs, bounds={**inputs.bounds, "seq": (1, 48)})

    monkeypatch.setattr(huggingface, "export", narrowed)
    with pytest.warns(LlmcWarning, match="seq is 1 to 48, not 1 to 64 as asked"):
        assert load(folder, max_batch=2, max_seq=64).graph.dims["seq"] == (1, 48)
