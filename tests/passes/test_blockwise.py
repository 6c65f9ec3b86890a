"""`blockwise`: levels and scales for the weights of products and tables, and what stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.graph import Graph, Weight
from llmc.compiler.interpret import run
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.compiler.ops.storage import pack_indices
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.compress.blockwise import Blockwise
from llmc.passes.compress.rounding import nearest, of_least_error
from llmc.passes.compress.unpack import Unpack
from llmc.passes.quantise import QUANTISATIONS

RNG = np.random.default_rng(5)


def weights(*shape: int) -> Any:
    return constant(Weight(RNG.normal(size=shape).astype(np.float32), f"w{shape[0]}"))


def network() -> Graph:
    """A table that a product reads too, another product, and one with few columns."""
    ids = input_("ids", "i64", (symbol("batch"), 4), low=0, high=99)
    table = weights(100, 72)
    x = make("embedding", (table, ids))
    y = make("linear", (x, weights(64, 72)))
    back = make("linear", (y, weights(72, 64)))
    outputs = {"logits": make("linear", (back, table)), "few": make("linear", (back, weights(3, 72)))}
    return Graph((ids,), outputs, {"batch": (1, 8)})


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("block", [6, 32, 70])
def test_levels_are_the_nearest(bits: int, block: int) -> None:
    array = RNG.normal(size=(9, 70)).astype(np.float32)
    array[3] = 0
    levels, scales = nearest(array, bits, block)
    assert (levels.dtype, scales.shape) == (np.uint8, (9, -(-70 // block)))
    step = np.repeat(scales.astype(np.float32), block, 1)[:, :70]
    back = (levels.astype(np.float32) - (1 << (bits - 1))) * step
    # the value farthest from 0 has no level on the other side: it may be off by a whole step there
    assert (np.abs(back - array) <= np.abs(step) * (0.5001 if bits == 8 else 1.01)).all()
    assert (np.abs(back - array) <= np.abs(step) * 0.51).mean() > 0.97
    assert not back[3].any()


def test_scales_that_half_precision_does_not_hold_stay_single() -> None:
    array = np.full((16, 8), 1e-6, np.float32)
    assert nearest(array, 4, 8)[1].dtype == np.float32
    assert nearest(array * 1e6, 4, 8)[1].dtype == np.float16
    assert [nearest(array * x, 8, 4)[1].dtype for x in (1, 1e6)] == [np.float32, np.float16]
    assert nearest(array * 1e6, 8, 8)[1].dtype == np.float32  # one for each row: they are few


@pytest.mark.parametrize("rounding", [nearest, of_least_error])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("block", [6, 32, 70])
def test_zero_points_lose_no_more(rounding: Any, bits: int, block: int) -> None:
    rng = np.random.default_rng([bits, block])
    array = rng.normal(rng.normal(size=(9, 1)), 1, (9, 70)).astype(np.float32)
    array[3], array[4] = 0, abs(array[4])
    losses = []
    for zeros in (False, True):
        levels, scales, *around = rounding(array, bits, block, zeros=zeros)
        assert [(z.dtype, z.shape) for z in around] == [(np.uint8, scales.shape)] * zeros
        packed = [pack_indices(part, bits) for part in (levels, *around)]
        given = {"columns": 70, "bits": bits, "block": block}
        back = OPS["blockwise"].reference(packed[0], scales, *packed[1:], **given)
        assert not back[3].any()
        losses.append(np.square(back - array).sum(1))
    assert (losses[1] <= losses[0] * 1.0001).all()
    assert losses[1].sum() < 0.95 * losses[0].sum()


def test_tables_and_heads_have_no_zero_points() -> None:
    graph = network()
    after = Blockwise(bits=4, block=32, zeros=True).run(graph)
    verify(after)
    found = {(n.shape[0], len(n.inputs)) for n in after.nodes if n.op == "blockwise" and n.type.rank == 2}
    assert found == {(100, 2), (64, 3), (72, 3)}
    given = {"ids": RNG.integers(0, 100, (2, 4))}
    before, now = run(graph, given)["logits"], run(after, given)["logits"]
    assert np.abs(now - before).max() < 0.25 * np.abs(before).max()


@pytest.mark.parametrize(("mode", "off"), [("w8", 0.02), ("w4", 0.25)])
def test_products_and_tables_are_stored_so(mode: str, off: float) -> None:
    graph = network()
    first = Pipeline.parse(QUANTISATIONS[mode], PASSES).steps[0].change
    with listening() as told:
        after = first.run(graph)
    verify(after)
    assert [n.op for n in after.nodes].count("blockwise") == 4  # three weights, and the rows looked up
    (effect,) = told
    assert (effect.changed, dict(effect.left)) == (
        3,
        {"with fewer than 16 output columns, or of at most 4096 bytes": 1},
    )
    given = {"ids": RNG.integers(0, 100, (2, 4))}
    before, now = run(graph, given)["logits"], run(after, given)["logits"]
    assert np.abs(now - before).max() < off * np.abs(before).max()
    assert not np.array_equal(now, before)


@pytest.mark.parametrize(("table_block", "block"), [(0, 64), (32, 32)])
def test_heads_have_bits_of_their_own(table_block: int, block: int) -> None:
    ids = input_("ids", "i64", (symbol("batch"), 4), low=0, high=63)
    table, places = weights(100, 128), weights(64, 128)  # a product has as many rows as the second, too
    x = make("add", (make("embedding", (table, ids)), make("embedding", (places, ids))))
    x = make("reshape", (x,), shape=(symbol("batch") * 4, 128))
    x = make("embedding", (x, make("iota", (), length=symbol("batch"))))  # of rows that are computed
    y = make("linear", (make("linear", (x, weights(64, 128))), weights(128, 64)))
    graph = Graph((ids,), {"logits": make("linear", (y, table))}, {"batch": (1, 8)})
    after = Blockwise(bits=4, block=16, table_block=table_block, head_bits=8).run(graph)
    verify(after)
    found = {
        (n.shape[0], n.attributes["bits"], n.attributes["block"])
        for n in after.nodes
        if n.op == "blockwise" and n.type.rank == 2
    }
    assert found == {(100, 8, block), (64, 4, 16), (128, 4, 16)}
    rows = sorted(n.attributes["bits"] for n in after.nodes if n.op == "blockwise" and n.type.rank == 3)
    assert rows == [4, 8]  # of places and of the table, looked up


def test_unpacked_it_computes_the_same() -> None:
    after = Blockwise(bits=4, block=32).run(network())
    plain = Unpack().run(after)
    assert "blockwise" not in {n.op for n in plain.nodes}
    given = {"ids": RNG.integers(0, 100, (2, 4))}
    np.testing.assert_array_equal(run(after, given)["logits"], run(plain, given)["logits"])


def test_what_is_left() -> None:
    graph = network()
    x = input_("x", "f32", (symbol("batch"), 8))
    assert Blockwise(min_columns=200).run(graph) is graph
    small = Graph((x,), {"y": make("linear", (x, weights(16, 8)))}, {"batch": (1, 8)})
    assert Blockwise().run(small) is small
    alone = Blockwise(tables=False, skip=("w*",)).run(graph)
    assert alone is graph


def test_mistakes() -> None:
    for bad in ({"bits": 3}, {"head_bits": 5}, {"block": 7}, {"block": -2}, {"frequent": 1.5}):
        with pytest.raises(LlmcError, match="blockwise: "):
            Blockwise(**bad)
    x = input_("x", "f32", (symbol("batch"), 64))
    broken = constant(Weight(np.full((64, 64), np.nan, np.float32), "w"))
    with pytest.raises(LlmcError, match="not finite"):
        Blockwise().run(Graph((x,), {"y": make("linear", (x, broken))}, {"batch": (1, 8)}))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("shape", "columns", "block"),
    [
        ((3,), 1, 1),
        ((3, 2), 31, 4),
        ((5,), 33, 32),
        ((4,), 64, 32),
        ((2, 200), 96, 32),
        ((3,), 40, 40),
        ((0,), 8, 2),
    ],
)
def test_what_is_read_back_number_by_number(
    shape: tuple[int, ...], columns: int, block: int, bits: int, dtype: type
) -> None:
    """level - half, times the scale of its block, in float32: the levels as they lie in their bytes."""
    rng = np.random.default_rng(columns)
    packed = rng.integers(0, 256, (*shape, -(-columns * bits // 8)), dtype=np.uint8)
    before, scales = packed.copy(), rng.standard_normal((*shape, -(-columns // block))).astype(dtype)
    found = OPS["blockwise"].reference(packed, scales, columns=columns, bits=bits, block=block)
    assert (found.dtype, found.shape) == (np.float32, (*shape, columns))
    for place in np.ndindex(found.shape):
        *row, c = place
        byte = int(packed[(*row, c * bits // 8)])
        level = byte if bits == 8 else (byte >> 4 if c % 2 else byte & 15)
        wanted = np.float32(level - (1 << bits - 1)) * np.float32(scales[(*row, c // block)])
        assert found[place] == wanted
    np.testing.assert_array_equal(packed, before)


def test_the_reference() -> None:
    levels = np.array([[0, 255, 128]], np.uint8)
    found = OPS["blockwise"].reference(levels, np.array([[2.0]], np.float16), columns=3, bits=8, block=3)
    np.testing.assert_array_equal(found, np.array([[-256, 254, 0]], np.float32))


def test_tables_and_heads_have_blocks_of_their_own() -> None:
    graph = network()
    head = make("linear", (graph.outputs["logits"].inputs[0], weights(100, 72)))
    graph = Graph(graph.inputs, {**graph.outputs, "untied": head}, graph.dims)
    made = Blockwise(table_block=32).run(graph)
    blocks = {
        (node.shape[0], node.attributes["block"])
        for node in made.nodes
        if node.op == "blockwise" and node.type.rank == 2
    }
    assert blocks == {(100, 32), (64, 72), (72, 64)}
    with pytest.raises(LlmcError, match="even number"):
        Blockwise(table_block=3)


def lookups(rows: int) -> Graph:
    """A table of words and one of positions, which nothing else reads."""
    ids = input_("ids", "i64", (symbol("batch"), 4), low=0, high=rows - 1)
    words = make("embedding", (weights(rows, 64), ids))
    at = make("embedding", (weights(40, 64), make("iota", (), length=4, dtype="i64")))
    return Graph((ids,), {"x": make("add", (words, at)), "words": words, "at": at}, {"batch": (1, 8)})


@pytest.mark.parametrize("scales", ["largest", "search"])
def test_frequent_rows_are_finer(scales: str) -> None:
    graph = lookups(1030)
    given = {"ids": np.array([[0, 100, 205, 206], [500, 1029, 207, 205]])}
    expected = run(graph, given)
    plain, finer = (
        Blockwise(bits=4, block=32, scales=scales, frequent=f).run(graph) for f in (0, 0.2)
    )  # 206 rows
    verify(finer)
    made = [run(after, given) for after in (plain, finer)]
    off = [{name: np.abs(found[name] - expected[name]).max(-1) for name in found} for found in made]
    first = given["ids"] < 206
    assert (off[1]["x"][first] < 0.15 * off[0]["x"][first]).all()
    assert (off[1]["at"] < 0.15 * off[0]["at"]).all()  # those of positions have 8 bits
    np.testing.assert_array_equal(made[1]["words"][~first], made[0]["words"][~first])
    arrays = [n.attributes["value"].array for n in finer.nodes if n.op == "constant"]
    assert sum(a.nbytes for a in arrays) < 0.2 * 4 * 64 * (1030 + 40)


def test_a_table_that_a_product_reads_has_no_finer_rows() -> None:
    graph = network()
    plain, finer = (Blockwise(bits=4, block=8, frequent=f).run(graph) for f in (0, 0.5))
    assert str(plain) == str(finer)
