"""Weights as users have them: split, half, shared, behind links, under other names. All of them, or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from random_families import random_model
from safetensors.torch import load_file, save_file

from llmc.cli import main
from llmc.compiler.frontends import checkpoints, dispatch, hub, overlay, plain_folder
from llmc.compiler.frontends.folder import inspect
from llmc.compiler.frontends.pretrained import build
from llmc.compiler.frontends.quiet import quiet
from llmc.errors import LlmcError, LlmcWarning

WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
TOLD = pytest.warns(LlmcWarning)


def masked() -> Any:
    """Its decoder is the table of words."""
    return random_model("bert", "ForMaskedLM", num_hidden_layers=1)


def saved_in(folder: Path, model: Any, **options: Any) -> Path:
    with quiet():
        model.save_pretrained(folder, **options)
    return folder


def pickled(folder: Path, content: Any, name: str = PICKLE) -> None:
    (folder / WEIGHTS).unlink(missing_ok=True)
    torch.save(content, folder / name)


def built(folder: Path, task: str = "auto") -> Any:
    """The model that would be exported."""
    with plain_folder.plain(plain_folder.origin(folder)) as found, quiet():
        return build(inspect(found.path, task))[0]


def want_same(folder: Path, model: Any) -> None:
    found = built(folder)
    assert type(found) is type(model)
    wanted, states = model.state_dict(), found.state_dict()
    assert set(states) == set(wanted)
    for name, value in states.items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, wanted[name].to(value.dtype)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_numbers_of_other_sizes(dtype: torch.dtype, tmp_path: Path) -> None:
    model = masked().to(dtype)
    want_same(saved_in(tmp_path, model), model)


def test_several_files(tmp_path: Path) -> None:
    model = masked()
    saved_in(tmp_path, model, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    want_same(tmp_path, model)


def parts(state: dict[str, Any]) -> list[dict[str, Any]]:
    names = list(state)
    return [{n: state[n] for n in names[:8]}, {n: state[n] for n in names[8:]}]


def test_pickles_in_several_files(tmp_path: Path) -> None:
    model = masked()
    saved_in(tmp_path, model)
    places = {}
    for i, part in enumerate(parts(model.state_dict()), 1):
        name = f"pytorch_model-0000{i}-of-00002.bin"
        pickled(tmp_path, part, name)
        places |= dict.fromkeys(part, name)
    (tmp_path / f"{PICKLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    want_same(tmp_path, model)


def test_tensors_of_one_storage(tmp_path: Path) -> None:
    model = masked()
    saved_in(tmp_path, model)
    state = model.state_dict()
    whole, at, views = torch.cat([v.flatten().float() for v in state.values()]), 0, {}
    for name, value in state.items():
        views[name] = whole[at : at + value.numel()].view(value.shape)
        at += value.numel()
    pickled(tmp_path, views)
    want_same(tmp_path, model)


def test_names_of_before(tmp_path: Path) -> None:
    model = masked()
    saved_in(tmp_path, model)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    rename(tmp_path, lambda name: next((name.replace(k, v) for k, v in old.items() if k in name), name))
    want_same(tmp_path, model)


def rename(folder: Path, change: Callable[[str], str]) -> None:
    file = folder / WEIGHTS
    save_file({change(name): value for name, value in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "module.model."])
@pytest.mark.parametrize("suffix", ["ForMaskedLM", "Model"])
def test_wrappers(prefix: str, suffix: str, tmp_path: Path) -> None:
    model = random_model("bert", suffix, num_hidden_layers=1)
    saved_in(tmp_path, model)
    before = (tmp_path / WEIGHTS).read_bytes()
    rename(tmp_path, lambda name: prefix + name)
    with pytest.warns(LlmcWarning, match=f"read without '{prefix}'"):
        want_same(tmp_path, model)
    rename(tmp_path, lambda name: name.removeprefix(prefix))
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_wrapped_parts(tmp_path: Path) -> None:
    model = masked()
    saved_in(tmp_path, model, max_shard_size="20KB")
    for file in tmp_path.glob("*.safetensors"):
        save_file({f"module.{n}": v for n, v in load_file(file).items()}, file, {"format": "pt"})
    index = tmp_path / f"{WEIGHTS}.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {f"module.{n}": file for n, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    with TOLD:
        want_same(tmp_path, model)


def test_a_models_own_prefix_is_no_wrapper(tmp_path: Path) -> None:
    """With tied words all names of a Llama begin with `model.`."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=100, tie_word_embeddings=True, **sizes)
    model = transformers.LlamaForCausalLM(config)
    saved_in(tmp_path, model)
    assert all(name.startswith("model.") for name in load_file(tmp_path / WEIGHTS))
    assert not checkpoints.changes(tmp_path)
    want_same(tmp_path, model)
    rename(tmp_path, lambda name: f"module.{name}")
    with TOLD:
        want_same(tmp_path, model)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoints_of_trainers(key: str, tmp_path: Path) -> None:
    model = masked()
    saved_in(tmp_path, model)
    pickled(tmp_path, {"epoch": 3, key: {f"model.{n}": v for n, v in model.state_dict().items()}})
    with TOLD:
        want_same(tmp_path, model)


