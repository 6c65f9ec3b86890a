"""EXAONE 4.5: patches of a grid as Qwen2.5-VL's, whose heads share keys; tokens have their number for a place."""

from __future__ import annotations

from typing import Any

import torch

from llmc.compiler.frontends.grid_eyes import Grid, turned


class NumberedGrid(Grid):
    """Patches of images of any size, whose rows have places in a text as its words have."""

    def prepare(self) -> None:
        """Attention by masks: its own code cuts patches into lists."""
        for block in self.model.model.visual.blocks:
            block.attn.forward = _attending(block.attn)

    def places(self, *values: Any) -> tuple[Any, ...]:
        """None but their numbers."""
        return ()

    def asked(self, ids: Any, values: tuple[Any, ...], prompt: int) -> dict[str, Any]:
        """As the processor says it, which has no kinds of tokens."""
        given = super().asked(ids, values, prompt)
        return {name: value for name, value in given.items() if name != "mm_token_type_ids"}


def _attending(attention: Any) -> Any:
    """Attention of patches to those that a mask, in the place of lengths, lets them see."""
    sizes = [attention.q_dim, attention.kv_dim, attention.kv_dim]

    def attend(hidden_states: Any, cu_seqlens: Any, position_embeddings: Any, **_: Any) -> Any:
        count = hidden_states.shape[0]
        parts = attention.qkv(hidden_states).split(sizes, -1)
        q, k, v = (part.reshape(count, -1, attention.head_dim).transpose(0, 1) for part in parts)
        q, k = (turned(x, *position_embeddings) for x in (q, k))
        k, v = (x.repeat_interleave(attention.num_key_value_groups, 0) for x in (k, v))
        made = torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], cu_seqlens, scale=attention.scaling
        )
        return attention.proj(made[0].transpose(0, 1).reshape(count, -1))

    return attend
