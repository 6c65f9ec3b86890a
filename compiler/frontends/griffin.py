"""Griffin's recurrent block (De et al., "Griffin", 2024) as transformers' RecurrentGemma has it, going on from a cache.

transformers keeps its states in the modules, begins anew with every prompt, and loops over tokens in Python.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from llmc.compiler.frontends.scans import Tensor, recurrence

_NEXT = "llmc_next"  # attribute of a cache: the first layer that has not been asked for in this pass


def block(
    self: Any,
    input_states: Tensor,
    position_ids: Tensor,
    attention_mask: Any = None,
    use_cache: bool = True,
    past_key_values: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`RecurrentGemmaRecurrentBlock.forward`."""
    gate = self.act_fn(self.linear_y(input_states))
    x = self.linear_x(input_states).transpose(1, 2)
    count, layer, held = x.shape[-1], None, None
    if past_key_values is not None:
        layer = past_key_values.layers[_number(past_key_values)]
        x = layer.update_conv_state(x, conv_kernel_size=self.conv1d_width - 1)
        held = layer.recurrent_states[0]
    whole = x.shape[-1]
    x = self.conv_1d(x)[..., :whole][..., whole - count :]
    self.rg_lru.recurrent_states = held
    x = self.rg_lru(x.transpose(1, 2), position_ids)
    if layer is not None:
        layer.update_recurrent_state(self.rg_lru.recurrent_states)
    self.rg_lru.recurrent_states = None
    return self.linear_out(x * gate), None


def _number(cache: Any) -> int:
    """Of the layer of a cache that is the block's: blocks do not know their numbers, and ask one after the other."""
    start = getattr(cache, _NEXT, 0)
    found = next(
        i
        for i, layer in enumerate(cache.layers)
        if i >= start and isinstance(layer, LinearAttentionCacheLayerMixin)
    )
    setattr(cache, _NEXT, found + 1)
    return found


def scan(
    self: Any, hidden_states: Tensor, recurrent_gate: Tensor, reset: Tensor, recurrent_states: Any, *_: Any
) -> tuple[Tensor, Tensor]:
    """`RecurrentGemmaRglru._rnn_scan`: h = gate * h + x, for each feature.

    Args:
        hidden_states, recurrent_gate: [batch, seq, width].
        reset: bool [batch, seq, 1].
        recurrent_states: [batch, width]; None: zeros.
    """
    x, decay = hidden_states.float()[:, :, None], (recurrent_gate * ~reset).float()[:, :, None, :, None]
    first = torch.zeros_like(x[:, 0, 0]) if recurrent_states is None else recurrent_states
    ones = torch.ones_like(x[..., :1])
    found, last = recurrence(decay, x, ones, ones, first[:, None, :, None], None)
    return found[:, :, 0].to(hidden_states.dtype), last[:, 0, :, 0]


METHODS = {
    ("RecurrentGemmaRecurrentBlock", "forward"): block,
    ("RecurrentGemmaRglru", "_rnn_scan"): scan,
}
