"""Attention of a decoder some of whose tokens attend to later ones, beside `step_attention`.

The tokens of one image attend to all of it (Gemma 3), or those of a prompt to all of the prompt (PaliGemma). Which
belong together is said by numbers beside the tokens: those of one number, from 1 on, see each other.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from llmc.compiler.frontends import step_attention

TOGETHER = "llmc_together"
groups: ContextVar[Any] = ContextVar("groups")  # f32 [past + seq] of all tokens


def _mask(count: int, window: int) -> Any:
    """Whom the last `count` tokens attend to, bool [count, past + count]."""
    of = groups.get()
    places = torch.arange(of.shape[0])
    queries, own = places[-count:][:, None], of[-count:][:, None]
    seen = (places <= queries) | ((own == of) & (own > 0))
    return seen & (places > queries - window) if window else seen


def attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **options: Any
) -> Any:
    """transformers' attention function."""
    window = step_attention.window_of(
        module, attention_mask, {**options, "is_causal": True}
    )  # as masked here
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    made = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        _mask(query.shape[2], window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return made.transpose(1, 2).contiguous(), None


@functools.cache
def register() -> None:
    """Make `attn_implementation=TOGETHER` known to transformers."""
    AttentionInterface.register(TOGETHER, attention)
    AttentionMaskInterface.register(TOGETHER, step_attention.step_mask)
