"""Weights as users have them: split, half, shared, behind links, under other names. All of them, or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from built_folders import built, want_same
from random_families import random_model
from safetensors.torch import load_file, save_file

from llmc.cli import main
from llmc.compiler.frontends import checkpoints, hub, overlay
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
