"""Qwen2-VL, Qwen2.5-VL and their like: images of any size as patches of a grid, and tokens with a place on three axes.

Patches of all images come as one list. Beside each row of the result, which is made of some patches, stands which image
and window it is of, where it lies in the image, and how far its place in the text, and that of the tokens behind it, is
from their number: an image takes as many places as its longer side has rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llmc.compiler.frontends.eyes import GRID, Eyes, image_token
from llmc.compiler.frontends.inputs import IMAGE, TEXT, Input

COLUMNS = ("image", "window", "row", "column", "shift", "after")  # of GRID
_MOST = 16384  # rows of a prompt
_FEW = 16  # rows along a side of a sample


class Grid(Eyes):
    """Patches of images of any size."""

    kind, dim = "grid", "rows"
    enlarged = False  # whether an image with a side of less than a row is made larger first

    @property
    def counted(self) -> int:
        """In how many frames the processor's bounds count an image's pixels."""
        return 1

    def __init__(self, model: Any, root: Path, max_seq: int) -> None:
        super(Eyes, self).__init__()
        self.model, self.token, self.tokens = model, image_token(model.config), 1
        self.config = model.config.vision_config
        self.merge = int(self.config.spatial_merge_size)
        channels = int(getattr(self.config, "in_channels", 3))
        self.patch = channels * int(self.config.temporal_patch_size) * int(self.config.patch_size) ** 2
        self.full = getattr(self.config, "fullatt_block_indexes", None)
        self.bounds = (1, max(2, min(_MOST, max_seq)))

    def prepare(self) -> None:
        """Attention by masks: its own code cuts patches into lists."""
        for block in self.model.model.visual.blocks:
            block.attn.forward = _attending(block.attn)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Patches by the rows that they make, and what stands beside these."""
        return (
            Input(IMAGE, (self.dim, self.merge**2, self.patch)),
            Input(GRID, (self.dim, len(COLUMNS)), low=-self.bounds[1], high=self.bounds[1]),
        )

    def rows(self, pixels: Any, *others: Any) -> Any:
        """By the parts of the tower, whose own code makes lists of the sizes of images."""
        (at,) = others
        tower = self.model.model.visual
        hidden = tower.patch_embed(pixels.flatten(0, 1))
        turns = self._turns(tower, at)
        masks = [same(at[:, i].repeat_interleave(self.merge**2)) for i in (0, 1)]
        for number, block in enumerate(tower.blocks):
            whole = self.full is None or number in self.full
            hidden = block(hidden, cu_seqlens=masks[0 if whole else 1], position_embeddings=turns)
        return tower.merger(hidden)[:, None]

    def _turns(self, tower: Any, at: Any) -> tuple[Any, Any]:
        """Cosine and sine of each patch's angles."""
        frequencies = tower.rotary_pos_emb.inv_freq
        parts = [axis.flatten()[:, None].float() * frequencies for axis in self.patches(at)]
        angles = torch.cat([*parts, *parts], -1)
        return angles.cos(), angles.sin()

    def patches(self, at: Any) -> tuple[Any, Any]:
        """Where the patches of each row lie in its image: i64 [rows, merge * merge] down, and across."""
        inside = torch.arange(self.merge**2)
        down = at[:, 2:3] * self.merge + torch.div(inside, self.merge, rounding_mode="floor")
        return down, at[:, 3:4] * self.merge + inside % self.merge

    def places(self, *values: Any) -> tuple[Any, ...]:
        """How far the places of each row on three axes, and of the tokens behind it, are from their numbers."""
        _, _, row, column, shift, after = values[1].float().unbind(1)
        return (torch.stack([shift, shift + row, shift + column, after], 1),)

    def positions(self, marks: Any, at: Any, counted: Any, past: Any, places: Any) -> Any:
        """i64 [3, 1, seq]"""
        found = torch.nn.functional.embedding(at, places)  # of tokens behind an image: of its last row
        behind = torch.where(counted > 0, found[:, 3], torch.zeros_like(counted))
        shift = torch.where((marks > 0)[:, None], found[:, :3], behind[:, None])
        number = torch.arange(marks.shape[0]) + past
        return (shift.T[:, None] + number).long()

    def sample(self) -> tuple[Any, ...]:
        """Two images, the first wide, of more than a window, and the second high."""
        wide = self.window + 1 if 1 < self.window < _FEW else 3
        return self.of_grids(((2, wide), (3, 1)))

    def traced(self) -> tuple[Any, ...]:
        """The same."""
        return self.sample()

    def of_grids(self, grids: Any) -> tuple[Any, ...]:
        """Values of `inputs` for images of so many rows and columns."""
        at = beside(grids, self.window)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(len(at), self.merge**2, self.patch, generator=generator), at

    @property
    def window(self) -> int:
        """Rows along a side of a window; 0: there are none."""
        size = getattr(self.config, "window_size", None)
        return 0 if self.full is None or size is None else size // self.merge // int(self.config.patch_size)

    def spans(self, values: tuple[Any, ...]) -> list[int]:
        """Rows of each image."""
        return [int(n) for n in torch.bincount(values[1][:, 0])]

    def asked(self, ids: Any, values: tuple[Any, ...], prompt: int) -> dict[str, Any]:
        """As the processor says it: patches, and the grid of each image."""
        pixels, at = values
        sizes = [
            [1, *((at[at[:, 0] == image][:, 2:4].amax(0) + 1) * self.merge).tolist()]
            for image in range(int(at[-1, 0]) + 1)
        ]
        kinds = {"mm_token_type_ids": (ids == self.token).int()}
        return {TEXT: ids, IMAGE: pixels.flatten(0, 1), "image_grid_thw": torch.tensor(sizes), **kinds}

    def facts(self) -> dict[str, Any]:
        """Each image makes as many rows as it has."""
        return {}

    @property
    def sizes(self) -> dict[str, int]:
        """Of patches, as the processor has to make them."""
        sizes = (self.config.patch_size, self.merge, self.config.temporal_patch_size)
        return dict(zip(("patch", "merge", "frames"), map(int, sizes), strict=True))


