"""Cases of ops that multiply, pack, recur or reorder: op, arrays, attributes, what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from op_formulations import (
    ADD,
    BIAS,
    BLOCK_LEVELS,
    BLOCK_ROWS,
    BLOCK_SCALES,
    BYTE_ROWS,
    BYTES,
    CELL_W,
    EXPERTS,
    GATES,
    HALF_ROWS,
    HALF_W,
    HEADS,
    HERE,
    HOLED,
    HOLES,
    IDS,
    IMAGE8,
    INDEX,
    INT16_ROWS,
    KEEP,
    KERNEL8,
    KEYS,
    MASK,
    PB,
    PLACES,
    PUT,
    Q8,
    RAGGED,
    RES,
    ROWS,
    ROWS_OF,
    S8,
    SPLIT_ROWS,
    SPLIT_W,
    STATE,
    TABLE,
    TIES,
    U8,
    W8,
    WS,
    K,
    M,
    N,
    P,
    Q,
    R,
    V,
    W,
    X,
    bf16_linear,
    by_channel,
    by_group,
    first_of,
    floats,
    gru_step,
    halves,
    in_blocks,
    in_bytes_by_block,
    in_halves,
    in_levels,
    in_parts,
    int8_blockwise,
    int16_blockwise,
    int16_linear,
    integers,
    mha,
    norm,
    packed,
    qlinear,
    ragged_mha,
    round_by,
    row_scale,
    sdpa,
    split_linear,
    spread,
    spread_by_fours,
)
from op_values import Array

from llmc.compiler.dims import symbol

Case = tuple[str, tuple[Array, ...], dict[str, Any], Callable[..., Any]]
PRODUCTS: list[Case] = [
    ("linear", (X, W), {}, F.linear),
    ("linear", (X, W, BIAS), {"epilogue": ("bias",)}, F.linear),
    *[
        ("linear", (X, W, BIAS), {"epilogue": ("bias", n)}, lambda *a, f=f: f(F.linear(*a)))
        for n, f in (
            ("gelu", F.gelu),
            ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
            ("relu", F.relu),
            ("tanh", torch.tanh),
            ("silu", F.silu),
            ("sigmoid", torch.sigmoid),
        )
    ],
    (
        "linear",
        (X, W, RES, BIAS),
        {"epilogue": ("residual", "relu", "bias")},
        lambda x, w, r, b: F.relu(F.linear(x, w) + r) + b,
    ),
    ("linear", (X, W.astype(np.float16)), {}, lambda x, w: F.linear(x, w.float())),
    ("row_scale", (X,), {}, row_scale),
    ("row_scale", (np.zeros((2, 3), np.float32),), {}, lambda x: torch.ones(2, 1)),
    *[("quantize", (99 * X, s), {}, round_by) for s in (S8, np.float32([0.5]), abs(floats(5)))],
    ("dequantize", (Q8, S8), {}, lambda q, s: q * s),
    ("quantize", (9 * X, S8, U8), {}, lambda x, s, z: (torch.round(x / s) + z).clamp(0, 255).to(torch.uint8)),
    ("dequantize", (BYTES, np.array(0.5, np.float32), U8), {}, lambda q, s, z: (q.float() - z.float()) * s),
    ("quantize_rows", (X,), {}, lambda x: packed(round_by(x, row_scale(x)), row_scale(x))),
    (
        "quantize_rows",
        (99 * X, np.array(0.5, np.float32)),
        {"has_scale": True},
        lambda x, s: packed(round_by(x, s), s.reshape(1)),
    ),
    (
        "channel_rows",
        (IMAGE8.astype(np.float32), KERNEL8.reshape(6, 1, 3, 4).astype(np.float32)),
        {"padding": (2, 1, 0, 1), "stride": (2, 1)},
        by_channel,
    ),
    ("dequantize_rows", (ROWS,), {"size": 5}, lambda rows: torch.from_numpy(Q8 * S8)),
    ("qlinear", (ROWS, W8, WS), {}, qlinear),
    (
        "qlinear",
        (ROWS, W8, WS, np.array(131, np.uint8), BIAS),
        {"has_zero": True, "epilogue": ("bias",)},
        lambda rows, w, ws, z, b: qlinear(rows, w, ws, b, zero=3),
    ),
    (
        "qconv2d",
        (IMAGE8, np.array(0.5, np.float32), KERNEL8, WS[:4], np.array(7, np.int8)),
        {"has_zero": True, "padding": (1, 0, 2, 1), "stride": (2, 1), "groups": 2},
        lambda q, s, w, ws, z: (
            F.conv2d(
                F.pad((q.double() - 7).permute(0, 3, 1, 2), (0, 1, 1, 2)),
                w.double() * (s * ws)[:, None, None, None],
                None,
                (2, 1),
                groups=2,
            )
            .permute(0, 2, 3, 1)
            .float()
        ),
    ),
    ("qlinear", (ROWS, W8, WS, BIAS), {"epilogue": ("bias",)}, qlinear),
    ("int16_rows", (X,), {}, in_levels),
    ("int16_rows", (floats(2, 3, 40),), {"block": 16}, in_blocks),
    ("int16_linear", (INT16_ROWS, W8, WS), {}, int16_linear),
    (
        "int16_linear",
        (INT16_ROWS, W8.view(np.uint8) ^ 128, WS),
        {},
        lambda rows, w, ws: int16_linear(rows, w.double() - 128, ws),
    ),
    (
        "int16_blockwise",
        (BLOCK_ROWS, BLOCK_LEVELS, BLOCK_SCALES, floats(2, 3, 6)),
        {"columns": 40, "bits": 4, "block": 16, "epilogue": ("residual",)},
        int16_blockwise,
    ),
    (
        "int16_blockwise",
        (BLOCK_ROWS, integers(6, 40, low=0, high=256, dtype="u8"), BLOCK_SCALES),
        {"columns": 40, "bits": 8, "block": 16},
        partial(int16_blockwise, bits=8),
    ),
    (
        "int16_blockwise",
        (
            BLOCK_ROWS,
            BLOCK_LEVELS,
            BLOCK_SCALES,
            integers(6, 2, low=0, high=256, dtype="u8"),
            floats(2, 3, 6),
        ),
        {"columns": 40, "bits": 4, "block": 16, "has_zeros": True, "epilogue": ("residual",)},
        partial(int16_blockwise, has_zeros=True),
    ),
    ("int8_rows", (floats(2, 3, 40),), {"block": 16}, in_bytes_by_block),
    (
        "int8_blockwise",
        (BYTE_ROWS, BLOCK_LEVELS, BLOCK_SCALES, floats(2, 3, 6)),
        {"columns": 40, "bits": 4, "block": 16, "epilogue": ("residual",)},
        int8_blockwise,
    ),
    (
        "int8_blockwise",
        (BYTE_ROWS, integers(6, 40, low=0, high=256, dtype="u8"), BLOCK_SCALES),
        {"columns": 40, "bits": 8, "block": 16},
        partial(int8_blockwise, bits=8),
    ),
    (
        "int8_blockwise",
        (
            BYTE_ROWS,
            integers(6, 40, low=0, high=256, dtype="u8"),
            BLOCK_SCALES,
            integers(6, 3, low=0, high=256, dtype="u8"),
        ),
        {"columns": 40, "bits": 8, "block": 16, "has_zeros": True},
        partial(int8_blockwise, bits=8, has_zeros=True),
    ),
    ("bf16_rows", (floats(2, 3, 40) * np.float32(1e-14),), {}, in_halves),
    ("bf16_linear", (HALF_ROWS, HALF_W), {"columns": 40}, bf16_linear),
    (
        "bf16_linear",
        (HALF_ROWS, HALF_W, floats(2, 3, 6), floats(6)),
        {"columns": 40, "epilogue": ("residual", "gelu", "bias")},
        lambda rows, w, r, b: F.gelu(bf16_linear(rows, w, r)) + b,
    ),
    (
        "int16_linear",
        (INT16_ROWS, W8, WS, RES, BIAS),
        {"epilogue": ("residual", "gelu", "bias")},
        lambda rows, w, ws, r, b: F.gelu(int16_linear(rows, w, ws) + r) + b,
    ),
    ("split_rows", (X,), {}, in_parts),
    ("split_linear", (SPLIT_ROWS, *SPLIT_W), {}, split_linear),
    (
        "split_linear",
        (SPLIT_ROWS, *SPLIT_W, RES, BIAS),
        {"epilogue": ("residual", "gelu", "bias")},
        lambda rows, w, ws, r, b: F.gelu(split_linear(rows, w, ws) + r) + b,
    ),
    (
        "qlinear",
        (ROWS, W8, WS, RES, BIAS),
        {"epilogue": ("residual", "gelu", "bias")},
        lambda rows, w, ws, r, b: F.gelu(qlinear(rows, w, ws) + r) + b,
    ),
    (
        "embed_norm",
        (ROWS[0, :, :32], integers(2, 3, low=0, high=4), floats(5), floats(5)),
        {"eps": 1e-3, "tables": 1},
        lambda t, i, *p: norm(F.embedding(i, torch.from_numpy(Q8[0] * S8[0])), *p),
    ),
    ("matmul", (floats(2, 1, 3, 4), floats(5, 4, 6)), {}, torch.matmul),
    ("attention", (Q, K, V), {"scale": 0.3}, sdpa),
    ("attention", (Q, K, V), {"scale": 0.3, "causal": True}, lambda q, k, v: sdpa(q, k, v, causal=True)),
    (
        "attention",
        (Q, K, V),
        {"scale": 0.3, "causal": True, "window": 2},
        lambda q, k, v: sdpa(q, k, v, causal=True, window=2),
    ),
    ("attention", (Q, K, V, KEEP), {"scale": 0.3, "has_mask": True}, sdpa),
    ("attention", (Q, K, V, ADD), {"scale": 0.3, "has_mask": True}, sdpa),
    (
        "mha",
        (P, R, R, KEYS, PB),
        {"heads": 3, "head_dim": 4, "scale": 0.3, "offsets": (2, 3, 20), "has_keys": True, "has_bias": True},
        mha,
    ),
    (
        "mha",
        (P, P, P),
        {"heads": 2, "head_dim": 5, "scale": 0.3, "causal": True, "offsets": (0, 10, 20)},
        lambda q, k, v: (
            sdpa(
                *(
                    x[..., o : o + 10].unflatten(-1, (2, 5)).transpose(1, 2)
                    for x, o in ((q, 0), (k, 10), (v, 20))
                ),
                causal=True,
            )
            .transpose(1, 2)
            .flatten(2)
        ),
    ),
    ("pack_index", (HOLES,), {"tokens": symbol("tokens")}, lambda m: torch.tensor([*INDEX, 10, 11])),
    (
        "pack_offsets",
        (HOLES,),
        {},
        lambda m: torch.tensor([0, 2, 5, 7, 10]),
    ),  # a row without tokens is kept whole
    ("pack_places", (HOLES,), {}, lambda m: torch.tensor(PLACES)),
    (
        "unpack_rows",
        (floats(8, 5), np.array(PLACES)),
        {},
        lambda x, at: torch.where((at >= 0)[..., None], x[at.clamp(min=0)], 0),
    ),
    ("ragged_mha", RAGGED, HEADS, ragged_mha),
    ("ragged_mha", (*RAGGED, PB[..., :3]), {**HEADS, "has_bias": True}, ragged_mha),
    ("add_norm", (X, floats(3, 4, 5), floats(5), floats(5)), {"eps": 1e-3}, lambda x, r, *p: norm(x + r, *p)),
    (
        "embed_norm",
        (TABLE, IDS, floats(4, 6), integers(1, 3, low=0, high=4), floats(6), floats(6)),
        {"eps": 1e-3, "tables": 2},
        lambda t, i, u, j, *p: norm(F.embedding(i, t) + F.embedding(j, u), *p),
    ),
    ("codebook", (BYTES, floats(200)), {"columns": 5}, lambda i, v: v[i.long().clamp(max=199)]),
    ("codebook", (BYTES, floats(16)), {"columns": 9, "bits": 4}, lambda i, v: v[halves(i)[..., :9]]),
    (
        "bfloat16",
        (np.ascontiguousarray(floats(2, 3, 5).view(np.uint16)[..., 1::2]).view(np.uint8),),
        {"columns": 5},
        lambda halves: halves.view(torch.bfloat16).float(),
    ),
    (
        "blockwise",
        (BYTES, floats(2, 3, 3)),
        {"columns": 5, "block": 2},
        lambda i, s: (i.float() - 128) * s.repeat_interleave(2, -1)[..., :5],
    ),
    (
        "blockwise",
        (BYTES, floats(2, 3, 2)),
        {"columns": 9, "block": 6, "bits": 4},
        lambda i, s: (halves(i)[..., :9].float() - 8) * s.repeat_interleave(6, -1)[..., :9],
    ),
    (
        "blockwise",
        (BYTES, floats(2, 3, 2), integers(2, 3, 1, low=0, high=256, dtype="u8")),
        {"columns": 9, "block": 6, "bits": 4},
        lambda i, s, z: (
            (halves(i)[..., :9].float() - halves(z).repeat_interleave(6, -1)[..., :9])
            * s.repeat_interleave(6, -1)[..., :9]
        ),
    ),
    (
        "conv2d",
        (floats(2, 4, 7, 6), floats(6, 2, 3, 2), floats(6)),
        {"stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2), "groups": 2, "epilogue": ("bias",)},
        lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 1, 2)), w, b, (2, 1), 0, (1, 2), 2),
    ),
    (
        "conv2d",
        (floats(2, 7, 6, 4), floats(6, 4, 3, 3), floats(6)),
        {"padding": (1, 0, 2, 1), "epilogue": ("bias",), "channels_last": True, "winograd": True},
        lambda x, w, b: F.conv2d(F.pad(x.permute(0, 3, 1, 2), (0, 1, 1, 2)), w, b).permute(0, 2, 3, 1),
    ),
    (
        "max_pool2d",
        (floats(2, 4, 7, 6),),
        {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0, 0, 1), "dilation": (1, 2)},
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 1, 0), value=-torch.inf), (3, 2), (2, 1), 0, (1, 2)),
    ),
    (
        "avg_pool2d",
        (floats(2, 4, 7, 6),),
        {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0, 0, 1)},
        lambda x: F.avg_pool2d(F.pad(x, (0, 1, 1, 0)), (3, 2), (2, 1)),
    ),
    ("gru_cell", (GATES[:, :18], STATE, CELL_W[:18], BIAS[:6]), {}, gru_step),
    ("append", (X, X[:1]), {}, lambda state, new: torch.cat((state, new))),
    ("append", (X[:0], X), {}, lambda state, new: new),
    ("bitmask", (BYTES[0], floats(int(MASK[:, :37].sum()))), {"columns": 37}, spread),
    (
        "bitmask",
        (BYTES[0], floats(4 * int(MASK[:, :37].sum()))),
        {"columns": 37, "height": 4},
        spread_by_fours,
    ),
    *[(n, (N, M), {}, getattr(torch, f"{n[:3]}wise_{n[3:]}")) for n in ("bitand", "bitor", "bitxor")],
    ("prod", (X,), {"axes": (1,), "keepdims": True}, lambda x: x.prod(1, keepdim=True)),
    ("prod", (N,), {"axes": (1,)}, lambda x: x.prod(1)),
    *[
        ("argsort", (x,), {"count": n, "descending": d}, lambda x, n=n, d=d: first_of(x, n, d))
        for x, n in ((TIES, 9), (TIES, 4), (X, 2), (HOLED, 16), (HOLED, 5))
        for d in (False, True)
    ],
    ("scatter", (X, HERE[:, :1], PUT[:, :1]), {"axis": 1}, lambda x, i, u: x.scatter(1, i, u)),
    ("scatter", (X, np.array([2, 0]), PUT[:, :2]), {"axis": 1}, lambda x, i, u: x.index_copy(1, i, u)),
    *[
        (
            "scatter",
            (X, HERE, PUT),
            {"axis": 1, "reduce": r},
            lambda x, i, u, f=f: x.scatter_reduce(1, i, u, f),
        )
        for r, f in (("add", "sum"), ("mul", "prod"), ("max", "amax"), ("min", "amin"))
    ],
    (
        "scatter",
        (X, np.array([3, 1, 3]), PUT[:, :3]),
        {"axis": 1, "reduce": "add"},
        lambda x, i, u: x.index_add(1, i, u),
    ),
    ("grouped_matmul", (ROWS_OF, EXPERTS, np.array([3, 3, 7, 10])), {}, by_group),
]
