"""Values for ops, and what PyTorch has to be told to compute some of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from op_values import Random

from llmc.compiler.ops import OPS
from llmc.compiler.ops.bf16 import rounded
from llmc.compiler.ops.split import split_weights

RANDOM = Random(7)
floats, integers, bools = RANDOM.floats, RANDOM.integers, RANDOM.bools


SPECIAL = np.array([0.0, -0.0, 1.5, -2.5, 2.5, np.inf, -np.inf, np.nan], np.float32)
X, Y = floats(3, 4, 5), floats(4, 1)
N, M = integers(3, 4), integers(4, low=1)
B, C = bools(3, 4), bools(4)
TABLE = floats(11, 6)
IDS = integers(2, 3, low=0, high=11)
W, BIAS, RES = floats(7, 5), floats(7), floats(3, 4, 7)
Q, K, V = floats(2, 4, 3, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 6)
KEEP, ADD = bools(2, 1, 1, 5) | (np.arange(5) == 0), floats(1, 4, 3, 5)
P, R = floats(2, 3, 30), floats(2, 5, 40)
KEYS, PB = bools(2, 5) | (np.arange(5) == 1), floats(1, 3, 3, 5)
BYTES = integers(2, 3, 5, low=0, high=256, dtype="u8")
MASK = (BYTES[0][:, :, None] >> np.arange(8, dtype=np.uint8) & 1).reshape(3, 40).astype(bool)


GATES, STATE, MEMORY, CELL_W = floats(3, 24), floats(3, 6), floats(3, 6), floats(24, 6)


def gru_step(x: Any, h: Any, w: Any, bias: Any) -> Any:
    """PyTorch's cell, whose product with the input gives x."""
    b_hh = torch.cat([torch.zeros(12), bias])
    return torch._VF.gru_cell(x, h, torch.eye(18), w, torch.zeros(18), b_hh)


