"""GLM-4V's towers (GLM-4.1V, 4.5V, 4.6V, GLM-OCR): patches of a grid as Qwen2-VL's, whose rows a convolution makes.

Patches have learned places as well, a square of them that is stretched over each image.
"""

from __future__ import annotations

from typing import Any

import torch

from llmc.compiler.frontends.grid_eyes import Grid, same, turned


class GlmGrid(Grid):
    """Patches of images of any size."""

    enlarged = True

    @property
    def counted(self) -> int:
        """An image is a film of as many frames as a patch has."""
        return int(self.config.temporal_patch_size)

    def prepare(self) -> None:
        """Attention by masks: its own code cuts patches into lists."""
        for block in self.model.model.visual.blocks:
            block.attn.forward = _attending(block.attn)

    def rows(self, pixels: Any, *others: Any) -> Any:
        """By the parts of the tower, whose own code makes lists of the sizes of images."""
        (at,) = others
        tower = self.model.model.visual
        hidden = tower.patch_embed(pixels.flatten(0, 1))
        if hasattr(tower, "embeddings"):
            hidden = tower.post_conv_layernorm(hidden) + self._places(tower.embeddings, at)
        turns = self._turns(tower, at)
        mask = same(at[:, 0].repeat_interleave(self.merge**2))
        for block in tower.blocks:
            hidden = block(hidden, cu_seqlens=mask, position_embeddings=turns)
        squares = tower.post_layernorm(hidden).reshape(-1, self.merge, self.merge, hidden.shape[-1])
        made = tower.downsample(squares.permute(0, 3, 1, 2))
        return tower.merger(made.flatten(1))[:, None]

    def _places(self, embeddings: Any, at: Any) -> Any:
        """The learned places, between which a patch's is looked up by its share of the image's height and width."""
        side = int(embeddings.num_positions**0.5)
        table = embeddings.position_embedding.weight.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        image = same(at[:, 0])
        shares = [
            (patch + 0.5) / ((image * at[None, :, axis]).amax(1)[:, None] + 1) / self.merge * 2 - 1
            for patch, axis in zip(self.patches(at), (2, 3), strict=True)
        ]
        down, across = (share.flatten() for share in shares)
        found = torch.nn.functional.grid_sample(
            table,
            torch.stack([across, down], -1)[None, :, None],
            mode=embeddings.interpolated_method,
            align_corners=False,
            padding_mode="border",
        )
        return found[0, :, :, 0].T


def _attending(attention: Any) -> Any:
    """Attention of patches to those that a mask, in the place of lengths, lets them see; GLM-OCR norms its heads."""

    def attend(hidden_states: Any, cu_seqlens: Any, position_embeddings: Any, **_: Any) -> Any:
        count = hidden_states.shape[0]
        parts = attention.qkv(hidden_states).reshape(count, 3, attention.num_heads, -1)
        q, k, v = parts.unbind(1)
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        q, k = (turned(x.transpose(0, 1), *position_embeddings)[None] for x in (q, k))
        made = torch.nn.functional.scaled_dot_product_attention(
            q, k, v.transpose(0, 1)[None], cu_seqlens, scale=attention.scaling
        )
        return attention.proj(made[0].transpose(0, 1).reshape(count, -1))

    return attend
