"""Attention at the edges of its blocks of queries and keys: grouped heads, and masks that lack any of their axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, check

from llmc.compiler.dims import symbol
from llmc.compiler.ops import input_, make
from llmc.compiler.ops.quantise import row_scales
from llmc.compiler.ops.rows import pack_rows, row_stride
from llmc.targets.cpu.attention.attention import lower_attention

B, S, T = symbol("batch"), symbol("seq"), symbol("keys")
HEADS, GROUPS, SIZE, VALUES = 4, 2, 20, 9
EDGES = [(1, 1), (2, 65), (16, 63), (17, 64), (63, 17), (64, 128), (65, 2)]  # queries, keys
BROADCAST = {  # by dtype, axes of [batch, head, query, key] that masks vary along
    "bool": ("", "k", "bq"),
    "f32": ("b", "hq", "bhqk"),
}
KINDS: dict[str, dict[str, Any]] = {"causal": {"causal": True}} | {
    f"window {n}": {"causal": True, "window": n} for n in (1, 7, 64, 70)
}
RNG = np.random.default_rng(11)


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def operands(queries: int, keys: int) -> dict[str, Any]:
    return {
        "q": floats(2, HEADS, queries, SIZE),
        "k": floats(2, GROUPS, keys, SIZE),
        "v": floats(2, GROUPS, keys, VALUES),
    }


def inputs() -> tuple[Any, ...]:
    return (
        input_("q", "f32", (B, HEADS, S, SIZE)),
        input_("k", "f32", (B, GROUPS, T, SIZE)),
        input_("v", "f32", (B, GROUPS, T, VALUES)),
    )


@pytest.mark.parametrize(("queries", "keys"), EDGES)
def test_edges_of_blocks(queries: int, keys: int, kernels: Lab) -> None:
    given = operands(queries, keys)
    kinds = {"all": {}, **KINDS}
    nodes = {name: make("attention", inputs(), scale=0.2, **kind) for name, kind in kinds.items()}
    check(kernels, nodes, given)


@pytest.mark.parametrize("dtype", BROADCAST)
def test_masks_that_lack_axes(dtype: str, kernels: Lab) -> None:
    """A mask that does not vary along the keys was once read as if it did."""
    dims, sizes = (
        dict(zip("bhqk", (B, HEADS, S, T), strict=True)),
        dict(zip("bhqk", (2, HEADS, 18, 67), strict=True)),
    )
    for axes in BROADCAST[dtype]:
        mask = input_("mask", dtype, [d if name in axes else 1 for name, d in dims.items()])
        shape = [size if name in axes else 1 for name, size in sizes.items()]
        given = operands(18, 67) | {"mask": RNG.random(shape) < 0.6 if dtype == "bool" else floats(*shape)}
        node = make("attention", (*inputs(), mask), scale=0.2, has_mask=True)
        check(kernels, {"y": node}, given)


@pytest.mark.parametrize("tokens", [1, 16, 65])
def test_grouped_heads_side_by_side(tokens: int, kernels: Lab) -> None:
    x, flags = input_("x", "f32", (B, S, 90)), input_("flags", "bool", (B, S))
    heads = {"heads": 4, "kv_heads": 2, "head_dim": 10, "scale": 0.3, "offsets": (0, 40, 65)}
    keys = RNG.random((2, tokens)) < 0.7
    keys[:, 0] = True
    check(
        kernels,
        {"y": make("mha", (x, x, x, flags), has_keys=True, **heads)},
        {"x": floats(2, tokens, 90), "flags": keys},
    )
    keys[1] = False
    even = {"y": make("mha", (x, x, x, flags), has_keys=True, evenly=True, **heads)}
    check(kernels, even, {"x": floats(2, tokens, 90), "flags": keys})


@pytest.mark.parametrize("at", [0, 15, 63, 64, 130])
def test_a_token_has_the_same_bits_alone_and_in_its_text(at: int, kernels: Lab) -> None:
    """One query and two have code of their own."""
    nodes = {name: make("attention", inputs(), scale=0.2, **kind) for name, kind in KINDS.items()}
    given = operands(131, 131)
    whole = check(kernels, nodes, given)
    for queries in (1, 2, 3):
        if queries > at + 1:
            continue
        part = {name: value[:, :, : at + 1] for name, value in given.items()}
        part["q"] = part["q"][:, :, -queries:]
        found = check(kernels, nodes, {name: np.ascontiguousarray(v) for name, v in part.items()})
        for name, value in found.items():
            wanted = whole[name][:, :, at + 1 - queries : at + 1]
            assert np.ascontiguousarray(wanted).tobytes() == value.tobytes(), (name, queries)


@pytest.mark.parametrize("keys", [1, 64, 131])
def test_a_few_queries_of_a_source_have_the_same_bits_as_among_many(keys: int, kernels: Lab) -> None:
    """What a decoder's next token asks of all that was read."""
    nodes = {"y": make("attention", inputs(), scale=0.2)}
    given = operands(40, keys)
    whole = check(kernels, nodes, given)["y"]
    for queries in (1, 2, 3):
        part = given | {"q": np.ascontiguousarray(given["q"][:, :, 7 : 7 + queries])}
        found = check(kernels, nodes, part)["y"]
        assert np.ascontiguousarray(whole[:, :, 7 : 7 + queries]).tobytes() == found.tobytes(), queries


