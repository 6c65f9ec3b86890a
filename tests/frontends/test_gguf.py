"""GGUF files: weights and vocabulary as llama.cpp has them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from built_folders import want_same

from llmc import kept_imports
from llmc.cli import main
from llmc.compiler.frontends import dispatch, graph_text, plain_folder
from llmc.compiler.frontends.quiet import quiet
from llmc.compiler.module_text import text_of
from llmc.compiler.text import weights_of
from llmc.errors import LlmcError, LlmcWarning

gguf = pytest.importorskip("gguf")
HEADS, WIDTH, WORDS = 2, 64, 64
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            vocab_size=WORDS,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
    ).eval()


def in_gguf(name: str, value: np.ndarray[Any, Any]) -> tuple[str, np.ndarray[Any, Any]]:
    """llama.cpp's name of a weight, and its rows in its order."""
    if name in ENDS:
        return ENDS[name], value
    part = name.removeprefix("model.layers.0.").removesuffix(".weight")
    if part in ("self_attn.q_proj", "self_attn.k_proj"):
        value = value.reshape(HEADS, 2, -1, WIDTH).swapaxes(1, 2).reshape(value.shape)
    return f"blk.0.{NAMES[part]}.weight", value


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    """A Llama in 8 bits as llama.cpp writes it."""
    file = tmp_path / "small-q8.gguf"
    out = gguf.GGUFWriter(str(file), "llama")
    out.add_context_length(64)
    out.add_embedding_length(WIDTH)
    out.add_block_count(1)
    out.add_feed_forward_length(96)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(WORDS)
    words = ["<unk>", "<s>", "</s>", *"abcdefgh", "ab"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list([*words, *(f"x{i}" for i in range(WORDS - len(words)))])
    out.add_token_types([3, 3, 3] + [1] * (WORDS - 3))
    out.add_token_merges(["a b"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, value in llama().state_dict().items():
        theirs, array = in_gguf(name, value.numpy())
        if array.ndim == 2:
            out.add_tensor(theirs, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            out.add_tensor(theirs, array)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


def test_gguf(quantised: Path, difference: Any, capsys: Any) -> None:
    """The file, and a folder with nothing else: dequantised as transformers does."""
    with quiet():
        kind = transformers.AutoModelForCausalLM
        model = kind.from_pretrained(quantised.parent, gguf_file=quantised.name)
    with pytest.warns(LlmcWarning, match="weights in F32, Q8_0 become f32 numbers"):
        imported = dispatch.load(quantised, task="language-modeling")
    assert (imported.name, imported.task) == ("small-q8", "language-modeling")
    assert imported.tokenizer is not None
    assert imported.tokenizer.file.parent.parent == quantised.parent
    assert '"ab"' in imported.tokenizer.text
    assert difference(model, imported.graph, [(1, 6)]) < 1e-5
    with pytest.warns(LlmcWarning):
        want_same(quantised.parent, model)
    assert main(["inspect", str(quantised), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model_type"] == "llama"
    assert facts["gguf"] == f"{quantised} (F32, Q8_0)"


@pytest.mark.parametrize("alone", [True, False])
def test_the_second_import_is_the_first(
    quantised: Path, alone: bool, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept has no weights: they are in the file, queries and keys in another order."""
    cache, model = tmp_path_factory.mktemp("cache"), quantised if alone else quantised.parent
    monkeypatch.setenv("LLMC_CACHE", str(cache))
    with pytest.warns(LlmcWarning, match="weights in F32, Q8_0 become f32 numbers"):
        first = kept_imports.load(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "load", None)
        with pytest.warns(LlmcWarning, match="weights in F32, Q8_0 become f32 numbers"):
            second = kept_imports.load(model)
    assert text_of(second.module) == text_of(first.module)
    assert graph_text.texts_of(second) == graph_text.texts_of(first)
    assert (second.name, second.tokenizer.file) == (first.name, first.tokenizer.file)
    again, bytes_ = weights_of(second.functions["step"]), 0
    for digest, weight in weights_of(first.functions["step"]).items():
        assert again[digest].array.tobytes() == weight.array.tobytes(), weight.name
        bytes_ += weight.array.nbytes
    (file,) = (cache / "imports").iterdir()
    assert file.stat().st_size < bytes_ // 2


def test_its_floats_are_watched(quantised: Path) -> None:
    with pytest.warns(LlmcWarning), plain_folder.plain(plain_folder.origin(quantised)) as found:
        assert f"resident {found.path.parent.resolve()}" in {thread.name for thread in threading.enumerate()}


def test_gguf_that_is_none(quantised: Path, tmp_path: Path) -> None:
    second = quantised.with_name("other.gguf")
    second.write_bytes(quantised.read_bytes()[:200])
    with pytest.raises(LlmcError, match=r"several GGUF files"):
        dispatch.load(quantised.parent)
    with pytest.raises(LlmcError, match="cannot read the GGUF file"):
        dispatch.load(second)
    second.write_bytes(b"no GGUF")
    with pytest.raises(LlmcError, match=r"other\.gguf is not a GGUF file"):
        dispatch.load(second)
    part = quantised.with_name("m-00001-of-00002.gguf")
    quantised.rename(part)
    with pytest.raises(LlmcError, match="a part of a model in several GGUF files"):
        dispatch.load(part)
    with pytest.raises(LlmcError, match="no such model file"):
        dispatch.load(tmp_path / "nowhere.gguf")


def test_gguf_is_asked_for(quantised: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(LlmcError, match="this needs the package gguf") as caught:
        dispatch.load(quantised)
    assert caught.value.hint == "pip install 'llmc[gguf]'"
