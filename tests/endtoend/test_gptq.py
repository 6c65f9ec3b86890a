"""`--quant w4 --calib`: weights of a model that generates, rounded by samples, from a folder to an artifact."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from stateful_graphs import causal
from tokenizers import Tokenizer, models, pre_tokenizers

import llmc
from llmc.errors import LlmcError
from llmc.quantisation import Quantisation

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose words are letters."""
    place = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(LETTERS) + 1,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(f"?{LETTERS}")}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(place / "tokenizer.json"))
    return place


def test_from_a_folder_to_an_artifact(folder: Path, tmp_path: Path) -> None:
    chosen = np.random.default_rng(1)
    lines = [" ".join(chosen.choice(list(LETTERS), 20)) for _ in range(12)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    asked = {"quant": "w4", "group": 48, "zero_points": True, "calib": tmp_path / "lines.txt"}
    report = llmc.compile(folder, tmp_path / "m.llmc", **asked, target="native")
    assert {effect["pass"].partition("{")[0] for effect in report.effects} == {"gptq", "int16"}
    manifest = json.loads((tmp_path / "m.llmc" / "manifest.json").read_text())
    assert "gptq{block=48,head_bits=8,frequent=0.2,zeros=true}" in manifest["pipeline"]
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        want = model(torch.from_numpy(ids)).logits.numpy()
    with llmc.load(tmp_path / "m.llmc", threads=1) as artifact, artifact.session() as session:
        assert artifact.selftest().passed
        found = session.run({"input_ids": ids, "logits_to_keep": np.arange(8)})["logits"]
    off = np.abs(found - want).max() / np.abs(want).max()
    assert 1e-4 < off < 0.3


def test_what_another_function_has_made_cannot_be_calibrated() -> None:
    graph = causal()
    data = Quantisation("w4", "auto")
    with pytest.raises(LlmcError, match="begins with what another has made") as caught:
        next(data.samples(replace(graph, updates={}), None))
    assert graph.states[0].attributes["name"] in str(caught.value.found)
