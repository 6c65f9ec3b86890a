"""How a transformers model is to run: one pass without cache, its parts whole."""

from __future__ import annotations

from typing import Any

from llmc.errors import LlmcError


def in_one_piece(model: Any) -> None:
    """No part keeps keys and values, or cuts sequences into chunks, whose lengths would have to be even."""
    for module in model.modules():
        if getattr(module, "chunk_size_feed_forward", 0):
            module.chunk_size_feed_forward = 0  # it saves memory in training, and the values are the same
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False


def one_pass(model: Any, max_seq: int) -> None:
    """What depends on a sequence's length is as for all up to `max_seq`.

    Raises:
        LlmcError: rotary frequencies change within `max_seq`.
    """
    for module in model.modules():
        if hasattr(module, "rope_type"):
            _fix_frequencies(module, max_seq)
        if getattr(module, "keep_window_size", 0) >= max_seq:  # Doge's keys are chosen beyond it alone
            module.keep_window_size = 2 * max_seq


def _fix_frequencies(rotary: Any, max_seq: int) -> None:
    """Frequencies that change beyond a length are those of shorter sequences, if all are shorter."""
    kinds = rotary.rope_type if isinstance(rotary.rope_type, dict) else {"": rotary.rope_type}
    if not (changing := [kind for kind in kinds.values() if kind == "longrope" or "dynamic" in str(kind)]):
        return
    stated = getattr(rotary.config, "rope_parameters", None) or {}
    limit = stated.get("original_max_position_embeddings") or rotary.original_max_seq_len
    if max_seq > limit or isinstance(rotary.rope_type, dict):
        raise LlmcError(
            f"rotary scaling of type {changing[0]!r} is not supported for sequences of {max_seq} tokens",
            at="config.json: rope_parameters",
            found=f"its frequencies change beyond {limit}",
            hint=f"compile for shorter ones: --max-seq {limit}; default, linear, yarn and llama3 do not change",
        )
    rotary.rope_type = "default"


def whole(model: Any) -> None:
    """gelu's tanh form written out in Python -> torch's gelu, which the graph keeps whole."""
    import torch
    from transformers import activations

    spelled = (activations.NewGELUActivation, activations.FastGELUActivation)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, spelled):
                setattr(module, name, torch.nn.GELU("tanh"))
