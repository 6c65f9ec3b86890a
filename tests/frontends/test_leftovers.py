"""No trained weight is left out unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2ForSequenceClassification

from llmc.compiler.frontends.folder import inspect
from llmc.compiler.frontends.pretrained import build
from llmc.errors import LlmcError


def edit(path: Path, **changes: Any) -> None:
    """Change entries of config.json; None removes one."""
    file = path / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def want_refused(folder: Path, names: list[str], task: str = "auto") -> None:
    """An error that lists the weights, unless one asks for a model without them."""
    with pytest.raises(LlmcError, match="does not use all weights") as caught:
        build(inspect(folder, task))
    assert all(name in caught.value.problem for name in names)
    assert "--ignore-unused-weights" in str(caught.value.hint)
    build(inspect(folder, task, ignore_unused=True), ignore_unused=True)


def test_a_classifier_is_no_text_generator(tmp_path: Path) -> None:
    """lm_head is the word embedding, so nothing is missing where the trained head is dropped."""
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
    GPT2ForSequenceClassification(GPT2Config(**sizes)).save_pretrained(tmp_path)
    want_refused(tmp_path, ["score.weight"], "text-generation")


def test_a_classifier_that_does_not_say_so(saved: Any) -> None:
    folder, _ = saved("bert", "ForSequenceClassification", num_hidden_layers=1)
    edit(folder, architectures=None)
    want_refused(folder, ["classifier.bias", "classifier.weight"])


def test_layers_that_transformers_does_not_know(saved: Any) -> None:
    folder, _ = saved("bert", "ForTokenClassification", num_hidden_layers=1)
    file = folder / "model.safetensors"
    crf = {"crf.transitions": torch.zeros(2, 2), "crf.start_transitions": torch.zeros(2)}
    save_file({**load_file(file), **crf}, file, metadata={"format": "pt"})
    want_refused(folder, list(crf))
    with pytest.raises(LlmcError) as caught:
        build(inspect(folder))
    assert "the CRF decodes what the model gives" in str(caught.value.hint)


def test_the_next_sentence_head_may_be_left(saved: Any) -> None:
    folder, _ = saved("bert", "ForPreTraining", num_hidden_layers=1)
    model, task = build(inspect(folder))
    assert (type(model).__name__, task.name) == ("BertForMaskedLM", "fill-mask")


@pytest.mark.parametrize("name", ["model_head.pkl", "config_setfit.json"])
def test_a_head_in_a_file_of_its_own(name: str, saved: Any) -> None:
    folder, _ = saved("bert", "Model", num_hidden_layers=1)
    (folder / name).write_text("{}")
    with pytest.raises(LlmcError, match="a SetFit head, which is a pickle and was not opened") as caught:
        inspect(folder)
    assert "--ignore-unused-weights compiles the embeddings" in str(caught.value.hint)
    assert inspect(folder, ignore_unused=True).task.name == "feature-extraction"


def test_a_head_of_others(saved: Any) -> None:
    folder, _ = saved("bert", "Model", num_hidden_layers=1)
    (folder / "pytorch_model_head.bin").write_bytes(b"")
    with pytest.raises(LlmcError, match="head in a file of its own"):
        inspect(folder)


@pytest.mark.parametrize("ignore", [False, True])
def test_an_adapter_beside_its_base(ignore: bool, saved: Any) -> None:
    """Without peft transformers would load the base alone, with it the two together."""
    folder, _ = saved("bert", "Model", num_hidden_layers=1)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(LlmcError, match="adapter beside its base weights") as caught:
        inspect(folder, ignore_unused=ignore)
    assert f"--adapter {folder} merges it" in str(caught.value.hint)


@pytest.mark.parametrize("count", [0, -3])
def test_layers_that_config_denies(count: int, saved: Any) -> None:
    folder, _ = saved("bert", "Model", num_hidden_layers=1)
    edit(folder, num_hidden_layers=count)
    with pytest.raises(LlmcError, match="num_hidden_layers is not a positive number"):
        inspect(folder)
