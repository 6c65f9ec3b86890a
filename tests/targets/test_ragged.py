"""Kernels of batches without padding: at every kind of mask the references' values, and the bits of the padded run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, check, run_all, same_bits

from llmc.compiler.dims import symbol
from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.ops import input_, make
from llmc.compiler.ops.ragged import kept

Array = np.ndarray[Any, Any]
B, S, T = symbol("batch"), symbol("seq"), symbol("tokens")


def masks(seq: int) -> Array:
    """Rows: all tokens, right and left padding, holes, one token, none."""
    rng, rows = np.random.default_rng(seq), np.ones((7, seq), np.int64)
    rows[1, seq // 2 + 1 :] = 0
    rows[2, : seq // 3] = 0
    rows[3:5] = rng.integers(0, 2, (2, seq))
    rows[5, 1:] = 0
    rows[6] = 0
    return rows


@pytest.mark.parametrize("dtype", ["i64", "i32", "bool"])
def test_where_tokens_are(dtype: str, kernels: Lab) -> None:
    mask, x = input_("mask", dtype, (B, S)), input_("x", "f32", (T, 21))
    index = make("pack_index", (mask,), tokens=T)
    nodes = {"index": index, "offsets": make("pack_offsets", (mask,))}
    for seq in (1, 2, 17):
        values = masks(seq).astype(DTYPES[dtype])
        found = check(kernels, nodes, {"mask": values})
        rows = np.random.default_rng(0).standard_normal((len(found["index"]), 21)).astype(np.float32)
        places = {"places": make("pack_places", (mask,))}
        at = check(kernels, places, {"mask": values})["places"]
        p = input_("p", "i64", (B, S))
        check(kernels, {"y": make("unpack_rows", (x, p))}, {"x": rows, "p": at})


def attentions(bias: bool, int8: bool, evenly: bool) -> tuple[Graph, Graph]:
    """`ragged_mha` of packed rows, and `mha` of the same batch with its padding."""
    mask, keys = input_("mask", "i64", (B, S)), input_("keys", "bool", (B, S))
    x, packed = input_("x", "f32", (B, S, 98)), input_("packed", "f32", (T, 98))
    flags = input_("flags", "bool", (T,))
    more = (input_("bias", "f32", (1, 2, S, S)),) if bias else ()
    places = (make("pack_index", (mask,), tokens=T), make("pack_offsets", (mask,)))
    heads: dict[str, Any] = {
        "heads": 2,
        "head_dim": 16 if int8 else 8,
        "scale": 0.3,
        "offsets": (0, 32, 65),
        "has_bias": bias,
        "int8": int8,
        "evenly": evenly,
    }
    whole: Node = make("mha", (x, x, x, keys, *more), has_keys=True, **heads)
    rows = make("ragged_mha", (packed,) * 3 + (flags, *places, *more), seq=S, **heads)
    return Graph((mask, packed, flags, *more), {"y": rows}), Graph((x, keys, *more), {"y": whole})


@pytest.mark.parametrize("kind", ["plain", "bias", "int8", "bias evenly", "int8 evenly"])
def test_attention_has_the_bits_of_the_padded_run(kind: str, kernels: Lab) -> None:
    ragged, padded = attentions("bias" in kind, "int8" in kind, "evenly" in kind)
    # the levels of the first 2 or 8 blocks of 64 keys are kept, those of others are not
    for seq in (1, 5, 64, 65, 150, *((600,) if "int8" in kind else ())):
        mask, rng = masks(seq), np.random.default_rng(seq)
        x = rng.standard_normal((*mask.shape, 98)).astype(np.float32)
        values = {"mask": mask, "keys": mask != 0, "x": x, "packed": x[kept(mask)]}
        values["flags"] = values["keys"][kept(mask)]
        values["bias"] = rng.standard_normal((1, 2, seq, seq)).astype(np.float32)
        given = [
            {n.attributes["name"]: values[n.attributes["name"]] for n in g.inputs} for g in (ragged, padded)
        ]
        found = run_all(kernels, ragged, given[0])["y"]
        expected = kernels.run(padded, given[1])["y"]
        assert same_bits(found, expected[kept(mask)]), seq
