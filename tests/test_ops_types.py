"""Type rules: symbolic shapes that are accepted, and refusals with a clear message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import dim_text, symbol
from llmc.compiler.graph import Graph, Node, Source, TensorType, Weight
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.compiler.ops.faults import Fault
from llmc.errors import LlmcError

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
    ("blockwise", (t(5, 9, dtype="u8"), t(5, 3)), {"columns": 9, "block": 4}, "f32[5, 9]"),
    (
        "blockwise",
        (t(B, 5, dtype="u8"), t(B, 1, dtype="f16")),
        {"columns": 9, "bits": 4, "block": 9},
        "f32[batch, 9]",
    ),
    ("bitmask", (t(5, 2, dtype="u8"), t(40)), {"columns": 9}, "f32[5, 9]"),
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
    ("split_rows", (t(B, S, 65),), {}, "u8[batch, seq, 448]"),
    (
        "split_linear",
        (t(B, S, 256, dtype="u8"), t(3, 192, dtype="i8"), t(3), t(B, S, 3)),
        {"epilogue": ("gelu", "residual")},
        "f32[batch, seq, 3]",
    ),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "expected"), ACCEPTED)
def test_inferred_type(op: str, inputs: tuple[Node, ...], attributes: dict[str, Any], expected: str):
    assert str(make(op, inputs, **attributes).type) == expected


REFUSED: list[tuple[str, tuple[Node, ...], dict[str, Any], str]] = [
    ("neg", (b(2),), {}, "dtype bool"),
    ("exp", (n(2),), {}, "dtype i64"),
    ("gelu", (t(2, dtype="f16"),), {}, "dtype f16"),
    ("gelu", (t(2),), {"approximate": "fast"}, "'fast'"),
    ("not", (t(2),), {}, "dtype f32"),
    ("cast", (t(2),), {"dtype": "f128"}, "'f128' is not supported"),
    ("cast", (t(2, dtype="f16"),), {"dtype": "f64"}, "no processor casts between f16 and f64"),
    ("cast", (t(2, dtype="f64"),), {"dtype": "f16"}, "no processor casts between f16 and f64"),
    ("add", (t(2, dtype="f64"), t(2)), {}, "different dtypes"),
    ("exp", (t(2, dtype="f64"),), {}, "dtype f64"),
    ("add", (t(2), n(2)), {}, "different dtypes"),
    ("add", (t(S), t(B)), {}, "seq and batch do not broadcast"),
    ("add", (t(S), t(2)), {}, "seq and 2 do not broadcast"),
    ("add", (t(S), t(S + 1)), {}, "do not broadcast"),
    ("add", (t(2),), {}, "wrong number of inputs"),
    ("div", (n(2), n(2)), {}, "dtype i64"),
    ("and", (n(2), n(2)), {}, "dtype i64"),
    ("where", (n(2), t(2), t(2)), {}, "the condition"),
    ("where", (b(2), t(2), n(2)), {}, "different dtypes"),
    ("chain", (t(2),), {"body": ()}, "at least one step"),
    ("chain", (t(2),), {"body": (("softmax", (0,), (("axis", 0),)),)}, "not a simple element-wise op"),
    ("chain", (t(2),), {"body": (("neg", (1,), ()),)}, "reads 1"),
    ("chain", (t(2),), {"body": (("neg", (-1,), ()),)}, "reads -1"),
    ("chain", (t(2),), {"body": (("not", (0,), ()),)}, "dtype f32"),
    ("reshape", (t(B, S, 8),), {"shape": (B, S, 9)}, "needs 9*batch*seq"),
    ("reshape", (t(4),), {"shape": (-1,)}, "negative dim"),
    ("reshape", (t(4),), {"shape": [4]}, "not a tuple"),
    ("reshape", (t(4),), {"shape": ("seq",)}, "holds 'seq'"),
    ("reshape", (t(4),), {"shape": (4.0,)}, "holds 4.0"),
    ("dim", (), {"value": True}, "holds True"),
    ("transpose", (t(4),), {"perm": (None, "a")}, "not an order of the axes"),
    (
        "chain",
        (t(4),),
        {"body": (("neg",),)},
        "step 0 is ('neg',), not (op, argument references, attributes)",
    ),
    ("transpose", (t(B, S),), {"perm": (0, 0)}, "not an order"),
    ("expand", (t(2),), {"shape": (S,)}, "does not broadcast"),
    ("expand", (t(2, 2),), {"shape": (2,)}, "does not broadcast"),
    ("ensure_shape", (t(4),), {"shape": (2, 2)}, "the input has 1 axes"),
    ("ensure_shape", (t(4, S),), {"shape": (4, S + 1)}, "seq is never seq + 1"),
    ("slice", (t(4),), {"axis": 1, "start": 0, "stop": 1}, "axis 1 is not in 0..0"),
    ("slice", (t(4),), {"axis": 0, "start": 0, "stop": 5}, "not within 0:4"),
    ("slice", (t(S),), {"axis": 0, "start": 0, "stop": S + 1}, "not within 0:seq"),
    ("slice", (t(4),), {"axis": 0, "start": 3, "stop": 2}, "not within"),
    ("slice", (t(4),), {"axis": 0, "start": 0, "stop": 2, "step": 0}, "step is 0"),
    ("concat", (), {"axis": 0}, "at least one input"),
    ("concat", (t(B, 2), t(S, 2)), {"axis": 1}, "input 1 has shape"),
    ("concat", (t(2), t(2, 2)), {"axis": 0}, "rank 2"),
    ("pad", (t(2),), {"before": (0, 0), "after": (0,)}, "one number for each"),
    ("pad", (t(2),), {"before": (-1,), "after": (0,)}, "at least 0"),
    ("gather", (t(2), t(2)), {"axis": 0}, "the index has dtype f32"),
    ("gather", (t(2, 3), n(3, 3)), {"axis": 1}, "the index has shape"),
    ("embedding", (t(), n(2)), {}, "a scalar"),
    ("argsort", (t(),), {"count": 1}, "a scalar"),
    ("argsort", (t(B, 4),), {"count": 5}, "count 5 is not within 0:4"),
    ("argsort", (t(S),), {"count": S + 1}, "is not within 0:seq"),
    ("argsort", (b(4),), {"count": 1}, "dtype bool"),
    ("scatter", (t(4), n(2), n(2)), {"axis": 0}, "different dtypes"),
    ("scatter", (t(4), t(2), t(2)), {"axis": 0}, "the index has dtype f32"),
    ("scatter", (t(4, 3), n(2), t(2, 4)), {"axis": 0}, "updates has shape"),
    ("scatter", (t(4, 3), n(2, 1), t(2, 3)), {"axis": 0}, "the index has shape"),
    ("scatter", (t(4), n(2), t(2)), {"axis": 0, "reduce": "mean"}, "reduce is 'mean'"),
    ("scatter", (b(4), n(2), b(2)), {"axis": 0, "reduce": "add"}, "dtype bool"),
    ("grouped_matmul", (t(4, 3), t(2, 4, 5), n(2)), {}, "w has shape"),
    ("grouped_matmul", (t(4, 3), t(2, 3, 5), n(3)), {}, "ends has shape"),
    ("grouped_matmul", (t(4, 3), t(0, 3, 5), n(0)), {}, "w has no matrix"),
    ("iota", (), {"length": -1}, "negative"),
    ("iota", (), {"length": 2, "dtype": "bool"}, "dtype bool"),
    ("full", (), {"shape": (2,), "value": "x", "dtype": "f32"}, "not a number"),
    ("constant", (), {"value": np.ones(2)}, "not a Weight"),
    ("constant", (), {"value": Weight(np.ones(2, complex))}, "complex128 is not supported"),
    ("input", (), {"name": "", "dtype": "f32", "shape": ()}, "non-empty"),
    ("input", (), {"name": "x", "dtype": "f32", "shape": (), "low": 2, "high": 1}, "low 2 is above high 1"),
    ("sum", (t(2),), {"axes": (-1,)}, "counted from 0"),
    ("sum", (t(2, 2),), {"axes": (1, 0)}, "ascending"),
    ("sum", (t(2),), {"axes": ()}, "at least one axis"),
    ("sum", (t(2),), {"axes": (0,), "keepdims": 1}, "not true or false"),
    ("sum", (b(2),), {"axes": (0,)}, "dtype bool"),
    ("any", (t(2),), {"axes": (0,)}, "dtype f32"),
    ("softmax", (t(2, 2),), {"axis": 2}, "axis 2"),
    ("softmax", (n(2),), {"axis": 0}, "dtype i64"),
    ("layer_norm", (t(2, 4), t(4)), {"eps": 1e-5}, "takes 3 inputs, not 2"),
    ("layer_norm", (t(2, 4), t(2), t(4)), {"eps": 1e-5}, "weight has shape"),
    ("layer_norm", (t(2, 4), t(4), t(4)), {"eps": -1.0}, "not positive"),
    ("rms_norm", (t(), t(1)), {"eps": 1e-5}, "scalar"),
    ("linear", (t(2, 8), t(3, 9)), {}, "last dim"),
    ("linear", (t(2, 8), t(3, 8)), {"epilogue": ("bias",)}, "reads 1 extra inputs, given are 0"),
    ("linear", (t(2, 8), t(3, 8), t(8)), {"epilogue": ("bias",)}, "bias has shape"),
    ("linear", (t(2, 8), t(3, 8), t(3)), {"epilogue": ("residual",)}, "residual has shape"),
    ("linear", (t(2, 8), t(3, 8)), {"epilogue": ("swish",)}, "no epilogue step"),
    ("matmul", (t(2, 3), t(4, 5)), {}, "inner dims differ"),
    ("matmul", (t(3), t(3, 5)), {}, "fewer than 2 axes"),
    ("attention", (t(B, 3, S, 8), t(B, 2, S, 8), t(B, 2, S, 8)), {"scale": 1.0}, "not a multiple"),
    ("attention", (t(B, 2, S, 8), t(B, 2, T, 8), t(B, 2, S, 8)), {"scale": 1.0}, "v has shape"),
    ("attention", (t(B, 2, S, 8),) * 3 + (b(B, S, S),), {"scale": 1.0, "has_mask": True}, "mask of shape"),
    ("mha", (t(B, S, 8),) * 3, {**MHA, "offsets": (0, 0, 1)}, "v has no columns 1 to 9"),
    ("mha", (t(B, S, 8),) * 3 + (b(S, B),), {**MHA, "has_keys": True}, "keys has shape"),
    ("mha", (t(B, S, 8),) * 3, {**MHA, "evenly": True}, "evenly is for attention with keys"),
    (
        "mha",
        (t(B, S, 8), *(t(B, T, 8, dtype="f16"),) * 2),
        {**MHA, "offsets": (0, 1, 0)},
        "begin with their first head",
    ),
    ("mha", (t(B, S, 8), t(B, T, 8, dtype="f16"), t(B, T, 8)), MHA, "v has dtype f32"),
    ("mha", (t(B, S, 8), *(t(B, T, 8, dtype="u8"),) * 2), MHA, "k has shape"),
    ("pack_index", (n(B, S),), {"tokens": 4}, "not the name of a dim"),
    ("pack_index", (t(B, S),), {"tokens": T}, "the mask has dtype f32"),
    ("pack_offsets", (n(B, S, 1),), {}, "the mask has rank 3"),
    ("unpack_rows", (t(T, 8), n(B, S, 1)), {}, "the places has rank 3"),
    ("ragged_mha", RAGGED, {**MHA, "seq": S, "offsets": (16, 8, 1)}, "v has no columns 1 to 9"),
    ("ragged_mha", (*RAGGED[:3], b(S), *RAGGED[4:]), {**MHA, "seq": S}, "keys has shape"),
    ("ragged_mha", RAGGED, {**MHA, "seq": S, "has_bias": True}, "takes 1 inputs, not 0"),
    ("add_norm", (t(B, 8), t(8), t(8), t(8)), {"eps": 1e-5}, "residual has shape"),
    ("linear", (t(2, 8), t(3, 8, dtype="i8")), {}, "the weight has dtype i8"),
    ("quantize", (t(2, 8), t(2, 2, 1)), {}, "does not fit values"),
    ("quantize", (t(2, 8), t(2, 8, dtype="f16")), {}, "the scale has dtype f16"),
    ("dequantize", (t(2, 8), t()), {}, "dtype f32"),
    ("row_scale", (t(),), {}, "a scalar"),
    ("quantize", (t(2, 8), t(), t(2, 2, 1, dtype="u8")), {}, "a zero point of"),
    ("dequantize", (t(2, dtype="i8"), t(), t(dtype="u8")), {}, "the zero point is u8, the levels are i8"),
    ("quantize_rows", (t(2, 8), t(dtype="u8")), {"has_zero": True}, "but no scale"),
    (
        "qlinear",
        (t(2, 64, dtype="u8"), t(3, 16, dtype="i8"), t(3)),
        {"has_zero": True},
        "no zero point is given",
    ),
    (
        "qconv2d",
        (t(1, 4, 4, 3, dtype="u8"), t(), t(8, 3, 3, 3, dtype="i8"), t(8)),
        {},
        "the image has dtype u8",
    ),
    (
        "qconv2d",
        (t(2, 4, 4, 3, dtype="i8"), t(4), t(8, 3, 3, 3, dtype="i8"), t(8)),
        {},
        "one number an image",
    ),
    ("quantize_rows", (t(2, S),), {}, "fixed size"),
    ("quantize_rows", (t(2, 8),), {"has_scale": True}, "0 scales"),
    ("quantize_rows", (t(2, 8), t(1)), {"has_scale": True}, "the scale has shape"),
    ("dequantize_rows", (t(2, 32, dtype="u8"),), {"size": 17}, "do not hold 17 values"),
    ("qlinear", (t(2, 32, dtype="u8"), t(3, 17, dtype="i8"), t(3)), {}, "do not hold 17 values"),
    ("qlinear", (t(2, 32, dtype="i8"), t(3, 16, dtype="i8"), t(3)), {}, "the packed row has dtype i8"),
    ("qlinear", (t(2, 64, dtype="u8"), t(3, 16, dtype="i8"), t(3, 1)), {}, "scale has shape"),
    ("qlinear", (t(2, 2**18, dtype="u8"), t(3, 2**18 - 16, dtype="i8"), t(3)), {}, "int32 sums"),
    ("split_rows", (t(2, S),), {}, "fixed size"),
    ("split_rows", (t(2, 8, dtype="f16"),), {}, "dtype f16"),
    ("split_linear", (t(2, 256, dtype="u8"), t(3, 128, dtype="i8"), t(3)), {}, "not 3 parts"),
    ("split_linear", (t(2, 256, dtype="u8"), t(3, 2**16 - 64, dtype="i8"), t(3)), {}, "not 3 parts"),
    ("split_linear", (t(2, 128, dtype="u8"), t(3, 192, dtype="i8"), t(3)), {}, "do not hold 192 parts"),
    ("split_linear", (t(2, 256, dtype="i8"), t(3, 192, dtype="i8"), t(3)), {}, "the split row has dtype i8"),
    ("split_linear", (t(2, 256, dtype="u8"), t(3, 192, dtype="i8"), t(3, 1)), {}, "scale has shape"),
    (
        "embed_norm",
        (t(9, 8, dtype="u8"), n(B, S), t(8), t(8)),
        {"eps": 1e-5, "tables": 1},
        "table 0 has shape",
    ),
    ("embed_norm", (t(9, 8), n(B, S), t(8)), {"eps": 1e-5, "tables": 1}, "takes 4 inputs"),
    ("codebook", (t(2, 3, dtype="i8"), t(9)), {"columns": 3}, "the indices has dtype i8"),
    ("codebook", (t(2, 3, dtype="u8"), t(17)), {"columns": 6, "bits": 4}, "17 values for indices of 4 bits"),
    ("codebook", (t(2, 3, dtype="u8"), t(9)), {"columns": 3, "bits": 5}, "bits is 5"),
    ("codebook", (t(2, 3, dtype="u8"), t(9)), {"columns": 4}, "where a row takes 4 bytes"),
    ("blockwise", (t(2, 3, dtype="i8"), t(2, 1)), {"columns": 3, "block": 3}, "the levels has dtype i8"),
    ("blockwise", (t(2, 3, dtype="u8"), t(2, 1)), {"columns": 3, "block": 2}, "the scales"),
    (
        "blockwise",
        (t(2, 9, dtype="u8"), t(2, 3)),
        {"columns": 9, "block": 3},
        "block is 3, not an even number",
    ),
    ("blockwise", (t(2, 9, dtype="u8"), t(2, 1)), {"columns": 9, "block": 9, "bits": 5}, "bits is 5"),
    ("bitmask", (t(2, 3, dtype="u8"), t(9)), {"columns": 30}, "where a row takes 4 bytes"),
    ("bitmask", (t(2, 3, 1, dtype="u8"), t(9)), {"columns": 8}, "the mask has rank 3"),
    ("state", (), {**KEYS, "name": ""}, "not a non-empty string"),
    ("state", (), {**KEYS, "shape": (S + 1, 8)}, "size seq + 1, not a named dim"),
    ("state", (), {**KEYS, "shape": (8, S)}, "size 8, not a named dim"),
    ("state", (), {**KEYS, "shape": (S, 2 * S)}, "is the size of another axis too"),
    ("state", (), {**KEYS, "grows": 2}, "the growing axis 2 is not in 0..1"),
    ("append", (t(S, 8), t(B, 4)), {}, "the new part has shape"),
    ("append", (t(S, 8), t(B, 8, dtype="f16")), {}, "different dtypes"),
    ("append", (t(S, 8), t(8)), {}, "the new part has rank 1"),
    ("append", (t(), t()), {}, "the new part has rank 0"),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "message"), REFUSED)
def test_refusal(op: str, inputs: tuple[Node, ...], attributes: dict[str, Any], message: str):
    with pytest.raises(LlmcError) as caught:
        make(op, inputs, Source("encoder.0", "model.py:7"), **attributes)
    assert message in str(caught.value)
    assert caught.value.problem.startswith(f"{op}: ")
    assert caught.value.at == "encoder.0 (model.py:7)"


ODD: tuple[Any, ...] = (None, "a", (), (None,), (None, "a"), ((1,),), 1.5, -1, 99, True, float("nan"), object)


@pytest.mark.parametrize("number", range(len(ACCEPTED)))
def test_attributes_of_the_wrong_kind_are_refused_by_the_rule(number: int):
    """Or taken; what a rule of llmc's own never does is to fail."""
    op, inputs, attributes, *_ = ACCEPTED[number]
    refusals: list[LlmcError] = []
    for name in OPS[op].defaults:
        for odd in ODD:
            try:
                make(op, inputs, **{**attributes, name: odd})
            except LlmcError as error:
                refusals.append(error)
    assert not [str(error) for error in refusals if isinstance(error, Fault)]


