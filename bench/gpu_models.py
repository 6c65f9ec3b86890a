"""The models that bench/gpu.py runs, made the same way where they are compiled and where they race.

Speed does not depend on the values of weights. Those of random models are +c or -c in each matrix: exact in fp16 and
int8, and a tenth of the size when a prepared folder is packed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
WORDS = 4000  # of the random models


@dataclass(frozen=True)
class Subject:
    """A BERT with a classifier of two labels.

    Args:
        layers, width, heads, inner: of a random model; zeros for the demo model, which is read from its folder.
        precisions: that it is compiled for, as `PRECISIONS` has them.
        checks: batch x sequence whose answers the interpreter gives; the last row of each is padded.
    """

    layers: int = 0
    width: int = 0
    heads: int = 0
    inner: int = 0
    checks: tuple[tuple[int, int], ...] = ((1, 1), (1, 16), (3, 33), (4, 128))
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8", "w8", "w4", "w4a8", "bf16")

    @property
    def words(self) -> int:
        return WORDS if self.layers else 4000

    def config(self) -> Any:
        from transformers import BertConfig

        return BertConfig(
            vocab_size=WORDS,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.inner,
            max_position_embeddings=512,
            num_labels=2,
        )


SUBJECTS: Mapping[str, Subject] = MappingProxyType(
    {
        "demo": Subject(),
        "minilm-size": Subject(6, 384, 12, 1536),
        # Half of the layers of bert-base.
        "base-size": Subject(6, 768, 12, 3072, ((1, 16), (2, 65)), ("fp32", "fp16")),
    }
)
PRECISIONS: Mapping[str, str] = MappingProxyType(
    {"fp32": "none", **{quant: quant for quant in ("fp16", "int8", "w8", "w4", "w4a8", "bf16")}}
)
RACES = ((1, 16), (1, 128), (8, 128), (32, 128), (1, 8))  # the last: as few rows as next tokens have


def torch_model(name: str, demo: Path) -> Any:
    """The model in eval mode on the CPU, fp32; `demo` is the demo model's folder."""
    from transformers import BertForSequenceClassification

    subject = SUBJECTS[name]
    if not subject.layers:
        return BertForSequenceClassification.from_pretrained(demo).float().eval()
    model = BertForSequenceClassification(subject.config()).eval()
    for key, parameter in model.named_parameters():
        _fill(key, parameter)
    return model


def _fill(key: str, parameter: Any) -> None:
    """Signs drawn by the parameter's name; scales that keep attention and activations in a model's usual range."""
    import torch

    if "LayerNorm.weight" in key:
        return
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    shape = tuple(parameter.shape)
    scale = 0.01 if len(shape) == 1 else 0.05 if "embeddings" in key else shape[1] ** -0.5
    scale *= 1.5 if "query" in key or "key" in key else 1.0
    signs = rng.integers(0, 2, shape) * 2 - 1
    with torch.no_grad():
        parameter.copy_(torch.from_numpy((signs * scale).astype(np.float32)))


def tokens(subject: Subject, batch: int, seq: int, padded: bool) -> Arrays:
    """Inputs of one run."""
    rng = np.random.default_rng([batch, seq])
    mask = np.ones((batch, seq), np.int64)
    if padded:
        mask[-1, seq // 2 + 1 :] = 0
    return {"input_ids": rng.integers(5, subject.words, (batch, seq)), "attention_mask": mask}
