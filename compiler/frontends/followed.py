"""Code of transformers' models in a form that torch.export can follow: the same values by the same weights.

Each stands in the place of a function or of a method while a model is traced.
"""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


def attention_span(query_layer: Tensor, key_layer: Tensor, max_relative_positions: int) -> int:
    """DeBERTa's `compute_attention_span`: all positions, of which a short text reads those in the middle."""
    return max_relative_positions


def language_adapter(self: Any, lang_ids: Tensor, hidden_states: Tensor) -> Tensor:
    """`XmodOutput.lang_adapter`: each language's adapter for all rows, of which its own are kept."""
    residual = hidden_states
    if self.adapter_layer_norm is not None:
        hidden_states = self.adapter_layer_norm(hidden_states)
    elif self.adapter_reuse_layer_norm:
        hidden_states = self.LayerNorm(hidden_states)
    if self.ln_before_adapter:
        residual = hidden_states
    adapted = torch.zeros_like(hidden_states)
    for number, adapter in enumerate(self.adapter_modules.values()):
        mine = (lang_ids == number).reshape(-1, *[1] * (hidden_states.dim() - 1))
        adapted = torch.where(mine, adapter(hidden_states), adapted)
    return adapted + residual


FUNCTIONS = {"compute_attention_span": attention_span}
METHODS = {("XmodOutput", "lang_adapter"): language_adapter}