def test_what_a_trainer_saved_beside(tmp_path: Path) -> None:
    """A layer that the model does not have is no part of it, and is not left out in silence."""
    saved_in(tmp_path, masked())
    rename(tmp_path, lambda name: f"model.{name}")
    file = tmp_path / WEIGHTS
    save_file({**load_file(file), "criterion.weight": torch.zeros(3)}, file, {"format": "pt"})
    with (
        TOLD,
        pytest.raises(LlmcError, match=r"does not use all weights of the checkpoint: criterion\.weight"),
    ):
        built(tmp_path)


def test_a_module_in_a_pickle(tmp_path: Path) -> None:
    model = masked()
    saved_in(tmp_path, model)
    pickled(tmp_path, model)
    with pytest.raises(LlmcError, match="holds more than weights and was not opened"):
        built(tmp_path)


@pytest.mark.parametrize(
    ("family", "suffix"),
    [
        ("bert", "Model"),
        ("bert", "ForMaskedLM"),
        ("bert", "ForQuestionAnswering"),
        ("bert", "ForSequenceClassification"),
        ("bert", "ForTokenClassification"),
        ("roberta", "ForSequenceClassification"),
    ],
)
def test_without_architectures(family: str, suffix: str, tmp_path: Path) -> None:
    model = random_model(family, suffix, num_hidden_layers=1)
    saved_in(tmp_path, model)
    forget(tmp_path)
    with pytest.warns(LlmcWarning, match=f"the weights are those of {type(model).__name__}"):
        want_same(tmp_path, model)


def forget(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "architectures"}))


def test_weights_of_two_classes(tmp_path: Path) -> None:
    """One label: a regression, or a choice of several texts. Only the user can know."""
    saved_in(tmp_path, random_model("bert", "ForMultipleChoice", num_hidden_layers=1, num_labels=1))
    forget(tmp_path)
    with pytest.raises(LlmcError, match="does not use all weights") as caught:
        built(tmp_path)
    assert "say what the model is for by --task" in str(caught.value.hint)


def test_a_variant(tmp_path: Path) -> None:
    model = masked()
    saved_in(tmp_path, model, variant="fp16")
    with pytest.warns(LlmcWarning, match=r"are read from model\.fp16\.safetensors"):
        want_same(tmp_path, model)


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A model in the cache of the hub: names lead to blobs."""
    plain = saved_in(tmp_path / "plain", masked())
    home = tmp_path / "hub" / "models--owner--small"
    files = home / "snapshots" / "0123abcd"
    for folder in (home / "blobs", home / "refs", files):
        folder.mkdir(parents=True)
    (home / "refs" / "main").write_text("0123abcd")
    for i, file in enumerate(sorted(plain.iterdir())):
        os.replace(file, home / "blobs" / str(i))
        (files / file.name).symlink_to(f"../../blobs/{i}")
    return home


def test_the_cache_of_the_hub(cached: Path, tmp_path: Path, capsys: Any) -> None:
    want_same(cached / "snapshots" / "0123abcd", masked())
    want_same(cached, masked())
    assert {hub.name_of(p) for p in (cached, cached / "snapshots" / "0123abcd")} == {"small"}
    assert main(["inspect", str(cached), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "BertForMaskedLM"
    (cached / "refs" / "main").write_text("../../elsewhere")
    (tmp_path / "elsewhere").mkdir()
    assert hub.snapshot(cached) == cached


def test_a_name_of_the_cache_reaches_the_artifact(cached: Path, monkeypatch: Any) -> None:
    asked: list[Path] = []

    def compiled(model: Path, output: Path, **options: Any) -> Any:
        asked.append(output)
        raise LlmcError("asked")

    monkeypatch.setattr("llmc.cli.compile.run_compile", compiled)
    assert main(["compile", str(cached)]) == 1
    assert asked == [Path("small.llmc")]


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
    with TOLD:
        want_same(quantised.parent, model)
    assert main(["inspect", str(quantised), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model_type"] == "llama"
    assert facts["gguf"] == f"{quantised} (F32, Q8_0)"


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


def test_a_head_in_a_file_of_its_own_is_not_lost(tmp_path: Path) -> None:
    """What is renamed leaves everything else where it was."""
    saved_in(tmp_path, masked())
    rename(tmp_path, lambda name: f"module.{name}")
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "model_head.safetensors")
    with TOLD, pytest.raises(LlmcError, match="a SetFit head"):
        built(tmp_path)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.fp16.safetensors", True),
        ("model.safetensors.index.json", True),
        ("pytorch_model.bin", True),
        ("model_head.safetensors", False),
        ("model.onnx", False),
        ("adapter_model.safetensors", False),
        ("training_args.bin", False),
    ],
)
def test_what_are_weights(name: str, weights: bool) -> None:
    assert overlay.is_weights(name) == weights
