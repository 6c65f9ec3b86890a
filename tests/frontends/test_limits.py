"""Families that cannot be compiled, or only for short texts: what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from random_any import TEXT, made
from random_seq2seq import LEARNED

from llmc.compiler.frontends import limits
from llmc.compiler.frontends.huggingface import load
from llmc.errors import LlmcError

DOGE = {**TEXT, "num_hidden_layers": 1, "keep_window_size": 8}
EXPERTS = {"num_experts": 4, "encoder_sparse_step": 1, "decoder_sparse_step": 1, "expert_capacity": 64}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "FalconForCausalLM": (
        {k: v for k, v in TEXT.items() if k not in ("intermediate_size", "max_position_embeddings")}
        | {"alibi": True, "new_decoder_architecture": False},
        "Falcon with alibi has no one answer",
        "eager attention",
    ),
    "DogeForCausalLM": (DOGE, "Doge's choice of 8 keys is not supported for sequences of 64", "--max-seq 8"),
    "LxmertForQuestionAnswering": (
        {
            **{"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
            **{"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 16, "num_qa_labels": 5},
        },
        "LXMERT reads what a detector has found",
        "visual_feats",
    ),
    "NllbMoeForConditionalGeneration": ({**LEARNED, **EXPERTS}, "only the first two experts", "mask"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_said_of_a_family(name: str, tmp_path: Path) -> None:
    settings, problem, found = CASES[name]
    made(name, settings).save_pretrained(tmp_path)
    with pytest.raises(LlmcError) as caught:
        load(tmp_path)
    assert problem in caught.value.problem
    assert found in str(caught.value)
    assert caught.value.hint


def test_doge_generates_within_its_window(tmp_path: Path) -> None:
    """Where no text is longer than the keys that are kept, none is left out."""
    made("DogeForCausalLM", DOGE).save_pretrained(tmp_path)
    assert list(load(tmp_path, max_seq=8).functions) == ["step"]


def test_a_reason_stands_before_what_the_export_said() -> None:
    class Config:
        model_type = "led"

    config = Config()
    traced = LlmcError("torch.export cannot trace the model: Eq(u1, 1)", at="modeling_led.py:351")
    told = limits.explained(traced, config, "here")
    assert told.problem.startswith("led cannot be compiled: its attention asks of each text")
    assert (told.at, told.found) == ("here", "modeling_led.py:351: Eq(u1, 1)")
    other = LlmcError("the imported graph cannot be run")
    assert limits.explained(other, config, "here") is other
    config.model_type = "bert"
    assert limits.explained(traced, config, "here") is traced