def half_turned(x: Any, cos: Any, sin: Any) -> Any:
    """What a roll by half of the turned numbers gives, the half that comes around negated."""
    width = cos.shape[-1]
    part, rest = x[..., :width], x[..., width:]
    sign = torch.ones(width).index_fill(0, torch.arange(width // 2), -1)
    return torch.cat([part * cos + part.roll(width // 2, -1) * sign * sin, rest], -1)


def pairs_turned(x: Any, cos: Any, sin: Any) -> Any:
    """(a + ib)(cos + i sin) of each pair, where the tables are as they like."""
    width = cos.shape[-1]
    a, b = x[..., 0:width:2], x[..., 1:width:2]
    turned = torch.stack([a * cos[..., ::2] - b * sin[..., ::2], b * cos[..., 1::2] + a * sin[..., 1::2]], -1)
    return torch.cat([turned.flatten(-2), x[..., width:]], -1)


def halves(packed: torch.Tensor) -> torch.Tensor:
    """The two 4-bit numbers of each byte, the low one first."""
    return torch.stack([packed % 16, packed // 16], -1).flatten(-2).long()


def spread(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The values where a bit is set, in order."""
    return torch.zeros(3, 37).masked_scatter_(torch.from_numpy(MASK[:, :37]), values)


def spread_by_fours(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Four of them where a bit is set, one under the other."""
    where = torch.from_numpy(MASK[:, :37])[..., None].expand(3, 37, 4)
    return torch.zeros(3, 37, 4).masked_scatter_(where, values).transpose(1, 2).reshape(12, 37)


def sdpa(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    causal: bool = False,
    scale: float = 0.3,
    window: int | None = None,
) -> Any:
    if causal:  # the last query sees all keys; PyTorch's flag has the first query see one
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        mask = mask if window is None else mask.triu(k.shape[2] - q.shape[2] - window + 1)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)


def mha(q: Any, k: Any, v: Any, keys: Any, bias: Any) -> Any:
    """Three heads of four columns from columns 2, 3 and 20 on."""
    split = [x[..., o : o + 12].unflatten(-1, (3, 4)).transpose(1, 2) for x, o in ((q, 2), (k, 3), (v, 20))]
    mask = bias.masked_fill(~keys[:, None, None, :], -torch.inf)
    return sdpa(*split, mask).transpose(1, 2).flatten(2)


# A hole, no padding, padding on the left, and a row of nothing: the first place is kept whatever the mask says.
HOLES = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]])
PLACES = [[0, -1, 1], [2, 3, 4], [-1, -1, 6], [-1, -1, -1]]
INDEX, STARTS = np.array([0, 2, 3, 4, 5, 6, 8, 9]), np.array([0, 2, 5, 7, 8])
RAGGED = (floats(8, 30), floats(8, 40), floats(8, 40), (HOLES != 0).ravel()[INDEX], INDEX, STARTS)
HEADS = {"heads": 3, "head_dim": 4, "scale": 0.3, "seq": 3, "offsets": (2, 3, 20)}


def ragged_mha(q: Any, k: Any, v: Any, keys: Any, index: Any, starts: Any, *bias: Any) -> Any:
    """Each sequence alone, a query without keys giving zeros."""
    parts = []
    for low, high in itertools.pairwise(starts.tolist()):
        at, one = index[low:high] % 3, keys[low:high]
        added = bias[0][:, :, at][..., at] if bias else torch.zeros(1, 3, high - low, high - low)
        rows = mha(*(x[None, low:high] for x in (q, k, v)), one[None], added)
        parts.append(rows[0] if one.any() else torch.zeros_like(rows[0]))
    return torch.cat(parts)


def norm(x: Any, *rest: Any, eps: float = 1e-3) -> Any:
    return F.layer_norm(x, x.shape[-1:], *rest, eps=eps)


Q8, S8 = integers(3, 4, 5, low=-127, high=128, dtype="i8"), abs(floats(3, 4, 1)) + np.float32(0.01)
W8, WS = integers(7, 5, low=-127, high=128, dtype="i8"), abs(floats(7))


def packed(q: Any, scale: Any) -> Any:
    """Rows of few values: 16 bytes of them, 128 standing for 0, then the scale and 44 zeros."""
    low = F.pad((q.int() + 128).to(torch.uint8), (0, 16 - q.shape[-1]), value=128)
    wide = scale.expand(*q.shape[:-1], 1).contiguous()
    return torch.cat([low, F.pad(wide.view(torch.uint8), (0, 44))], -1)


def round_by(x: Any, scale: Any) -> Any:
    return torch.clamp(torch.round(x * (1 / scale)), -127, 127).to(torch.int8)


def row_scale(x: Any) -> Any:
    return x.abs().amax(-1, keepdim=True) / 127


def by_channel(x: Any, w: Any) -> Any:
    """Rows of the pixels that a convolution of whole numbers gives."""
    y = F.conv2d(F.pad(x.permute(0, 3, 1, 2), (1, 1, 2, 0)), w, stride=(2, 1), groups=6).permute(0, 2, 3, 1)
    return packed(round_by(y, row_scale(y)), row_scale(y))


ROWS = packed(torch.from_numpy(Q8), torch.from_numpy(S8)).numpy()


U8, IMAGE8 = np.array(131, np.uint8), integers(2, 5, 4, 6, low=-128, high=128, dtype="i8")
KERNEL8 = integers(4, 3, 3, 2, low=-127, high=128, dtype="i8")


def qlinear(rows: Any, w: Any, ws: Any, *extras: Any, zero: int = 0) -> Any:
    """In float64: where large sums cancel, float32 would keep few digits."""
    x = torch.from_numpy((Q8.astype(np.float64) - zero) * S8)
    return F.linear(x, w.double() * ws.double()[:, None], *(e.double() for e in extras)).float()


def in_parts(x: Any) -> Any:
    """Fixed point of 24 bits written out: h, then m, then l, 64 bytes each, all + 128."""
    scale = x.abs().amax(-1, keepdim=True) / (8355711 / 65536)
    fixed = torch.round(x * (65536 / scale)).clamp(-8355711, 8355711).to(torch.int64) + 0x808080
    parts = [F.pad((fixed >> shift & 255).to(torch.uint8), (0, 59), value=128) for shift in (16, 8, 0)]
    rest = F.pad(scale.contiguous().view(torch.uint8), (0, 60))
    return torch.cat([*parts, rest], -1)


def in_levels(x: Any) -> Any:
    """Levels of 16 bits written out: what stands above the last 8, then these, 64 bytes each, all + 128."""
    scale = x.abs().amax(-1, keepdim=True) / 32639
    level = torch.round(x * (1 / scale)).to(torch.int64) + 0x8080
    parts = [F.pad((level >> shift & 255).to(torch.uint8), (0, 59), value=128) for shift in (8, 0)]
    return torch.cat([*parts, F.pad(scale.contiguous().view(torch.uint8), (0, 60))], -1)


def int16_linear(rows: Any, w: Any, ws: Any, *extras: Any) -> Any:
    """In float64, by the levels that the rows hold."""
    scale = torch.from_numpy(np.abs(X).max(-1, keepdims=True)).double() / 32639
    x = torch.round(torch.from_numpy(X).double() / scale) * scale
    return F.linear(x, w.double() * ws.double()[:, None], *extras).float()


def in_blocks(x: Any) -> Any:
    """The same of signed bytes, with sums of 16 levels each behind the scale, 40 values a row."""
    scale = x.abs().amax(-1, keepdim=True) / 32639
    level = torch.round(x * (1 / scale)).to(torch.int64)
    high = (level + 128) >> 8
    parts = [F.pad(p.to(torch.int8), (0, 24)) for p in (high, level - 256 * high)]
    sums = [level[..., at : at + 16].sum(-1, keepdim=True).to(torch.int32) for at in (0, 16, 32)]
    tail = [F.pad(scale.contiguous().view(torch.uint8), (0, 60)), *(s.view(torch.uint8) for s in sums)]
    return F.pad(torch.cat([*(p.view(torch.uint8) for p in parts), *tail], -1), (0, 52))


def int16_blockwise(
    rows: Any, levels: Any, scales: Any, *extras: Any, bits: int = 4, has_zeros: bool = False
) -> Any:
    """In float64, by the levels that the rows hold: 6 columns of 40 values in blocks of 16."""
    high, low = (rows[..., at : at + 40].view(torch.int8).double() for at in (0, 64))
    x = (256 * high + low) * rows[..., 128:132].contiguous().view(torch.float32).double()
    w, extras = _decoded(levels, scales, bits, *extras[:has_zeros]), extras[has_zeros:]
    return (F.linear(x, w) + sum(extras, torch.zeros(6, dtype=torch.float64))).float()


def in_bytes_by_block(x: Any) -> Any:
    """Signed bytes of 40 values, then 1.0, then sums and scales of 16 each."""
    parts = [x[..., at : at + 16] for at in (0, 16, 32)]
    scales = [part.abs().amax(-1, keepdim=True) / 127 for part in parts]
    levels = [
        torch.round(part * (1 / scale)).to(torch.int8) for part, scale in zip(parts, scales, strict=True)
    ]
    sums = [level.to(torch.int32).sum(-1, keepdim=True, dtype=torch.int32) for level in levels]
    one = F.pad(torch.ones_like(scales[0]).view(torch.uint8), (24, 60))
    tail = [value.contiguous().view(torch.uint8) for value in (*sums, *scales)]
    return F.pad(torch.cat([torch.cat(levels, -1).view(torch.uint8), one, *tail], -1), (0, 40))


def int8_blockwise(
    rows: Any, levels: Any, scales: Any, *extras: Any, bits: int = 4, has_zeros: bool = False
) -> Any:
    """In float64, likewise."""
    by_block = rows[..., 140:152].contiguous().view(torch.float32).double()
    x = rows[..., :40].view(torch.int8).double() * by_block.repeat_interleave(16, -1)[..., :40]
    w, extras = _decoded(levels, scales, bits, *extras[:has_zeros]), extras[has_zeros:]
    return (F.linear(x, w) + sum(extras, torch.zeros(6, dtype=torch.float64))).float()


def in_halves(x: Any) -> Any:
    """40 values of bfloat16 in an odd number of cache lines; small ones are 0."""
    kept = torch.where(x.abs() < 2.0**-50, torch.zeros(()), x)
    return F.pad(kept.to(torch.bfloat16).view(torch.uint8), (0, 112))


def bf16_linear(rows: Any, halves: Any, *extras: Any) -> Any:
    """In float64, by the values that rows and weights hold: 6 columns of 40."""
    x, w = (v[..., :80].contiguous().view(torch.bfloat16).double() for v in (rows, halves))
    return (F.linear(x, w) + sum(extras, torch.zeros(6, dtype=torch.float64))).float()


def _decoded(levels: Any, scales: Any, bits: int, *zeros: Any) -> Any:
    """f64 [6, 40] of levels in blocks of 16."""

    def wide(packed: Any) -> Any:
        return (packed if bits == 8 else torch.stack([packed & 15, packed >> 4], -1).flatten(-2)).double()

    around = [wide(z)[:, :3].repeat_interleave(16, 1)[:, :40] for z in zeros]
    less = around[0] if around else 2 ** (bits - 1)
    return (wide(levels) - less) * scales.double().repeat_interleave(16, 1)[:, :40]


def split_linear(rows: Any, w: Any, ws: Any, *extras: Any) -> Any:
    return F.linear(torch.from_numpy(X).double(), torch.from_numpy(W).double(), *extras).float()


BLOCK_ROWS = OPS["int16_rows"].reference(floats(2, 3, 40), block=16)
BYTE_ROWS = OPS["int8_rows"].reference(floats(2, 3, 40), block=16)
BLOCK_LEVELS = integers(6, 20, low=0, high=256, dtype="u8")
BLOCK_SCALES = floats(6, 3)
HALF_ROWS = OPS["bf16_rows"].reference(floats(2, 3, 40))
HALF_W = rounded(floats(6, 40)).view(np.uint8)
INT16_ROWS = OPS["int16_rows"].reference(X, block=0)
SPLIT_ROWS = OPS["split_rows"].reference(X)
SPLIT_W = split_weights(W)

TIES = integers(3, 4, 9, low=-2, high=3)
HOLED = np.concatenate([SPECIAL, SPECIAL[::-1]])[None]
HERE, PUT = integers(3, 6, 5, low=0, high=4), floats(3, 6, 5)
EXPERTS, ROWS_OF = floats(4, 5, 3), floats(12, 5)


def first_of(x: Any, count: int, down: bool) -> Any:
    return torch.sort(x, dim=-1, descending=down, stable=True)[1][..., :count]


def by_group(x: Any, w: Any, ends: Any) -> Any:
    """Each row by the matrix of the first group that ends behind it."""
    group = torch.searchsorted(ends, torch.arange(12), right=True)
    return torch.einsum("rk,rkn->rn", x, torch.cat([w, torch.zeros(1, 5, 3)])[group])


CHAIN = (("mul", (0, 1), ()), ("gelu", (-1,), (("approximate", "tanh"),)), ("add", (-2, 0), ()))

# op, inputs, attributes, PyTorch
