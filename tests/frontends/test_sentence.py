"""sentence-transformers folders: pooling, dense layers and normalisation are part of the graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llmc.compiler.constraints import constraints
from llmc.compiler.frontends.huggingface import load
from llmc.compiler.frontends.sentence import POOLING
from llmc.compiler.interpret import run
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.rows.ragged import ragged_steps

KEYS = {mode: key for key, mode in POOLING.items()}


def add_modules(path: Path, modes: list[str], *kinds: str) -> None:
    """modules.json and 1_Pooling as sentence-transformers writes them."""
    entries = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    entries.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    entries += [{"path": f"2_{k}", "type": f"sentence_transformers.models.{k}"} for k in kinds]
    (path / "modules.json").write_text(json.dumps(entries))
    (path / "1_Pooling").mkdir(exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps({KEYS[m]: True for m in modes}))


def pooled(hidden: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], mode: str) -> np.ndarray[Any, Any]:
    """sentence-transformers' definitions, row by row."""
    rows = []
    for tokens, kept in zip(hidden.astype(np.float64), mask.astype(bool), strict=True):
        real = tokens[kept]
        weights = np.arange(1, len(tokens) + 1)[kept]
        rows.append(
            {
                "cls": lambda real=real: real[0],
                "max": lambda real=real: real.max(0),
                "mean": lambda real=real: real.mean(0),
                "mean_sqrt_len_tokens": lambda real=real: real.sum(0) / np.sqrt(len(real)),
                "weightedmean": lambda real=real, weights=weights: weights @ real / weights.sum(),
            }[mode]()
        )
    return np.stack(rows)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean"])
def test_pooling(mode: str, saved: Any, sample_inputs: Any) -> None:
    path, _ = saved("bert", "Model")
    add_modules(path, [mode])

    imported = load(path)

    assert imported.task == "sentence-embedding"
    assert imported.sentence is not None
    assert not imported.sentence.normalized
    inputs = sample_inputs(imported.graph, 3, 12)
    result = run(imported.graph, inputs)
    expected = pooled(result["last_hidden_state"], inputs["attention_mask"], mode)
    np.testing.assert_allclose(result["sentence_embedding"], expected, rtol=0, atol=1e-5)


def test_cls_of_rows_padded_on_the_left(saved: Any) -> None:
    """The first token, as sentence-transformers 6 takes it; on rows of tokens too."""
    path, _ = saved("bert", "Model")
    add_modules(path, ["cls"])
    graph = load(path).graph
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    inputs = {"input_ids": np.random.default_rng(0).integers(2, 100, mask.shape), "attention_mask": mask}
    result = run(graph, inputs)
    expected = result["last_hidden_state"][np.arange(4), [2, 0, 1, 0]]
    np.testing.assert_array_equal(result["sentence_embedding"], expected)

    fused = Pipeline.parse(LEVELS[3], PASSES).run(graph)[0]
    after = ragged_steps(fused, blank=True).run(fused)[0]
    assert any(node.op == "ragged_mha" for node in after.nodes)
    packed = run(after, inputs)["sentence_embedding"]
    np.testing.assert_allclose(packed, expected, rtol=0, atol=1e-5)


def test_two_modes_dense_and_normalize(saved: Any, sample_inputs: Any) -> None:
    path, _ = saved("bert", "Model")
    add_modules(path, ["cls", "mean"], "Dense", "Normalize")
    (path / "2_Dense").mkdir()
    (path / "2_Dense" / "config.json").write_text(
        json.dumps(
            {"in_features": 64, "out_features": 8, "activation_function": "torch.nn.modules.activation.Tanh"}
        )
    )
    weight, bias = torch.randn(8, 64) * 0.1, torch.randn(8)
    save_file({"linear.weight": weight, "linear.bias": bias}, path / "2_Dense" / "model.safetensors")

    imported = load(path)

    assert imported.sentence is not None
    assert imported.sentence.normalized
    inputs = sample_inputs(imported.graph, 3, 12)
    result = run(imported.graph, inputs)
    parts = [pooled(result["last_hidden_state"], inputs["attention_mask"], m) for m in ("cls", "mean")]
    dense = np.tanh(np.concatenate(parts, -1) @ weight.numpy().T + bias.numpy())
    expected = dense / np.linalg.norm(dense, axis=-1, keepdims=True)
    np.testing.assert_allclose(result["sentence_embedding"], expected, rtol=0, atol=1e-5)


