"""Attention as the importer wants it, registered with transformers beside "sdpa" and "eager".

transformers builds a `[batch, 1, seq, seq]` mask even where only keys are masked. Here such a mask stays
`bool [batch, 1, 1, seq]`, which broadcasts to the same thing and which fusion recognises.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

WHOLE = "llmc"  # attention in one op, bool mask
ADDED = "llmc_added"  # for models that compute scores themselves and add the mask to them


def key_mask(*, mask_function: Any, attention_mask: Any = None, **options: Any) -> Any:
    """The bool mask; transformers' own where more than keys are masked (causal, sliding window)."""
    if mask_function is bidirectional_mask_function and attention_mask is not None:
        return attention_mask[:, None, None, :]
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **options)


def added_mask(*, dtype: Any = torch.float32, **options: Any) -> Any:
    """The mask as numbers to add: 0 attends, the lowest finite number does not."""
    mask = key_mask(**options)
    return torch.where(mask, torch.tensor(0.0, dtype=dtype), torch.finfo(dtype).min)


@functools.cache
def register() -> None:
    """Make `attn_implementation=WHOLE` and `ADDED` known to transformers."""
    for name, mask in ((WHOLE, key_mask), (ADDED, added_mask)):
        AttentionInterface.register(name, sdpa_attention_forward)
        AttentionMaskInterface.register(name, mask)
