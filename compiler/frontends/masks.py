"""Attention as the importer wants it, registered with transformers beside "sdpa" and "eager".

transformers builds a `[batch, 1, seq, seq]` mask even where only keys are masked. Here such a mask stays
`bool [batch, 1, 1, seq]`, which broadcasts to the same thing and which fusion recognises. A decoder's mask is
the same, and its attention the op `llmc::causal_attention`, which PyTorch's cannot express: it takes either a
mask or the causal flag.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

WHOLE = "llmc"  # attention in one op, bool mask
ADDED = "llmc_added"  # for models that compute scores themselves and add the mask to them


longest: ContextVar[int] = ContextVar("longest", default=0)  # tokens of a row, while a model is exported


def key_mask(
    *, mask_function: Any, attention_mask: Any = None, local_size: int | None = None, **options: Any
) -> Any:
    """The bool mask; transformers' own where more is masked than keys and the future.

    A sliding window masks nothing more where it is at least as wide as the longest sequence.
    """
    wide = local_size is None or local_size >= longest.get()
    if wide and attention_mask is not None and is_plain(mask_function):
        return attention_mask[:, None, None, :]
    options["local_size"] = local_size
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **options)


_WINDOWS = ("sliding_window_overlay.", "sliding_window_bidirectional_overlay.")


def is_plain(function: Any) -> bool:
    """Whether a mask function is that of all keys or of the past, maybe within a window."""
    if function in (bidirectional_mask_function, causal_mask_function):
        return True
    name = getattr(function, "__qualname__", "")
    if name.startswith(_WINDOWS):
        return True
    if not name.startswith("and_masks."):
        return False
    parts = [cell.cell_contents for cell in function.__closure__ or ()]
    return all(isinstance(part, tuple) and all(map(is_plain, part)) for part in parts)


def added_mask(*, dtype: Any = torch.float32, **options: Any) -> Any:
    """The mask as numbers to add: 0 attends, the lowest finite number does not."""
    mask = key_mask(**options)
    return torch.where(mask, torch.tensor(0.0, dtype=dtype), torch.finfo(dtype).min)


@torch.library.custom_op("llmc::causal_attention", mutates_args=())
def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: torch.Tensor, scale: float
) -> torch.Tensor:
    """Causal attention with masked keys, heads of k and v shared by groups of q's.

    Args:
        q, k, v: f32 [b, h, s, d], [b, g, s, d], [b, g, s, e], h a multiple of g.
        keys: bool [b, 1, 1, s], True attends.
        scale: factor on the products.
    """
    length = q.shape[2]
    mask = keys & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


@causal_attention.register_fake
def _result(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: torch.Tensor, scale: float) -> Any:
    return q.new_empty((*q.shape[:3], v.shape[3]))


def attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **options: Any
) -> Any:
    """transformers' attention function; a decoder's with masked keys alone becomes one op."""
    by_key = attention_mask is not None and attention_mask.shape[2] == 1
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", False) if causal is None else causal
    if not by_key or not causal:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return causal_attention(query, key, value, attention_mask, scale).transpose(1, 2).contiguous(), None


@functools.cache
def register() -> None:
    """Make `attn_implementation=WHOLE` and `ADDED` known to transformers."""
    for name, mask in ((WHOLE, key_mask), (ADDED, added_mask)):
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, mask)
