"""`gptq` and the roundings it is made of: scales of least error, errors that later columns make up for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from llmc.compiler import moments
from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph, Source, Weight
from llmc.compiler.interpret import run
from llmc.compiler.moments import Moments, of_inputs
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.storage import unpack_indices
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes.compress import rounding
from llmc.passes.compress.blockwise import Blockwise
from llmc.passes.compress.gptq import Gptq, want_enough
from llmc.passes.compress.rounding import compensated, levels_range, nearest, of_least_error

SEED = 11
RNG = np.random.default_rng(SEED)
BITS, BLOCKS = (4, 8), (16, 32, 70)


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs before, and on which worker."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(SEED))


def matrix(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def correlated(rows: int, columns: int) -> Any:
    """Rows of which some columns are far larger than others, and all depend on a few."""
    hidden = RNG.normal(size=(rows, 6)) @ RNG.normal(size=(6, columns))
    size = np.exp(RNG.normal(size=columns))
    return ((hidden + 0.3 * RNG.normal(size=(rows, columns))) * size).astype(np.float32)


def back(levels: Any, scales: Any, bits: int, block: int) -> Any:
    step = np.repeat(scales.astype(np.float32), block, 1)[:, : levels.shape[1]]
    return (levels.astype(np.float32) - (1 << (bits - 1))) * step


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("block", BLOCKS)
def test_searched_scales_are_no_worse_in_any_block(bits: int, block: int) -> None:
    w, weights = matrix(9, 70), RNG.uniform(0.1, 5, 70).astype(np.float32)
    w[3], w[5, 7] = 0, 9.0
    plain, found = nearest(w, bits, block), of_least_error(w, bits, block, weights)
    errors = []
    for levels, scales in (plain, found):
        off = np.pad(weights * (back(levels, scales, bits, block) - w) ** 2, ((0, 0), (0, -70 % block)))
        errors.append(off.reshape(9, -1, block).sum(2))
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
    assert bits == 8 or errors[1].sum() < errors[0].sum()
    assert found[1].dtype == plain[1].dtype


@pytest.mark.parametrize("bits", BITS)
def test_columns_that_have_nothing_to_do_with_each_other_are_rounded_to_the_nearest(bits: int) -> None:
    w, size = matrix(20, 48), np.diag(RNG.uniform(0.5, 2, 48)).astype(np.float32)
    levels, scales = compensated(w, size, bits, 16, 0.01)
    step = np.repeat(scales.astype(np.float32), 16, 1)
    whole = np.clip(np.rint(w / step), *levels_range(bits)) + (1 << (bits - 1))
    assert (levels == whole).mean() > 0.95  # scales are fitted once more when levels are found
    assert np.abs(levels.astype(int) - whole).max() <= 1


def plainly(w: Any, h: Any, scales: Any, bits: int, block: int) -> Any:
    """GPTQ as the paper has it, one column at a time, the inverse made anew for those that are left."""
    order = list(np.argsort(-np.diag(h), kind="stable"))
    h = h.astype(np.float64)
    w, levels = w.astype(np.float64), np.zeros(w.shape)
    while order:
        i = order[0]
        inverse = np.linalg.inv(h[np.ix_(order, order)])
        s = scales[:, i // block].astype(np.float64)
        levels[:, i] = np.clip(np.rint(w[:, i] / s), *levels_range(bits))
        error = (w[:, i] - levels[:, i] * s) / inverse[0, 0]
        w[:, order] -= np.outer(error, inverse[0])
        order = order[1:]
    return levels


@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 70), (8, 32)])
def test_as_the_paper_has_it(bits: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_TOGETHER", 16)  # several stretches of columns
    w, x = matrix(5, 70), correlated(200, 70)
    h = (x.T @ x + 0.01 * np.diag(x.T @ x).mean() * np.eye(70)).astype(np.float32)
    order = np.argsort(-np.diag(h), kind="stable")
    scales = of_least_error(w, bits, block, np.diag(h))[1].astype(np.float32)
    upper = rounding._inverse_factor(h, order)
    levels = rounding._made_up_for(w, scales, upper, order, bits, block)
    want = plainly(w, h, scales, bits, block)
    same = levels == want
    assert (
        same.mean() > 0.98
    )  # of a value between two levels f32 may take the other, and what follows from it


@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 70), (8, 32)])
def test_fits_and_sweeps_lower_the_loss(bits: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_TOGETHER", 16)
    w, x = matrix(30, 70), correlated(200, 70)
    h = x.T @ x + np.eye(70, dtype=np.float32)
    scales = of_least_error(w, bits, block)[1].astype(np.float32)
    step = np.repeat(scales, block, 1)[:, :70]
    levels = np.clip(np.rint(w / step), *levels_range(bits))

    def lost(levels: Any, scales: Any) -> Any:
        off = levels * np.repeat(scales, block, 1)[:, :70] - w
        return ((off @ h) * off).sum(1)

    losses = [lost(levels, scales)]
    for _ in range(2):
        scales = rounding._fitted(levels, w, scales, h, bits, block)
        losses.append(lost(levels, scales))
        levels = rounding._descended(levels, w, scales, h, bits, block)
        losses.append(lost(levels, scales))
        assert (levels == np.clip(np.rint(levels), *levels_range(bits))).all()
    for before, after in pairwise(losses):
        assert (after <= before * 1.002).all()  # scales are rounded to half precision
    assert losses[-1].sum() < 0.7 * losses[0].sum()


def test_a_column_is_where_no_other_level_is_better() -> None:
    w, x = matrix(6, 24), correlated(100, 24)
    h = x.T @ x + np.eye(24, dtype=np.float32)
    scales = of_least_error(w, 4, 8)[1].astype(np.float32)
    step = np.repeat(scales, 8, 1)
    levels = np.clip(np.rint(w / step), -8, 7)
    for _ in range(20):
        levels = rounding._descended(levels, w, scales, h, 4, 8)
    for column in range(24):
        tried = []
        for level in range(-8, 8):
            other = levels.copy()
            other[:, column] = level
            off = other * step - w
            tried.append(((off @ h) * off).sum(1))
        off = levels * step - w
        assert (((off @ h) * off).sum(1) <= np.min(tried, 0) * (1 + 1e-4)).all()


@pytest.mark.parametrize("bits", BITS)
def test_products_keep_their_sums(bits: int) -> None:
    w, x = matrix(40, 96), correlated(400, 96)
    losses = [
        np.square(x @ (back(*found, bits, 32) - w).T).sum()
        for found in (nearest(w, bits, 32), compensated(w, x.T @ x, bits, 32, 0.01))
    ]
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize("bits", BITS)
def test_zero_points_keep_more(bits: int) -> None:
    rng = np.random.default_rng(bits)
    w, x = matrix(40, 96) + rng.normal(scale=0.5, size=(40, 1)).astype(np.float32), correlated(400, 96)
    losses = []
    for found in (
        nearest(w, bits, 32, zeros=True),
        compensated(w, x.T @ x, bits, 32, 0.01, zeros=True),
        compensated(w, x.T @ x, bits, 32, 0.01),
    ):
        levels, scales, *around = found
        zeros = np.repeat(around[0], 32, 1) if around else np.full(w.shape, 1 << (bits - 1))
        values = (levels.astype(np.float32) - zeros) * np.repeat(scales.astype(np.float32), 32, 1)
        losses.append(np.square(x @ (values - w).T).sum())
    assert losses[1] < 0.5 * losses[0]
    assert losses[1] < losses[2]


@pytest.mark.parametrize("bits", BITS)
def test_no_row_loses_more_than_to_the_nearest(bits: int) -> None:
    for case in range(30):
        w, x = matrix(12, 40), correlated(3 + case, 40)
        w[:, case] *= 10.0 ** (case % 5)  # beside which the others are nothing, in its block
        w[case % 12] = 0
        h = (x.T @ x + 0.01 * np.diag(x.T @ x).mean() * np.eye(40)).astype(np.float64)
        losses = []
        for found in (nearest(w, bits, 8), compensated(w, x.T @ x, bits, 8, 0.01)):
            off = (back(*found, bits, 8) - w).astype(np.float64)
            losses.append(((off @ h) * off).sum(1))
        assert (losses[1] <= losses[0] * 1.001 + 1e-9).all()


def test_columns_that_nothing_is_known_of() -> None:
    w, x = matrix(8, 32), correlated(60, 32)
    x[:, [3, 20]] = 0
    levels, scales = compensated(w, x.T @ x, 4, 16, 0.01)
    off = np.abs(back(levels, scales, 4, 16) - w)[:, [3, 20]]
    assert (off <= 3 * np.abs(np.repeat(scales.astype(np.float32), 16, 1))[:, [3, 20]]).all()
    nothing = compensated(w, np.zeros((32, 32), np.float32), 4, 16, 0.01)
    assert all(np.isfinite(part.astype(np.float32)).all() for part in nothing)


def test_many_rows_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = matrix(33, 64), correlated(100, 64)
    whole = compensated(w, x.T @ x, 4, 32, 0.01)
    monkeypatch.setattr(rounding, "_PIECE", 64 * 10)
    levels, scales = compensated(w, x.T @ x, 4, 32, 0.01)
    assert (
        levels == whole[0]
    ).mean() > 0.97  # BLAS sums by shape: a value between two levels may take the other
    np.testing.assert_allclose(scales.astype(np.float32), whole[1].astype(np.float32), atol=0.02)


def test_moments_of_parts() -> None:
    x = matrix(700, 12)
    whole, first, second = Moments(12), Moments(12), Moments(12)
    whole.add(x.reshape(7, 100, 12))
    for i in range(0, 300, 20):
        first.add(x[i : i + 20])
    second.add(x[300:])
    second.add(x[:0])
    first.merge(second)
    assert first.rows == whole.rows == 700
    np.testing.assert_allclose(first.products, x.T @ x, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(first.products, whole.products, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(first.top, np.abs(x).max(0))


def network(length: int = 4) -> Graph:
    """A table that a product reads too, two products of one value, and one whose weight two others share."""
    ids = input_("ids", "i64", (symbol("batch"), length), low=0, high=99)
    table, shared, last = (
        constant(Weight(matrix(n, 72) / 9, name))
        for n, name in ((100, "table"), (72, "shared"), (64, "last"))
    )
    x = make("embedding", (table, ids))
    y = make("tanh", (make("linear", (x, shared)),))
    z = make("tanh", (make("linear", (y, shared)),))
    logits, other = make("linear", (z, table)), make("linear", (z, last))
    return Graph((ids,), {"logits": logits, "other": other}, {"batch": (1, 8)})


def samples(count: int = 30) -> Any:
    chosen = np.random.default_rng(2)
    made = [{"ids": chosen.integers(0, 100, (1, 4))} for _ in range(count)]
    return Given(lambda graph: iter(made))


def loss(graph: Graph, after: Graph) -> float:
    off = 0.0
    for sample in samples(40).samples(graph):
        before, now = run(graph, sample), run(after, sample)
        off += sum(float(np.square(before[name] - now[name]).sum()) for name in before)
    return off


def test_every_weight_is_stored_once_and_outputs_are_nearer() -> None:
    graph = network()
    with giving(samples()), listening() as told:
        after = Gptq().run(graph)
    verify(after)
    (effect,) = told
    assert (effect.changed, effect.left) == (3, {})
    plain = Blockwise(bits=4, block=32).run(graph)
    assert sorted(n.op for n in after.nodes) == sorted(n.op for n in plain.nodes)
    assert loss(graph, after) < 0.85 * loss(graph, plain)


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_memory_bounds_what_is_kept_at_once(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, walks = network(), 0
    with giving(samples()):
        whole = Gptq().run(graph)

    def read(graph: Graph) -> Iterator[Any]:
        nonlocal walks
        walks += 1
        return samples().samples(graph)

    monkeypatch.setattr(moments, "MEMORY", memory)
    with giving(Given(read)):
        after = Gptq().run(graph)
    assert walks == (3 if memory == 1 else 1)  # what `shared` reads first and then, and what the others read
    for ours, theirs in zip(after.nodes, whole.nodes, strict=True):
        if ours.op == "constant":
            np.testing.assert_array_equal(ours.attributes["value"].array, theirs.attributes["value"].array)


def test_what_only_look_ups_read_is_rounded_by_itself() -> None:
    ids = input_("ids", "i64", (symbol("batch"), 4), low=0, high=99)
    table = constant(Weight(matrix(100, 64), "table"))
    graph = Graph((ids,), {"y": make("embedding", (table, ids))}, {"batch": (1, 8)})
    with giving(samples()):
        after = Gptq(table_block=32).run(graph)
    (node,) = (n for n in after.nodes if n.op == "blockwise")
    levels = next(n for n in after.nodes if n.op == "constant" and n.dtype == "u8").attributes["value"].array
    want = of_least_error(table.attributes["value"].array, 4, 32)[0]
    np.testing.assert_array_equal(unpack_indices(levels, 64, 4), want)
    assert node.attributes["block"] == 32


def test_a_graph_without_products_is_left() -> None:
    x = input_("x", "f32", (symbol("batch"), 8))
    graph = Graph((x,), {"y": make("tanh", (x,))}, {"batch": (1, 8)})
    with giving(Given(lambda graph: iter([{"x": matrix(1, 8)}]))):
        assert Gptq().run(graph) is graph


def test_mistakes() -> None:
    with pytest.raises(LlmcError, match="gptq: damp"):
        Gptq(damp=0)
    with pytest.raises(LlmcError, match="gptq: bits"):
        Gptq(bits=5)
    with pytest.raises(LlmcError, match="gptq: no scales 'best'"):
        Gptq(scales="best")
    with pytest.raises(LlmcError, match="works on samples"):
        Gptq().run(network())
    empty = Given(lambda graph: iter(()), place="texts.txt")
    with giving(empty), pytest.raises(LlmcError, match="no samples") as caught:
        Gptq().run(network())
    assert caught.value.at == "texts.txt"
    few = Given(lambda graph: iter([{"ids": np.zeros((1, 1), np.int64)}]))
    with giving(few), pytest.raises(LlmcError, match="too few samples") as caught:
        Gptq().run(network(1))
    assert (caught.value.found, caught.value.at) != (None, None)
    assert "2 rows are the least, better 72 and more" in str(caught.value.hint)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite(value: float) -> None:
    x = input_("x", "f32", (symbol("batch"), 64))
    graph = Graph((x,), {"y": make("linear", (x, constant(Weight(matrix(64, 64), "w"))))}, {"batch": (1, 8)})
    bad = matrix(1, 64)
    bad[0, 5] = value
    with (
        giving(Given(lambda graph: iter([{"x": matrix(1, 64)}, {"x": bad}]))),
        pytest.raises(LlmcError, match="not finite") as caught,
    ):
        Gptq().run(graph)
    assert "sample 2" in str(caught.value.found)


def test_sites_come_with_what_they_have_seen() -> None:
    graph = network()
    sites = [n.inputs[0] for n in graph.nodes if n.op == "linear"]
    found = dict(of_inputs(graph, sites, samples(5)))
    assert {node: part.rows for node, part in found.items()} == dict.fromkeys(sites, 20)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_squares_that_overflow_are_refused() -> None:
    """Second moments that are infinite would round by nothing."""
    seen = Moments(4)
    seen.add(np.full((8, 4), 1e18, np.float32))
    w = constant(np.ones((4, 4), np.float32), source=Source("layer.2"))
    want_enough(w, seen)
    seen.add(np.full((8, 4), 1e20, np.float32))
    with pytest.raises(LlmcError, match="squares of its values are beyond float32") as caught:
        want_enough(w, seen)
    assert (caught.value.at, "1e+20" in str(caught.value.found)) == ("layer.2", True)