def beside(grids: Sequence[tuple[int, int]], window: int) -> Any:
    """`COLUMNS` of images of so many rows and columns, as the runtime makes them of real ones."""
    found, saved, windows = [], 0, 0
    for image, (rows, columns) in enumerate(grids):
        edge = window or max(rows, columns)
        wide = -(-columns // edge)
        after = saved + rows * columns - max(rows, columns)
        for number in range(rows * columns):
            row, column = divmod(number, columns)
            within = windows + row // edge * wide + column // edge
            found.append((image, within, row, column, -saved - number, -after))
        saved, windows = after, windows + wide * -(-rows // edge)
    return torch.tensor(found)


def same(numbers: Any) -> Any:
    """Which of them are equal, each to each."""
    return numbers[:, None] == numbers[None]


def _attending(attention: Any) -> Any:
    """Attention of patches to those that a mask, in the place of lengths, lets them see."""

    def attend(hidden_states: Any, cu_seqlens: Any, position_embeddings: Any, **_: Any) -> Any:
        count = hidden_states.shape[0]
        parts = attention.qkv(hidden_states).reshape(count, 3, attention.num_heads, -1)
        q, k, v = parts.permute(1, 2, 0, 3).unbind(0)
        q, k = (turned(x, *position_embeddings)[None] for x in (q, k))
        made = torch.nn.functional.scaled_dot_product_attention(
            q, k, v[None], cu_seqlens, scale=attention.scaling
        )
        return attention.proj(made[0].transpose(0, 1).reshape(count, -1))

    return attend


def turned(x: Any, cosine: Any, sine: Any) -> Any:
    """Halves of the last axis as two-dimensional vectors, turned."""
    one, other = x.chunk(2, -1)
    return x * cosine + torch.cat([-other, one], -1) * sine
