"""Small random models of every family, inputs for them, and their outputs in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import kept_graphs
import numpy as np
import torch
import transformers

from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.tasks import TASKS, Task
from llmc.compiler.graph import Graph

VOCABULARY, PAD = 100, 1
COMMON = {
    "hidden_size": 32,  # LLVM takes long over wider products, whose edges tests/targets has
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # of 16 features, the least that attention on int8 takes
    "intermediate_size": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "bert": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
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
ENCODERS = (
    "albert",
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "electra",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
HEADS = [
    TASKS[name]
    for name in (
        *("feature-extraction", "text-classification", "token-classification", "question-answering"),
        "fill-mask",
    )
]
FEW = {"camembert": 1, "deberta-v2-conv": 1}  # RoBERTa's code again; DeBERTa with a convolution


def cases() -> list[tuple[str, Task]]:
    """Every family of encoders with every head it has."""
    pairs = [(family, task) for family in (*ENCODERS, "deberta-v2-conv") for task in HEADS[: FEW.get(family)]]
    return [*pairs, ("electra", TASKS["replaced-token-detection"])]


def random_model(family: str, suffix: str, seed: int = 0, **changes: Any) -> Any:
    """A model of the family whose weights are large enough for every part to show in the outputs."""
    model_type = family.removesuffix("-conv")
    config = transformers.AutoConfig.for_model(model_type, **{**COMMON, **SPECIAL[family], **changes})
    prefix = type(config).__name__.removesuffix("Config")
    generator = torch.Generator().manual_seed(seed)
    model = getattr(transformers, suffix if suffix.startswith(prefix) else prefix + suffix)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1 if "norm" in name.lower() and name.endswith("weight") else noise)
    return model


def layers(suffix: str) -> dict[str, int]:
    """Two layers for two heads of a family; tracing takes long, and the others differ only after the last layer."""
    if suffix in (HEADS[0].suffix, "ForTokenClassification"):
        return {}
    return {"num_hidden_layers": 1, "n_layers": 1}


@cache
def imported(family: str, suffix: str) -> tuple[Any, Imported]:
    """`random_model(family, suffix)`, and what llmc makes of its folder: traced once for all tests."""
    model = random_model(family, suffix, **layers(suffix))
    return model, kept_graphs.imported(model, max_batch=8)


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
