"""Operands and attributes that the type rule of an op accepts, with the type that follows."""

from __future__ import annotations

from typing import Any

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import input_, make

B, S, T = symbol("batch"), symbol("seq"), symbol("keys")


def t(*shape: Any, dtype: str = "f32") -> Node:
    """A node of this type."""
    return input_("x", dtype, shape)


def n(*shape: Any) -> Node:
    return t(*shape, dtype="i64")


def b(*shape: Any) -> Node:
    return t(*shape, dtype="bool")


KEYS = {"name": "keys", "dtype": "f32", "shape": (S, 8), "grows": 0}
TWO = (t(B), t(B))
ADDED = Graph(TWO, {"y": make("add", TWO)})
PAIR = make("lstm_cell", (t(B, 32), t(B, 8), t(B, 8), t(32, 8)))
MHA = {"heads": 2, "head_dim": 4, "scale": 0.5}
RAGGED = (t(T, 24), t(T, 24), t(T, 8), b(T), n(T), n(B + 1))

ACCEPTED: list[tuple[str, tuple[Node, ...], dict[str, Any], str]] = [
    ("add", (t(B, S, 8), t(8)), {}, "f32[batch, seq, 8]"),
    ("state", (), KEYS, "f32[seq, 8]"),
    ("append", (t(S, B, 8), t(2 * S, B, 8)), {}, "f32[3*seq, batch, 8]"),
    ("add", (t(B, 1, 8), t(1, S, 1)), {}, "f32[batch, seq, 8]"),
    ("add", (t(S + S), t(2 * S)), {}, "f32[2*seq]"),
    ("eq", (n(B, 1), n(S)), {}, "bool[batch, seq]"),
    ("where", (b(B, 1, 1), t(S, 4), t()), {}, "f32[batch, seq, 4]"),
    ("cast", (n(B),), {"dtype": "f16"}, "f16[batch]"),
    ("chain", (t(B, 4), t(4)), {"body": (("gt", (0, 1), ()), ("not", (-1,), ()))}, "bool[batch, 4]"),
    ("reshape", (t(B, S, 8),), {"shape": (B * S, 8)}, "f32[batch*seq, 8]"),
    ("reshape", (t(B, S, 8),), {"shape": (S, 2, 4 * B)}, "f32[seq, 2, 4*batch]"),
    ("reshape", (t(B, S + 1),), {"shape": (B * S + B,)}, "f32[batch*seq + batch]"),
    ("reshape", (t(1, 1),), {"shape": ()}, "f32[]"),
    ("transpose", (t(B, S, 8),), {"perm": (2, 0, 1)}, "f32[8, batch, seq]"),
    ("expand", (t(1, 8),), {"shape": (B, S, 8)}, "f32[batch, seq, 8]"),
    ("ensure_shape", (t(B, S),), {"shape": (B, 2 * B)}, "f32[batch, 2*batch]"),
    ("slice", (t(B, S),), {"axis": 1, "start": 1, "stop": S}, "f32[batch, seq - 1]"),
    ("slice", (t(9),), {"axis": 0, "start": 1, "stop": 8, "step": 3}, "f32[3]"),
    ("concat", (t(B, S), t(B, 1)), {"axis": 1}, "f32[batch, seq + 1]"),
    ("pad", (t(B, S),), {"before": (0, 1), "after": (0, 2)}, "f32[batch, seq + 3]"),
    ("gather", (t(B, 9), n(B, S)), {"axis": 1}, "f32[batch, seq]"),
    ("embedding", (t(30, 8), n(B, S)), {}, "f32[batch, seq, 8]"),
    ("iota", (), {"length": S + 1}, "i64[seq + 1]"),
    ("full", (), {"shape": (B, S), "value": 0.0, "dtype": "f32"}, "f32[batch, seq]"),
    ("dim", (), {"value": 2 * S}, "i64[]"),
    ("lstm_cell", (t(B, 32), t(B, 8), t(B, 8), t(32, 8)), {}, "(f32[batch, 8], f32[batch, 8])"),
    ("lstm_cell", (t(B, 32), t(B, 3), t(B, 8), t(32, 3)), {}, "(f32[batch, 8], f32[batch, 8])"),
    ("gru_cell", (t(B, 24), t(B, 8), t(24, 8), t(8)), {}, "f32[batch, 8]"),
    ("loop", (t(S, B), t(B)), {"body": ADDED, "count": S, "scanned": 1, "carried": 1}, "(f32[batch])"),
    ("branch", (b(), t(B), t(B)), {"then": ADDED, "otherwise": ADDED}, "(f32[batch])"),
    ("result", (PAIR,), {"index": 1}, "f32[batch, 8]"),
    ("sum", (t(B, S, 8),), {"axes": (0, 2)}, "f32[seq]"),
    ("mean", (t(B, S, 8),), {"axes": (1,), "keepdims": True}, "f32[batch, 1, 8]"),
    ("argmax", (t(B, S),), {"axis": 1}, "i64[batch]"),
    ("prod", (n(B, S),), {"axes": (1,)}, "i64[batch]"),
    ("argsort", (t(B, S),), {"count": S}, "i64[batch, seq]"),
    ("argsort", (n(B, 9),), {"count": 2, "descending": True}, "i64[batch, 2]"),
    ("scatter", (t(B, 9, 8), n(B, S, 8), t(B, S, 8)), {"axis": 1, "reduce": "add"}, "f32[batch, 9, 8]"),
    ("scatter", (b(B, 9, 8), n(S), b(B, S, 8)), {"axis": 1}, "bool[batch, 9, 8]"),
    ("grouped_matmul", (t(B * S, 8), t(4, 8, 3), n(4)), {}, "f32[batch*seq, 3]"),
    ("rotary", (t(B, S, 4, 8), t(B, S, 1, 8), t(1, S, 1, 8)), {}, "f32[batch, seq, 4, 8]"),
    ("rotary", (t(T, 4, 9), t(T, 1, 6), t(6)), {}, "f32[keys, 4, 9]"),
    ("linear", (t(B, S, 8), t(3, 8)), {}, "f32[batch, seq, 3]"),
    (
        "linear",
        (t(B, S, 8), t(3, 8), t(3), t(B, S, 3)),
        {"epilogue": ("bias", "gelu", "residual")},
        "f32[batch, seq, 3]",
    ),
    ("matmul", (t(B, 1, S, 4), t(3, 4, T)), {}, "f32[batch, 3, seq, keys]"),
    ("attention", (t(B, 4, S, 8), t(B, 2, T, 8), t(B, 2, T, 6)), {"scale": 1.0}, "f32[batch, 4, seq, 6]"),
    ("mha", (t(B, S, 24), t(B, T, 8), t(B, T, 8)), {**MHA, "offsets": (16, 0, 0)}, "f32[batch, seq, 8]"),
    (
        "mha",
        (t(B, S, 8),) * 3 + (b(B, S), t(1, 2, S, S)),
        {**MHA, "has_keys": True, "has_bias": True},
        "f32[batch, seq, 8]",
    ),
    (
        "mha",
        (t(B, S, 8), t(B, T, 4), t(B, T, 4)),
        {**MHA, "heads": 4, "head_dim": 2, "kv_heads": 2},
        "f32[batch, seq, 8]",
    ),
    (
        "mha",
        (t(B, S, 8), t(B, T, 4, dtype="f16"), t(B, T, 4, dtype="f16")),
        {**MHA, "heads": 4, "head_dim": 2, "kv_heads": 2},
        "f32[batch, seq, 8]",
    ),
    (
        "mha",
        (t(B, S, 8), *(t(B, T, 64, dtype="u8"),) * 2),
        {**MHA, "heads": 2, "head_dim": 4},
        "f32[batch, seq, 8]",
    ),
    ("pack_index", (n(B, S),), {"tokens": T}, "i64[keys]"),
    ("pack_offsets", (b(B, S),), {}, "i64[batch + 1]"),
    ("pack_places", (n(B, S),), {}, "i64[batch, seq]"),
    ("unpack_rows", (t(T, 8), n(B, S)), {}, "f32[batch, seq, 8]"),
    ("ragged_mha", RAGGED, {**MHA, "seq": S, "offsets": (16, 8, 0)}, "f32[keys, 8]"),
    (
        "ragged_mha",
        (*RAGGED, t(1, 2, S, S)),
        {**MHA, "seq": S, "offsets": (16, 8, 0), "has_bias": True},
        "f32[keys, 8]",
    ),
    ("add_norm", (t(B, 8), t(B, 8), t(8), t(8)), {"eps": 1e-5}, "f32[batch, 8]"),
    (
        "conv2d",
        (t(B, 4, 9, 8), t(6, 2, 3, 3), t(6)),
        {"stride": (2, 1), "padding": (1, 0, 1, 2), "groups": 2, "epilogue": ("bias", "relu6")},
        "f32[batch, 6, 5, 8]",
    ),
    (
        "conv2d",
        (t(B, 9, 8, 4), t(6, 4, 3, 3)),
        {"padding": (1, 0, 1, 2), "channels_last": True, "winograd": True},
        "f32[batch, 9, 8, 6]",
    ),
    (
        "max_pool2d",
        (t(B, 4, 9, 8),),
        {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0, 1, 0)},
        "f32[batch, 4, 5, 4]",
    ),
    ("avg_pool2d", (t(B, 4, 9, 8),), {"kernel": (3, 2), "stride": (3, 2)}, "f32[batch, 4, 3, 4]"),
    (
        "embed_norm",
        (t(9, 8), n(B, S), t(5, 8), n(1, S), t(8), t(8)),
        {"eps": 1e-5, "tables": 2},
        "f32[batch, seq, 8]",
    ),
    ("codebook", (t(B, 3, dtype="u8"), t(256)), {"columns": 3}, "f32[batch, 3]"),
    ("codebook", (t(B, S, 2, dtype="u8"), t(16)), {"columns": 3, "bits": 4}, "f32[batch, seq, 3]"),
    ("bfloat16", (t(B, 5, 18, dtype="u8"),), {"columns": 9}, "f32[batch, 5, 9]"),
    ("blockwise", (t(5, 9, dtype="u8"), t(5, 3)), {"columns": 9, "block": 4}, "f32[5, 9]"),
    (
        "blockwise",
        (t(B, 5, dtype="u8"), t(B, 1, dtype="f16")),
        {"columns": 9, "bits": 4, "block": 9},
        "f32[batch, 9]",
    ),
    (
        "blockwise",
        (t(B, 5, dtype="u8"), t(B, 3), t(B, 2, dtype="u8")),
        {"columns": 9, "bits": 4, "block": 4},
        "f32[batch, 9]",
    ),
    ("bitmask", (t(5, 2, dtype="u8"), t(40)), {"columns": 9}, "f32[5, 9]"),
    ("bitmask", (t(5, 2, dtype="u8"), t(40)), {"columns": 9, "height": 4}, "f32[20, 9]"),
    (
        "embed_norm",
        (t(9, 32, dtype="u8"), n(B, S), t(5, 8, dtype="f16"), n(1, S), t(8), t(8)),
        {"eps": 1e-5, "tables": 2},
        "f32[batch, seq, 8]",
    ),
    ("linear", (t(B, 8), t(3, 8, dtype="f16")), {}, "f32[batch, 3]"),
    ("row_scale", (t(B, S, 8),), {}, "f32[batch, seq, 1]"),
    ("quantize", (t(B, S, 8), t(B, S, 1)), {}, "i8[batch, seq, 8]"),
    ("dequantize", (t(B, S, dtype="i8"), t()), {}, "f32[batch, seq]"),
    ("quantize", (t(B, S, 8), t(8), t(dtype="u8")), {}, "u8[batch, seq, 8]"),
    ("dequantize", (t(B, S, dtype="u8"), t(), t(dtype="u8")), {}, "f32[batch, seq]"),
    (
        "quantize_rows",
        (t(B, 16), t(), t(dtype="i8")),
        {"has_scale": True, "has_zero": True},
        "u8[batch, 64]",
    ),
    (
        "qconv2d",
        (t(B, 5, 7, 6, dtype="u8"), t(), t(8, 3, 3, 3, dtype="i8"), t(8), t(dtype="u8"), t(8)),
        {"groups": 2, "padding": (1, 1, 1, 1), "has_zero": True, "epilogue": ("bias",)},
        "f32[batch, 5, 7, 8]",
    ),
    (
        "channel_rows",
        (t(B, 5, 7, 17), t(17, 1, 3, 3), t(17)),
        {"padding": (1, 1, 0, 0), "stride": (2, 1), "epilogue": ("bias",)},
        "u8[batch, 2, 6, 64]",
    ),
    ("quantize_rows", (t(B, S, 17),), {}, "u8[batch, seq, 64]"),
    ("quantize_rows", (t(B, 16), t()), {"has_scale": True}, "u8[batch, 64]"),
    ("quantize_rows", (t(B, S, 17),), {"table": True}, "u8[batch, seq, 48]"),
    ("dequantize_rows", (t(B, 32, dtype="u8"),), {"size": 9}, "f32[batch, 9]"),
    (
        "qlinear",
        (t(B, S, 64, dtype="u8"), t(3, 16, dtype="i8"), t(3), t(B, S, 3)),
        {"epilogue": ("gelu", "residual")},
        "f32[batch, seq, 3]",
    ),
    ("int16_rows", (t(B, S, 65),), {}, "u8[batch, seq, 320]"),
    (
        "int16_linear",
        (t(B, S, 192, dtype="u8"), t(3, 17, dtype="i8"), t(3), t(B, S, 3)),
        {"epilogue": ("gelu", "residual")},
        "f32[batch, seq, 3]",
    ),
    ("int16_rows", (t(B, S, 65),), {"block": 16}, "u8[batch, seq, 384]"),
    (
        "int16_blockwise",
        (t(B, S, 256, dtype="u8"), t(3, 17, dtype="u8"), t(3, 3, dtype="f16"), t(B, S, 3)),
        {"columns": 33, "bits": 4, "block": 16, "epilogue": ("gelu", "residual")},
        "f32[batch, seq, 3]",
    ),
    (
        "int16_blockwise",
        (t(B, S, 256, dtype="u8"), t(3, 33, dtype="u8"), t(3, 1)),
        {"columns": 33, "bits": 8, "block": 33},
        "f32[batch, seq, 3]",
    ),
    (
        "int16_blockwise",
        (t(B, S, 256, dtype="u8"), t(3, 33, dtype="u8"), t(3, 3), t(3, 3, dtype="u8"), t(B, S, 3)),
        {"columns": 33, "bits": 8, "block": 16, "has_zeros": True, "epilogue": ("residual",)},
        "f32[batch, seq, 3]",
    ),
    ("int8_rows", (t(B, S, 65),), {"block": 16}, "u8[batch, seq, 256]"),
    (
        "int8_blockwise",
        (t(B, S, 192, dtype="u8"), t(3, 17, dtype="u8"), t(3, 3, dtype="f16"), t(B, S, 3)),
        {"columns": 33, "bits": 4, "block": 16, "epilogue": ("gelu", "residual")},
        "f32[batch, seq, 3]",
    ),
    ("bf16_rows", (t(B, S, 65),), {}, "u8[batch, seq, 192]"),
    ("bf16_rows", (t(B, S, 64),), {}, "u8[batch, seq, 192]"),
    (
        "bf16_linear",
        (t(B, S, 192, dtype="u8"), t(3, 66, dtype="u8"), t(B, S, 3)),
        {"columns": 33, "epilogue": ("gelu", "residual")},
        "f32[batch, seq, 3]",
    ),
    ("split_rows", (t(B, S, 65),), {}, "u8[batch, seq, 448]"),
    (
        "split_linear",
        (t(B, S, 256, dtype="u8"), t(3, 192, dtype="i8"), t(3), t(B, S, 3)),
        {"epilogue": ("gelu", "residual")},
        "f32[batch, seq, 3]",
    ),
]
