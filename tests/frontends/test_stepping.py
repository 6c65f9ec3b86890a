"""Decoders as the function `step`: call by call they compute what transformers does for the whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_any import DECODER, TEXT, made

from llmc.compiler.frontends import stepping
from llmc.compiler.frontends.huggingface import load
from llmc.compiler.interpret import step
from llmc.compiler.module import State
from llmc.errors import LlmcError, LlmcWarning

MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 100, "pad_token_id": 1}
LATER = {**DECODER, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CASES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": DECODER,
    "GPT2LMHeadModel": {k: v for k, v in LATER.items() if k.startswith(("n_", "vocab", "pad"))},
    "MistralForCausalLM": {**DECODER, "sliding_window": 8},
    "Gemma2ForCausalLM": {**DECODER, "sliding_window": 8},
    "Gemma3ForCausalLM": {
        **DECODER,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "BloomForCausalLM": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "pad_token_id": 1},
    "MixtralForCausalLM": {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    "GptOssForCausalLM": {
        **{**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "OPTForCausalLM": {**DECODER, "word_embed_proj_dim": 32, "ffn_dim": 48},
    "MambaForCausalLM": MAMBA,
    "BambaForCausalLM": {
        **{**DECODER, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2},
        **{"mamba_d_state": 6, "mamba_chunk_size": 8},
    },
}
CALLS = (7, 1, 1, 4, 1, 12, 3)


def folder(name: str, place: Path, **changes: Any) -> Any:
    model = made(name, {**CASES[name], **changes})
    model.save_pretrained(place)
    return model


def played(graph: Any, ids: np.ndarray[Any, Any], calls: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """All logits of a text [1, n], in calls of so many tokens."""
    states: Any = {}
    found, at = [], 0
    for tokens in calls:
        given = {"input_ids": ids[:, at : at + tokens], "logits_to_keep": np.arange(tokens)}
        outputs, states = step(graph, given, states)
        found.append(outputs["logits"])
        at += tokens
    return np.concatenate(found, 1)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.imports) if n == "LlamaForCausalLM" else n for n in CASES]
)
def test_every_step_is_that_of_the_whole_text(name: str, tmp_path: Path) -> None:
    model = folder(name, tmp_path)
    found = load(tmp_path)
    graph = found.functions["step"]
    length = None if name == "MambaForCausalLM" else "past"
    assert (found.task, found.generation["length"], found.generation["vocabulary"]) == (
        "text-generation",
        length,
        100,
    )
    ids = np.random.default_rng(0).integers(4, 100, (1, sum(CALLS)))
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids), use_cache=False).logits.numpy()
    for calls in (CALLS, (sum(CALLS),)):
        away = np.abs(played(graph, ids, calls) - wanted).max() / np.abs(wanted).max()
        assert away < 1e-5, calls


def test_a_state_for_every_key_and_value(tmp_path: Path) -> None:
    """No mask is made, and only the logits asked for are computed."""
    folder("MistralForCausalLM", tmp_path)
    graph = load(tmp_path).functions["step"]
    states = {s.name: str(s) for s in map(State.of, graph.states)}
    assert states == {
        f"layers.{layer}.{part}": "f32[1, 2, past, 8], axis 2 grows"
        for layer in (0, 1)
        for part in ("keys", "values")
    }
    cores = [n for n in graph.nodes if n.op == "attention"]
    assert [(n.attributes["causal"], n.attributes["window"], len(n.inputs)) for n in cores] == [
        (True, 8, 3)
    ] * 2
    head = graph.outputs["logits"]
    assert str(head.shape) == "(1, kept, 100)"
    assert str(head.inputs[0].shape) == "(1, kept, 32)"


def test_sinks_lie_before_the_keys(tmp_path: Path) -> None:
    """Behind them their place in the sum of a row would change with each token of a call."""
    model = folder("GptOssForCausalLM", tmp_path)
    graph = load(tmp_path).functions["step"]
    shares = [n for n in graph.nodes if n.op == "softmax" and n.type.rank == 4]
    assert len(shares) == 2
    for node in shares:
        (row,) = node.inputs
        joined = row.inputs[0] if row.op == "sub" else row
        assert [str(part.shape[-1]) for part in joined.inputs] == ["1", "past + seq"]
    ids = np.random.default_rng(0).integers(4, 100, (1, sum(CALLS)))
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids), use_cache=False).logits.numpy()
    assert np.abs(played(graph, ids, CALLS) - wanted).max() / np.abs(wanted).max() < 1e-5


def test_states_of_recurrences_and_convolutions_keep_their_shape(tmp_path: Path) -> None:
    """Beside them the attention's grow, and one length counts the tokens."""
    folder("BambaForCausalLM", tmp_path)
    states = {s.name: str(s) for s in map(State.of, load(tmp_path).functions["step"].states)}
    assert states == {
        "layers.0.conv_states": "f32[1, 88, 4]",
        "layers.0.recurrent_states": "f32[1, 8, 8, 6]",
        "layers.1.keys": "f32[1, 2, past, 8], axis 2 grows",
        "layers.1.values": "f32[1, 2, past, 8], axis 2 grows",
    }


def test_a_window_as_long_as_the_text_is_none(tmp_path: Path) -> None:
    folder("MistralForCausalLM", tmp_path)
    graph = load(tmp_path, max_seq=8).functions["step"]
    assert {n.attributes["window"] for n in graph.nodes if n.op == "attention"} == {None}


def test_states_that_cannot_be_placed_are_told(tmp_path: Path) -> None:
    made("BertLMHeadModel", TEXT).save_pretrained(tmp_path)
    with pytest.warns(LlmcWarning, match="token by token: BertLMHeadModel keeps nothing from call to call"):
        found = load(tmp_path)
    assert (found.task, dict(found.functions), found.generation) == ("language-modeling", {}, {})


def test_a_step_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder("LlamaForCausalLM", tmp_path)

    def wrong(ids: Any) -> Any:
        with torch.no_grad():
            return model(ids, use_cache=False).logits.numpy() * 1.01

    with pytest.raises(LlmcError, match="computes other logits, token by token"):
        stepping.step_graph(model, 64, "here", wrong)


def test_rows_of_weights_are_not_repeated_for_heads_that_share_keys(tmp_path: Path) -> None:
    folder("LlamaForCausalLM", tmp_path)
    graph = load(tmp_path).functions["step"]
    assert not [n for n in graph.nodes if n.op == "expand" and n.type.rank > 3]
