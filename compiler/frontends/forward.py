"""How a transformers model is to run: one pass without cache, its parts whole."""

from __future__ import annotations

from typing import Any

from llmc.errors import LlmcError


def one_pass(model: Any, max_seq: int) -> None:
    """No cache of keys and values; no sliding window where it is at least as wide as the longest sequence."""
    config = model.config
    config.use_cache = False
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise LlmcError(
            f"rotary scaling of type {rope!r} is not supported",
            at="config.json: rope_parameters",
            hint="its frequencies depend on the length of the sequence; default, linear, yarn and llama3 do not",
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window >= max_seq:
        _widen(model)


def _widen(model: Any) -> None:
    """Full attention in every layer."""
    model.config.sliding_window = None
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = ["full_attention"] * len(model.config.layer_types)
    for module in model.modules():
        for name, value in (("has_sliding_layers", False), ("sliding_window", None)):
            if hasattr(module, name):
                setattr(module, name, value)


def whole(model: Any) -> None:
    """Activations and layers in one piece each."""
    _whole_activations(model)
    _whole_layers(model)


def _whole_activations(model: Any) -> None:
    """gelu's tanh form written out in Python -> torch's gelu, which the graph keeps whole."""
    import torch
    from transformers import activations

    spelled = (activations.NewGELUActivation, activations.FastGELUActivation)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, spelled):
                setattr(module, name, torch.nn.GELU("tanh"))


def _whole_layers(model: Any) -> None:
    """No feed-forward by chunks of the sequence: it saves memory in training, and the values are the same."""
    for module in model.modules():
        if getattr(module, "chunk_size_feed_forward", 0):
            module.chunk_size_feed_forward = 0
