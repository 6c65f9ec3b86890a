"""Attention of an encoder and its decoder, registered with transformers beside "sdpa" and "eager".

Neither a source nor a decoder's sequence is padded. So an encoder attends to all, a decoder to its past
(`step_attention`) and to the whole source, and no mask is made for any of them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function

from llmc.compiler.frontends import step_attention

UNPADDED = "llmc_unpadded"


def unpadded_mask(*, mask_function: Any, attention_mask: Any = None, **options: Any) -> Any:
    """What stands for the mask; None where all is attended to."""
    _want_full(attention_mask)
    if mask_function is bidirectional_mask_function:
        return None
    return step_attention.step_mask(mask_function=mask_function, **options)


def _want_full(attention_mask: Any) -> None:
    """Decoders make a mask of ones where they are given none; while they are exported that is known to be so."""
    if attention_mask is None or torch.compiler.is_compiling():
        return
    if not bool(attention_mask.all()):
        raise NotImplementedError("a mask that hides something")


def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    """transformers' attention function: without a mask all is attended to; what stands for one is of the past."""
    if attention_mask is not None:
        options.pop("is_causal", None)  # some say no where there is a mask, which hides what is to come
        return step_attention.attention(module, query, key, value, attention_mask, **options)
    options["is_causal"] = False
    return sdpa_attention_forward(module, query, key, value, None, **options)


@functools.cache
def register() -> None:
    """Make `attn_implementation=UNPADDED` known to transformers."""
    AttentionInterface.register(UNPADDED, attention)
    AttentionMaskInterface.register(UNPADDED, unpadded_mask)