def test_code_for_a_few_queries_is_only_where_there_may_be_few() -> None:
    q, k, v = inputs()
    many, two = (input_("q", "f32", (B, HEADS, count, SIZE)) for count in (3, 2))
    nodes = [make("attention", (queries, k, v), scale=0.2) for queries in (q, two, many)]
    assert [lower_attention(node).kernel.key.few for node in nodes] == [True, True, False]


def test_heads_that_share_keys(kernels: Lab) -> None:
    """Four of seven heads go together, and three by themselves; wherever threads cut, the bits are those of each."""
    given = operands(2, 77) | {
        "q": floats(2, 7, 2, SIZE),
        "k": floats(2, 1, 77, SIZE),
        "v": floats(2, 1, 77, VALUES),
    }
    q, k, v = (
        input_(name, "f32", (B, *given[name].shape[1:2], axis, given[name].shape[3]))
        for name, axis in zip("qkv", (S, T, T), strict=True)
    )
    found = check(kernels, {"y": make("attention", (q, k, v), scale=0.2, causal=True)}, given)["y"]
    for head in range(7):
        one = given | {"q": np.ascontiguousarray(given["q"][:, head : head + 1])}
        alone = make("attention", (input_("q", "f32", (B, 1, S, SIZE)), k, v), scale=0.2, causal=True)
        assert (
            check(kernels, {"y": alone}, one)["y"].tobytes()
            == np.ascontiguousarray(found[:, head : head + 1]).tobytes()
        )


def stored(values: Any, size: int, dtype: str) -> tuple[Any, Any]:
    """Keys or values of two heads as they are stored, and what is read of them."""
    if dtype == "f16":
        return values.astype(np.float16), values.astype(np.float16).astype(np.float32)
    heads = values.reshape(*values.shape[:2], 2, size)
    scale = row_scales(heads)
    levels = np.rint(heads * (np.float32(1) / scale)).astype(np.int8)
    rows = pack_rows(levels, scale, row_stride(size)).reshape(*values.shape[:2], -1)
    return rows, (levels.astype(np.float32) * scale).reshape(values.shape)


@pytest.mark.parametrize("dtype", ["f16", "u8"])
def test_stored_keys_and_values(dtype: str, kernels: Lab) -> None:
    """Decoded they are what float attention reads: the same bits, for one query and for many."""
    size = 16
    heads = {"heads": 4, "kv_heads": 2, "head_dim": size, "scale": 0.2, "causal": True, "window": 70}
    for queries, keys in ((1, 1), (2, 130), (65, 130)):
        pairs = {name: stored(floats(1, keys, 2 * size), size, dtype) for name in "kv"}
        given = [
            {"q": floats(1, queries, 4 * size), **{n: pair[i] for n, pair in pairs.items()}} for i in (0, 1)
        ]
        given[1]["q"] = given[0]["q"]
        found = []
        for kind, values in zip((dtype, "f32"), given, strict=True):
            q = input_("q", "f32", (B, S, 4 * size))
            k, v = (input_(name, kind, (B, T, values[name].shape[2])) for name in "kv")
            found.append(check(kernels, {"y": make("mha", (q, k, v), **heads)}, values)["y"])
        assert found[0].tobytes() == found[1].tobytes()
