"""Decoders and vision models against PyTorch, as imported and after the passes, and what becomes of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from random_others import CONFIGS, DECODERS, WHOLE, difference, imported, random_model, sample

from llmc.compiler.frontends.huggingface import load
from llmc.compiler.interpret import run
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES

SHAPES = [(1, 1), (3, 17), (2, 64)]
pytestmark = pytest.mark.xdist_group("others")  # tests/endtoend compiles the same imported models


@pytest.fixture(scope="module")
def made() -> Callable[[str], Any]:
    """`made(name)`: folder, model, imported and optimised graph, made once."""

    @cache
    def of(name: str) -> Any:
        found = imported(name)
        return *found, Pipeline.parse(LEVELS[3], PASSES).run(found[2].graph)[0]

    return of


@pytest.mark.imports
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_pass(name: str, made: Any) -> None:
    _, model, imported, graph = made(name)
    assert imported.task == (WHOLE if name in DECODERS else "image-classification")
    for version in (imported.graph, graph):
        verify(version)
        for shape in SHAPES:
            inputs = sample(name, *shape)
            assert difference(model, inputs, run(version, inputs)["logits"]) <= 2e-5


@pytest.mark.parametrize("name", [n for n in DECODERS if n != "mistral-window"])
def test_causal_attention_stays_a_flag(name: str, made: Any) -> None:
    _, _, imported, graph = made(name)

    masks = [n.inputs[3] for n in imported.graph.nodes if n.op == "attention"]
    assert {str(m.type) for m in masks} == {"bool[batch, 1, 1, seq]"}
    cores = [n for n in graph.nodes if n.op == "mha"]
    assert len(cores) == 2
    for core in cores:
        assert core.attributes["causal"]
        assert core.attributes["has_keys"]
        assert not core.attributes["has_bias"]
        assert core.attributes["kv_heads"] == (None if name == "gpt2" else 2)


def test_a_window_narrower_than_the_sequence_is_a_mask(made: Any) -> None:
    _, _, _, graph = made("mistral-window")
    masks = {str(n.inputs[3].type) for n in graph.nodes if n.op == "attention"}
    assert masks == {"bool[batch, 1, seq, seq]"}


@pytest.mark.parametrize("window", [8, 64])
def test_windows_of_qwen2(window: int, tmp_path: Path) -> None:
    """A window as long as the sequence is none; the others are in the layers that have them."""
    options = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    model = random_model("qwen2", **options)
    model.save_pretrained(tmp_path)
    graph = load(tmp_path, WHOLE, max_batch=2, max_seq=16).graph
    masks = {str(n.inputs[3].type) for n in graph.nodes if n.op == "attention"}
    assert ("bool[batch, 1, seq, seq]" in masks) == (window < 16)
    inputs = sample("qwen2", 2, 16)
    assert difference(model, inputs, run(graph, inputs)["logits"]) <= 2e-5


def test_parts_of_llama_are_whole(made: Any) -> None:
    """Norms are one op, rotary tables constants, embedding and head one weight, and nothing is transposed."""
    _, _, _, graph = made("llama")
    count = Counter(n.op for n in graph.nodes)
    assert count["rms_norm"] == 5
    assert not {"cos", "sin", "transpose", "expand", "mean"} & count.keys()
    tables = [n for n in graph.nodes if n.op == "slice" and n.inputs[0].op == "constant"]
    assert [t.inputs[0].shape for t in tables] == [(1, 64, 1, 8)] * 2 or len(tables) == 2
    words = next(n for n in graph.nodes if n.op == "embedding")
    assert graph.outputs["logits"].inputs[1] is words.inputs[0]


def test_bounds_of_ids(made: Any) -> None:
    for name in ("gpt2", "llama"):
        _, _, imported, _ = made(name)
        ids = imported.graph.inputs[0]
        assert (ids.attributes["low"], ids.attributes["high"]) == (0, 99)
        assert imported.graph.dims["seq"] == (1, 64)


def test_convolutions_take_what_follows(made: Any) -> None:
    _, _, _, graph = made("mobilenet_v2")
    count = Counter(n.op for n in graph.nodes if n.op != "constant")
    assert count == {"conv2d": 52, "input": 1, "reshape": 1, "linear": 1}  # the mean is of one pixel
    steps = Counter(n.attributes["epilogue"] for n in graph.nodes if n.op == "conv2d")
    assert steps == {("bias", "relu6"): 35, ("bias", "residual"): 10, ("bias",): 7}


def test_preprocessing_is_read(made: Any, tmp_path: Path) -> None:
    original, _, imported, _ = made("vit")
    assert imported.preprocess == {}
    folder = Path(shutil.copytree(original, tmp_path / "vit"))
    settings = {
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "do_normalize": False,
        "image_mean": [0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    found = load(folder, max_batch=2)
    assert found.preprocess == {
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "rescale_factor": 1 / 255,
    }
    assert found.processor is not None


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("llama", "fill-mask", "llama models have no head for fill-mask"),
        ("vit", "text-generation", "vit models have no head for text-generation"),
    ],
)
def test_other_heads_are_refused(name: str, task: str, message: str, made: Any) -> None:
    with pytest.raises(LlmcError, match=message):
        load(made(name)[0], task=task)


def test_length_dependent_rotary_is_refused(made: Any, tmp_path: Path) -> None:
    folder, _, _, _ = made("llama")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    scaling = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config["rope_parameters"] = {**scaling, "original_max_position_embeddings": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, max_seq=16).graph.dims["seq"] == (1, 16)  # where nothing changes
    with pytest.raises(LlmcError, match="'dynamic' is not supported for sequences of"):
        load(tmp_path)


def test_a_wrong_image_size_is_refused(made: Any, tmp_path: Path) -> None:
    folder, _, _, _ = made("mobilenet_v2")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_size": -3}))
    with pytest.raises(LlmcError, match="image_size"):
        load(tmp_path)


def test_settings_that_contradict_each_other_are_no_bug(tmp_path: Path) -> None:
    """transformers finds out when the model runs: layers slide, and nothing says how far."""
    options = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    config = transformers.Qwen2Config(**{**CONFIGS["llama"], **options})
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": None}))
    with pytest.raises(
        LlmcError, match="transformers cannot run the model: Could not find a `sliding_window`"
    ) as caught:
        load(tmp_path)
    assert caught.value.at == str(tmp_path / "config.json")
    assert "saved with these weights" in str(caught.value.hint)
