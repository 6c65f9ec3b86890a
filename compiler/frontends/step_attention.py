"""Attention of a decoder that is called token by token, registered with transformers beside "sdpa" and "eager".

Of one sequence without padding, the mask says nothing but "the past, maybe within a window", so no mask is made: the
op `llmc::step_attention` knows. transformers hands masks and attention over apart from each other, so what stands for
the mask carries the window. A model that looks at its mask, or changes it, cannot be taken in this way, and says so.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from llmc.compiler.frontends.masks import is_plain, longest

STEP = "llmc_step"
_WINDOW = "llmc_window"


def step_mask(
    *, mask_function: Any, attention_mask: Any = None, local_size: int | None = None, **options: Any
) -> Any:
    """What stands for the mask."""
    if attention_mask is not None or not is_plain(mask_function):
        raise NotImplementedError("a mask that is more than the past")
    mark = torch.zeros((1, 1, 1, 1))
    narrow = local_size is not None and local_size < longest.get()
    setattr(mark, _WINDOW, local_size if narrow else 0)
    return mark


@torch.library.custom_op("llmc::step_attention", mutates_args=())
def step_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """Attention of the last tokens of a sequence to all before them and themselves.

    Args:
        q: f32 [b, h, s, d], of the last s of t tokens.
        k, v: f32 [b, g, t, d], [b, g, t, e], h a multiple of g.
        scale: factor on the products.
        window: how many of the keys up to its own a query attends to, 0: all.
    """
    past = k.shape[2] - q.shape[2]
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(past)
    mask = mask.triu(past - window + 1) if window else mask
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


@step_attention.register_fake
def _result(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int) -> Any:
    return q.new_empty((*q.shape[:3], v.shape[3]))


_MORE = ("softcap", "s_aux", "position_bias")  # what scores may have beside a mask


def window_of(module: Any, attention_mask: Any, options: Any) -> int:
    """What stands for the mask says of the window, 0: none.

    Raises:
        NotImplementedError: attention is not causal, or its scores are changed in another way.
    """
    window = getattr(attention_mask, _WINDOW, None)
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if window is None or not causal or any(options.get(name) is not None for name in _MORE):
        raise NotImplementedError("attention that is more than the past")
    return int(window)


def attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **options: Any
) -> Any:
    """transformers' attention function."""
    window = window_of(module, attention_mask, options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return step_attention(query, key, value, scale, window).transpose(1, 2).contiguous(), None


@functools.cache
def register() -> None:
    """Make `attn_implementation=STEP` known to transformers."""
    AttentionInterface.register(STEP, attention)
    AttentionMaskInterface.register(STEP, step_mask)