def test_dense_before_the_pooling(saved: Any, sample_inputs: Any) -> None:
    """Of each token's vector: tanh of a mean is no mean of tanh. And `truncate_dim` cuts what comes out."""
    path, _ = saved("bert", "Model", num_hidden_layers=1)
    add_modules(path, ["mean"], "Dense")
    entries = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([entries[0], entries[2], entries[1]]))
    (path / "2_Dense").mkdir()
    config = {"in_features": 32, "out_features": 8, "module_input_name": "token_embeddings"}
    (path / "2_Dense" / "config.json").write_text(json.dumps(config))
    (path / "config_sentence_transformers.json").write_text('{"truncate_dim": 5}')
    weight, bias = torch.randn(8, 32), torch.randn(8)
    save_file({"linear.weight": weight, "linear.bias": bias}, path / "2_Dense" / "model.safetensors")

    graph = load(path).graph

    inputs = sample_inputs(graph, 3, 12)
    result = run(graph, inputs)
    tokens = np.tanh(result["last_hidden_state"] @ weight.numpy().T + bias.numpy())
    expected = pooled(tokens, inputs["attention_mask"], "mean")[:, :5]
    np.testing.assert_allclose(result["sentence_embedding"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("order", "name"), [((0, 2, 1), "sentence_embedding"), ((0, 1, 2), "token_embeddings")]
)
def test_dense_on_the_wrong_side(order: tuple[int, ...], name: str, saved: Any) -> None:
    path, _ = saved("bert", "Model", num_hidden_layers=1)
    add_modules(path, ["mean"], "Dense")
    entries = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([entries[i] for i in order]))
    (path / "2_Dense").mkdir()
    (path / "2_Dense" / "config.json").write_text(json.dumps({"module_input_name": name}))
    with pytest.raises(LlmcError, match=r"Dense .* the pooling reads and writes"):
        load(path)


def test_no_pooling(saved: Any) -> None:
    path, _ = saved("bert", "Model", num_hidden_layers=1)
    add_modules(path, ["mean"])
    entries = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps(entries[:1]))
    with pytest.raises(LlmcError, match="has no Pooling"):
        load(path)


def test_plain_features_of_a_sentence_folder(saved: Any) -> None:
    path, _ = saved("bert", "Model")
    add_modules(path, ["mean"])

    imported = load(path, task="feature-extraction")

    assert imported.sentence is None
    assert tuple(imported.graph.outputs) == ("last_hidden_state", "pooler_output")


def test_what_is_not_supported(saved: Any) -> None:
    path, _ = saved("bert", "Model")
    add_modules(path, ["mean"])
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "attention"}')
    with pytest.raises(LlmcError, match="pooling mode 'attention' is not supported"):
        load(path)
    add_modules(path, ["mean"], "WordEmbeddings")
    with pytest.raises(LlmcError, match="module WordEmbeddings is not supported"):
        load(path)
    (path / "modules.json").write_text("[{")
    with pytest.raises(LlmcError, match=r"modules\.json is not valid JSON"):
        load(path)


def test_minilm(minilm: Path) -> None:
    """The real weights: hidden states and embeddings against PyTorch."""
    from transformers import BertModel

    imported = load(minilm)

    assert imported.tokenizer is not None
    assert (imported.tokenizer.max_length, imported.tokenizer.pad_id) == (256, 0)
    assert constraints(imported.graph) == ()
    model = BertModel.from_pretrained(minilm, local_files_only=True).eval()
    for batch, seq in ((1, 1), (3, 31)):
        inputs = sample_of(batch, seq)
        result = run(imported.graph, inputs)
        with torch.no_grad():
            hidden = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).last_hidden_state.numpy()
        np.testing.assert_allclose(result["last_hidden_state"], hidden, rtol=0, atol=2e-5)
        mean = pooled(hidden, inputs["attention_mask"], "mean")
        expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
        np.testing.assert_allclose(result["sentence_embedding"], expected, rtol=0, atol=1e-6)


def sample_of(batch: int, seq: int) -> dict[str, Any]:
    rng = np.random.default_rng(seq)
    mask = (np.arange(seq) < np.maximum(seq - 5 * np.arange(batch), 1)[:, None]).astype(np.int64)
    return {
        "input_ids": rng.integers(1, 30000, (batch, seq)),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (batch, seq)),
    }
