"""Small random models of transformers and data for them, to train."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from llmc.demo import model_folder
from llmc.recover import Settings

WORDS = (
    *("a", "the", "film", "story", "was", "is", "very", "good", "bad", "warm"),
    *("dull", "and", "but", "plot", "made", "me", "laugh", "cry", "again", "never"),
)
SETTINGS = Settings("0.5", steps=12, batch=8, max_seq=16)
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


def bert(folder: Path, **config: Any) -> Path:
    """A classifier of two classes."""
    torch.manual_seed(3)
    sizes = {**SIZES, "vocab_size": 4400, "max_position_embeddings": 64, "initializer_range": 0.2}
    made = transformers.BertConfig(**{"id2label": {0: "negative", 1: "positive"}, **sizes, **config})
    return _saved(transformers.BertForSequenceClassification(made), folder)


def llama(folder: Path) -> Path:
    """A causal language model, whose table is its last product as well."""
    torch.manual_seed(4)
    sizes = {**SIZES, "vocab_size": 4400, "max_position_embeddings": 64, "num_key_value_heads": 2}
    made = transformers.LlamaConfig(**sizes, tie_word_embeddings=True, initializer_range=0.2)
    return _saved(transformers.LlamaForCausalLM(made), folder)


def gpt2(folder: Path) -> Path:
    """A causal language model that stores its weights transposed."""
    torch.manual_seed(5)
    made = transformers.GPT2Config(vocab_size=4400, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    return _saved(transformers.GPT2LMHeadModel(made), folder)


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model_folder() / name, folder / name)
    return folder


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts of four to twelve words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) for _ in range(count)]


def labelled(path: Path, count: int = 60, labels: tuple[Any, ...] = ("negative", "positive")) -> Path:
    """A table of texts and labels."""
    rows = [{"text": text, "label": labels[i % len(labels)]} for i, text in enumerate(sentences(count))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(path: Path, count: int = 60) -> Path:
    """A text on each line."""
    path.write_text("\n".join(sentences(count)) + "\n")
    return path


def weights(folder: Path) -> dict[str, Any]:
    """Of what was written."""
    return load_file(folder / "model.safetensors")
