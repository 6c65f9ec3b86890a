"""Small random decoders and vision models, inputs for them, and their outputs in PyTorch."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kept_graphs
import numpy as np
import torch
import transformers

from llmc.compiler.frontends.imported import Imported

VOCABULARY, CLASSES, IMAGE = 100, 5, 32
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": GPT2,
    "llama": TEXT,
    "llama3": {
        **TEXT,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "mistral": {**TEXT, "tie_word_embeddings": False, "sliding_window": 64},
    "mistral-window": {**TEXT, "sliding_window": 5},
    "qwen2": TEXT,
    "vit": {**VIT, "image_size": IMAGE, "patch_size": 8, "num_labels": CLASSES},
    "mobilenet_v2": {"image_size": IMAGE, "depth_multiplier": 0.25, "num_labels": CLASSES},
}
DECODERS = ("gpt2", "llama", "llama3", "mistral", "mistral-window", "qwen2")
VISION = ("vit", "mobilenet_v2")
WHOLE = "language-modeling"  # padded batches of whole texts at once; tests of `stepping` go token by token


def random_model(name: str, **changes: Any) -> Any:
    """A model whose weights are large enough for every part to show in the outputs, yet keep images in range."""
    kind = name.partition("-")[0].replace("llama3", "llama")
    config = transformers.AutoConfig.for_model(kind, **{**CONFIGS[name], **changes})
    factory = (
        transformers.AutoModelForCausalLM
        if name in DECODERS
        else transformers.AutoModelForImageClassification
    )
    model = factory.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in (*model.named_parameters(), *model.named_buffers()):
            if not value.is_floating_point() or "inv_freq" in key:
                continue
            noise = torch.randn(value.shape, generator=generator)
            if "running_var" in key:
                noise = noise.abs() + 0.5
            elif value.dim() == 4:
                noise *= 1.5 / value[0].numel() ** 0.5
            else:
                norm = any(word in key for word in ("norm", "ln_")) and key.endswith("weight")
                noise = 0.2 * noise + (1 if norm else 0)
            value.copy_(noise)
    return model


_FOLDERS = Path(tempfile.mkdtemp(prefix="llmc-models-"))
atexit.register(shutil.rmtree, _FOLDERS, ignore_errors=True)


@cache
def imported(name: str) -> tuple[Path, Any, Imported]:
    """The folder of `random_model(name)`, not to be changed, the model, and what llmc makes of it: traced once."""
    folder, model = _FOLDERS / name, random_model(name)
    model.save_pretrained(folder)
    task = {"task": WHOLE} if name in DECODERS else {}
    return folder, model, kept_graphs.imported(model, max_batch=8, **task)


def sample(name: str, batch: int, seq: int) -> dict[str, np.ndarray[Any, Any]]:
    """Token ids, every row but the first padded on the right; or images, which have no `seq`."""
    rng = np.random.default_rng(batch * 1000 + seq)
    if name in VISION:
        return {"pixel_values": rng.standard_normal((batch, 3, IMAGE, IMAGE)).astype(np.float32)}
    lengths = np.maximum(seq - np.arange(batch) * max(seq // batch, 1), 1)
    kept = (np.arange(seq) < lengths[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(0, VOCABULARY, (batch, seq)), "attention_mask": kept}


def difference(model: Any, inputs: Mapping[str, Any], logits: Any) -> float:
    """The largest difference to PyTorch's logits as a fraction of their largest value."""
    with torch.no_grad():
        expected = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).logits.numpy()
    assert logits.shape == expected.shape
    return float(np.abs(logits - expected).max() / np.abs(expected).max())
