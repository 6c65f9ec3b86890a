"""The small sentiment classifier that ships with llmc (README.md says how it was made), and `llmc demo`: compare it
with PyTorch, then race it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SENTENCES = (
    "A warm, funny and beautifully acted film that stays with you.",
    "The plot is a mess and the jokes fall flat.",
    "I love this phone, the battery lasts forever.",
)
SHAPES = ((1, 16), (1, 128), (8, 64))


def model_folder() -> Path:
    """The shipped Hugging Face folder."""
    return Path(__file__).resolve().parent / "model"


def load_torch(folder: Path) -> Any:
    """The classifier in PyTorch, fp32, in evaluation mode; nothing is downloaded."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def torch_call(model: Any, arrays: Mapping[str, Array]) -> Callable[[], Array]:
    """A function that runs `model` on fixed inputs and returns the logits f32[batch, classes]."""
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def call() -> Array:
        with torch.inference_mode():
            logits: Array = model(**tensors).logits.numpy()
        return logits

    return call


def sample(vocabulary: int, batch: int, seq: int) -> dict[str, Array]:
    """Random token ids i64[batch, seq] below `vocabulary` with a mask of ones; the same on every call."""
    ids = np.random.default_rng(0).integers(5, vocabulary, (batch, seq))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
