"""`llmc recover --layers`: which layers stay, and what is said of each."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import recovering
import torch
import transformers
from recovering import SETTINGS, weights

from llmc.errors import LlmcError
from llmc.fewer_layers import fewer
from llmc.masks import graph_of
from llmc.recover import recover


@pytest.mark.parametrize(
    ("make", "stack", "task"),
    [
        (recovering.bert, "bert.encoder.layer", "text-classification"),
        (recovering.gpt2, "transformer.h", "text-generation"),
        (recovering.llama, "model.layers", "text-generation"),
    ],
)
def test_a_student_of_fewer_layers(tmp_path, make, stack, task):
    model, data = make(tmp_path / "model"), recovering.texts(tmp_path / "texts.txt")
    done = recover(model, data, tmp_path / "out", replace(SETTINGS, prune=None, layers=1))
    after = weights(tmp_path / "out")
    assert {n.split(".")[stack.count(".") + 1] for n in after if n.startswith(stack)} == {"0"}
    assert done.before.agreement == 1
    graph_of(tmp_path / "out", task)


def test_every_other_layer_stays(tmp_path):
    from built_folders import built

    model = built(recovering.bert(tmp_path / "bert", num_hidden_layers=6))
    student, before = fewer(model, 3), model.state_dict()
    for own, other in ((0, 0), (1, 2), (2, 4)):
        name = "bert.encoder.layer.{}.output.dense.weight"
        assert torch.equal(student.state_dict()[name.format(own)], before[name.format(other)])
    assert student.config.num_hidden_layers == 3
    assert model.config.num_hidden_layers == 6
    with pytest.raises(LlmcError, match="the model has 6 layers"):
        fewer(model, 6)


def test_what_is_said_of_each_layer_stays_with_it(tmp_path):

    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    made = transformers.Qwen2Config(
        **{**recovering.SIZES, "num_hidden_layers": 4}, vocab_size=50, num_key_value_heads=2
    )
    made.layer_types = kinds
    student = fewer(transformers.Qwen2ForCausalLM(made), 2)
    assert student.config.layer_types == kinds[::2]


def test_config_says_what_it_said(tmp_path):

    for make, layers in ((recovering.bert, None), (recovering.llama, None), (recovering.gpt2, 1)):
        model, data = make(tmp_path / make.__name__), recovering.texts(tmp_path / "texts.txt")
        settings = replace(SETTINGS, steps=1, prune=None if layers else "0.5", layers=layers)
        out = tmp_path / f"{make.__name__}-out"
        recover(model, data, out, settings)
        before, after = (json.loads((folder / "config.json").read_text()) for folder in (model, out))
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert changed == ({"n_layer"} if layers else set())