def test_refusal_names_the_types():
    with pytest.raises(LlmcError) as caught:
        make("add", (t(B, S), t(B, 3)))
    assert caught.value.found == "f32[batch, seq], f32[batch, 3]"


def test_unknown_names():
    with pytest.raises(LlmcError, match="no op 'conv'"):
        make("conv", ())
    with pytest.raises(LlmcError, match="no attribute 'dim'"):
        make("softmax", (t(2),), dim=0)
    with pytest.raises(LlmcError, match="'axis' is missing"):
        make("softmax", (t(2),))


def test_states():
    fixed = make("state", (), name="sum", dtype="f32", shape=(B, 8))
    assert (str(fixed.type), fixed.attributes["grows"]) == ("f32[batch, 8]", None)


def test_every_op_has_an_accepted_or_binary_case():
    unary_or_leaf = {n for n, o in OPS.items() if o.elementwise} | {"input", "constant"}
    like_others = {"max", "min", "any", "all", "cumsum", "softmax", "log_softmax", "layer_norm", "rms_norm"}
    assert {a[0] for a in ACCEPTED} | unary_or_leaf | like_others == set(OPS)


def test_with_inputs_infers_again_and_keeps_the_source():
    node = make("linear", (t(B, 8), constant(np.ones((3, 8)))), Source("head"))
    wider = node.with_inputs((t(B, S, 8), node.inputs[1]))
    assert str(wider.type) == "f32[batch, seq, 3]"
    assert wider.source == Source("head")


def test_types_normalise_dims():
    assert TensorType("f32", (S * 2 - S, "seq + 1", np.int64(3))).shape == (S, S + 1, 3)
    assert dim_text(TensorType("f32", ((B + 1) * S,)).shape[0]) == "batch*seq + seq"


def test_constants_of_python_numbers():
    assert constant(1.5).type == TensorType("f32", ())
    assert constant(3).type == TensorType("i64", ())
    assert constant(True).type == TensorType("bool", ())
