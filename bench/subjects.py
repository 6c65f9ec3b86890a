"""The models that race: MiniLM with its real weights, shapes of others with random weights from a fixed seed.

Speed does not depend on the values of weights, so shapes that are not to be had offline are made by transformers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Subject:
    """A Hugging Face folder and what is computed with it.

    Args:
        name: for tables.
        folder: with config.json and weights.
        task: as `llmc compile --task` calls it.
        config: of transformers.
    """

    name: str
    folder: Path
    task: str
    config: Any

    @property
    def output(self) -> str:
        """The output that is compared."""
        return "last_hidden_state" if self.task == "feature-extraction" else "logits"

    @property
    def image(self) -> bool:
        """Whether inputs are images: then a shape is a batch, and the number of tokens is the model's."""
        return bool(self.task == "image-classification")

    @property
    def tokens(self) -> int:
        """Of an image: its patches and the class token."""
        return int((self.config.image_size // self.config.patch_size) ** 2 + 1)

    def shapes(self, asked: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of the shapes asked for (batch, seq) that this model can take."""
        if self.image:
            return [(batch, self.tokens) for batch in dict.fromkeys(batch for batch, _ in asked)]
        return [(batch, seq) for batch, seq in asked if seq <= self.config.max_position_embeddings]

    def sample(self, batch: int, seq: int, seed: int = 0) -> Arrays:
        """Inputs without padding, so that every peer does the same work: random ids i64[batch, seq] and a mask of
        ones, or images f32[batch, channels, size, size] of unit variance."""
        rng = np.random.default_rng([seed, batch, seq])
        if self.image:
            size = self.config.image_size
            return {
                "pixel_values": rng.standard_normal((batch, self.config.num_channels, size, size), np.float32)
            }
        ids = rng.integers(5, self.config.vocab_size, (batch, seq))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def flops(self, batch: int, seq: int) -> float:
        """Of the matrix products of one run; a multiply-add is two. Heads and pooling are left out."""
        config, rows = self.config, batch * seq
        width, layers = config.hidden_size, config.num_hidden_layers
        inner = getattr(config, "intermediate_size", None) or config.hidden_dim
        products = layers * 2 * rows * (4 * width * width + 2 * width * inner)
        attention = layers * 4 * batch * seq * seq * width
        patches = 2 * rows * width * config.num_channels * config.patch_size**2 if self.image else 0
        return float(products + attention + patches)

    def torch_model(self, attention: str = "sdpa") -> Any:
        """The model in fp32 and evaluation mode; `sdpa` is the library's fastest attention on CPUs."""
        import torch
        import transformers

        _quiet()
        kinds = {
            "feature-extraction": transformers.AutoModel,
            "text-classification": transformers.AutoModelForSequenceClassification,
            "image-classification": transformers.AutoModelForImageClassification,
        }
        # last_hidden_state needs no pooler, and no other peer computes it
        extra = {"add_pooling_layer": False} if self.config.model_type == "bert" else {}
        extra = extra if self.task == "feature-extraction" else {}
        kind = kinds[self.task]
        return kind.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation=attention, **extra
        ).eval()


def _bert_base() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(), add_pooling_layer=False)


def _distilbert() -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(DistilBertConfig())


def _tiny() -> Any:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    return BertModel(config, add_pooling_layer=False)


def _vit_base() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=1000))


# name -> (what it is, how it is made; None: fetched)
SUBJECTS: Mapping[str, tuple[str, Callable[[], Any] | None]] = MappingProxyType(
    {
        "minilm": ("all-MiniLM-L6-v2, its own weights", None),
        "bert-base": ("12 layers of 768, random weights", _bert_base),
        "distilbert": ("6 layers of 768, random weights", _distilbert),
        "tiny": ("4 layers of 256, random weights", _tiny),
        "vit-base": ("12 layers of 768 on images of 224 x 224, random weights", _vit_base),
    }
)


def find(name: str, cache: Path) -> Subject:
    """A subject by its name, or any Hugging Face folder.

    Raises:
        LlmcError: it is neither.
    """
    import transformers

    if name in SUBJECTS:
        folder = _folder(name, SUBJECTS[name][1], cache)
    elif (Path(name) / "config.json").is_file():
        folder = Path(name)
    else:
        raise LlmcError(
            f"there is no model {name!r}", at="--models", hint=f"use {', '.join(SUBJECTS)}, or a folder"
        )
    config = transformers.AutoConfig.from_pretrained(folder)
    architecture = (json.loads((folder / "config.json").read_text()).get("architectures") or [""])[0]
    tasks = {
        "ForSequenceClassification": "text-classification",
        "ForImageClassification": "image-classification",
    }
    task = next((task for end, task in tasks.items() if architecture.endswith(end)), "feature-extraction")
    return Subject(name if name in SUBJECTS else folder.name, folder, task, config)


def _folder(name: str, make: Callable[[], Any] | None, cache: Path) -> Path:
    """Where the model is; made if need be, under another name first."""
    if make is None:
        from models import fetch

        return fetch(name)
    folder = cache / name
    if folder.exists():
        return folder
    import torch

    _quiet()
    torch.manual_seed(0)
    scratch = cache / f"{name}.{os.getpid()}.new"
    shutil.rmtree(scratch, ignore_errors=True)
    make().save_pretrained(scratch)
    scratch.rename(folder)
    return folder


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
