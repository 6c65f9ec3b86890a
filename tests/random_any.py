"""Small random models of any class of transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
DECODER = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}


def made(name: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """A model of a class whose weights are large enough for every part to show."""
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            if name.startswith("FSMT") and "embed_positions" in place:
                continue  # sines, which the model itself makes more of
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1 if "norm" in place and place.endswith("weight") else noise)
    return model
