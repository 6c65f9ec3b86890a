"""Small random models saved as Hugging Face folders, and the comparison with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run

VOCABULARY, PAD = 100, 1
COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "bert": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "roberta": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "xlm-roberta": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "camembert": {"max_position_embeddings": 66, "type_vocab_size": 2},
    "electra": {"embedding_size": 16},
    "mpnet": {"max_position_embeddings": 66},
    "albert": {"embedding_size": 16},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "deberta-v2-conv": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3,
        "conv_act": "gelu",
        "type_vocab_size": 2,
    },
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


def random_model(family: str, suffix: str, **changes: Any) -> Any:
    """A model of the family whose weights are large enough for every part to show in the outputs."""
    model_type = family.removesuffix("-conv")
    config = transformers.AutoConfig.for_model(model_type, **{**COMMON, **SPECIAL[family], **changes})
    prefix = type(config).__name__.removesuffix("Config")
    generator = torch.Generator().manual_seed(0)
    model = getattr(transformers, prefix + suffix)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1 if "norm" in name.lower() and name.endswith("weight") else noise)
    return model


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """`make_model(family, class suffix, **config)`: see random_model."""
    return random_model


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """`saved(family, class suffix, **config) -> (folder, model)`"""

    def save(family: str, suffix: str, **changes: Any) -> tuple[Path, Any]:
        model = random_model(family, suffix, **changes)
        folder = tmp_path / f"{family}-{suffix}"
        model.save_pretrained(folder)
        return folder, model

    return save


def sample(graph: Graph, batch: int, seq: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random ids within each input's range; every row but the first is padded on the right."""
    rng = np.random.default_rng(batch * 1000 + seq)
    values = {}
    lengths = np.maximum(seq - np.arange(batch) * max(seq // batch, 1), 1)
    kept = np.arange(seq) < lengths[:, None]
    for node in graph.inputs:
        name, high = node.attributes["name"], node.attributes["high"]
        values[name] = rng.integers(2 if name == "input_ids" else 0, high + 1, (batch, seq))
    values["input_ids"] = np.where(kept, values["input_ids"], PAD)
    values["attention_mask"] = kept.astype(np.int64)
    return values


def reference(model: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The transformers model's outputs as arrays."""
    with torch.no_grad():
        result = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}, return_dict=True)
    return {k: v.numpy() for k, v in result.items() if isinstance(v, torch.Tensor)}


def largest_difference(model: Any, graph: Graph, shapes: list[tuple[int, int]]) -> float:
    """The largest difference to PyTorch as a fraction of the output's largest value."""
    worst = 0.0
    for batch, seq in shapes:
        inputs = sample(graph, batch, seq)
        expected = reference(model, inputs)
        for name, value in run(graph, inputs).items():
            assert value.shape == expected[name].shape
            worst = max(worst, float(np.abs(value - expected[name]).max() / np.abs(expected[name]).max()))
    return worst


@pytest.fixture(scope="session")
def difference() -> Callable[..., float]:
    """`difference(model, graph, shapes)`: see largest_difference."""
    return largest_difference


@pytest.fixture(scope="session")
def sample_inputs() -> Callable[..., dict[str, np.ndarray[Any, Any]]]:
    """`sample_inputs(graph, batch, seq)`: see sample."""
    return sample
