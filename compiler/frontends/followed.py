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


def switch_router(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`SwitchTransformersTop1Router.forward`: the expert of each token, one of f32 weights stays as it is."""
    logits = self.classifier(hidden_states)
    likely = torch.softmax(logits, -1)
    chosen = _is_one_of(likely.argmax(-1), self.num_experts)
    return chosen * (chosen.cumsum(-2) <= self.expert_capacity), likely.amax(-1, keepdim=True), logits


def switch_experts(self: Any, hidden_states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """`SwitchTransformersExperts.forward`: tokens by expert, so that each expert's weights are read once, if at all.

    A token beyond its expert's capacity is no expert's, and counts nothing.
    """
    kept, experts = chosen.squeeze(1), [self[f"expert_{i}"] for i in range(self.num_experts)]
    number, order = torch.sort(kept.argmax(-1))
    ends = _is_one_of(number, len(experts)).sum(0).cumsum(0).to(torch.int32)
    product = torch.ops.transformers.grouped_mm_fallback
    inner = product(hidden_states[order], torch.stack([e.wi.weight.T for e in experts]), ends)
    made: Tensor = product(experts[0].act(inner), torch.stack([e.wo.weight.T for e in experts]), ends)
    return made[torch.argsort(order)] * (weights * kept.sum(-1, keepdim=True))


def _is_one_of(number: Tensor, count: int) -> Tensor:
    """One-hot rows i64."""
    return (number[..., None] == torch.arange(count)).long()


FUNCTIONS = {"compute_attention_span": attention_span}
METHODS = {
    ("XmodOutput", "lang_adapter"): language_adapter,
    ("SwitchTransformersTop1Router", "forward"): switch_router,
    ("SwitchTransformersExperts", "forward"): switch_experts,
}
