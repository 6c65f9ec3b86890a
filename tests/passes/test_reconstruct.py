"""`wanda` and `reconstruct`: zeros by what products read, and what stays changed so that they keep their answers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph, Node, Source, Weight
from llmc.compiler.interpret import run
from llmc.compiler.moments import Moments
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.options import placed_passes
from llmc.passes import PASSES
from llmc.passes.compress import reconstruct
from llmc.passes.compress.prune import Prune
from llmc.passes.compress.reconstruct import Reconstruct, Wanda, fitted
from llmc.passes.compress.weights import Product, values

PATTERNS = ("unstructured", "2:4", "4x1")


def correlated(rows: int, columns: int, seed: int = 0) -> Any:
    """Rows that depend on a few numbers, of which some columns are far larger than others."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, 6)) @ rng.normal(size=(6, columns))
    size = np.exp(rng.normal(size=columns))
    return ((hidden + 0.3 * rng.normal(size=(rows, columns))) * size).astype(np.float32)


def matrix(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def seen(x: Any) -> Moments:
    moments = Moments(x.shape[1])
    moments.add(x)
    return moments


def product(array: Any) -> Product:
    x = input_("x", "f32", (symbol("batch"), array.shape[1]))
    weight = constant(Weight(array, "w"))
    return Product(make("linear", (x, weight), Source("layer")), weight, array)


def lost(x: Any, array: Any, thinned: Any) -> float:
    return float(np.square(x @ (array - thinned).T).sum())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(8, 64), (36, 72), (4, 128)])
def test_products_keep_their_answers(pattern: str, shape: tuple[int, int]) -> None:
    w, x = matrix(*shape), correlated(500, shape[1])
    options = {"pattern": pattern, "sparsity": 0.5}
    (plain,) = Prune(scope="layer", **options).masks([product(w)])
    simple = Wanda(**options).thinned(product(w), seen(x))
    made = Reconstruct(**options).thinned(product(w), seen(x))
    assert (made == 0).sum() == (simple == 0).sum() == (~plain).sum()
    assert lost(x, w, made) < 0.5 * lost(x, w, simple)
    assert lost(x, w, simple) < lost(x, w, w * plain)


def test_wanda_is_magnitude_times_norm() -> None:
    w, x = matrix(6, 16), correlated(50, 16)
    found = Wanda(sparsity=0.25).thinned(product(w), seen(x))
    importance = np.abs(w) * np.sqrt(np.square(x).sum(0))
    dropped = np.sort(importance.reshape(-1))[: w.size // 4]
    np.testing.assert_array_equal(found == 0, importance <= dropped[-1])
    np.testing.assert_array_equal(found[found != 0], w[found != 0])


def test_values_that_stay_are_those_of_least_squares() -> None:
    w, x = matrix(5, 24), correlated(300, 24)
    h = (x.T @ x).astype(np.float64)
    h += 0.01 * np.diag(h).mean() * np.eye(24)
    keep = np.random.default_rng(2).random(w.shape) < 0.6
    found = fitted(w, np.where(keep, w, np.float32(0)), keep, h.astype(np.float32), 200)
    for row, kept, got in zip(w, keep, found, strict=True):
        want = np.zeros(24)
        want[kept] = np.linalg.solve(h[np.ix_(kept, kept)], (h @ row)[kept])
        np.testing.assert_allclose(got, want, atol=1e-2 * np.abs(want).max())
    assert (found[~keep] == 0).all()


def test_no_row_loses_more_than_where_it_began() -> None:
    """Second moments that floats hardly hold: a column a million times larger than the others."""
    w, x = matrix(9, 32), correlated(40, 32)
    x[:, 3] *= 1e6
    h = x.T @ x + np.eye(32, dtype=np.float32)
    keep = np.random.default_rng(4).random(w.shape) < 0.5
    start = np.where(keep, w, np.float32(0))
    found = fitted(w, start, keep, h, 50)
    off, before = found - w, start - w
    assert (((off @ h) * off).sum(1) <= ((before @ h) * before).sum(1) * (1 + 1e-6)).all()


def test_rows_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = matrix(20, 32), correlated(100, 32)
    whole = Reconstruct(sparsity=0.5).thinned(product(w), seen(x))
    monkeypatch.setattr(reconstruct, "_PIECE", 3 * 32)
    np.testing.assert_allclose(
        Reconstruct(sparsity=0.5).thinned(product(w), seen(x)), whole, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("change", [Wanda(sparsity=0.5), Reconstruct(sparsity=0.5, damp=1e-6)])
def test_columns_that_are_never_read_go_first(change: Wanda) -> None:
    w, x = matrix(8, 32), matrix(200, 32, seed=5)
    w += np.sign(w)  # none near 0, whose loss would be less than what damp makes of the others
    x[:, ::2] = 0
    made = change.thinned(product(w), seen(x))
    assert (made[:, ::2] == 0).all()
    np.testing.assert_allclose(made[:, 1::2], w[:, 1::2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_pruned_already_stays_as_it_is(pattern: str) -> None:
    w, x = matrix(8, 32), correlated(200, 32)
    change = Reconstruct(pattern=pattern, sparsity=0.5)
    once = change.thinned(product(w), seen(x))
    np.testing.assert_allclose(change.thinned(product(once), seen(x)), once, rtol=1e-4, atol=1e-5)


# --- graphs


def network() -> Graph:
    """Two products of which one is below `least`, and one whose weight is looked up as well."""
    ids = input_("ids", "i64", (symbol("batch"), 4), low=0, high=99)
    table, first, last = (
        constant(Weight(matrix(n, k, seed=n) / 9, name))
        for n, k, name in ((100, 72, "table"), (72, 72, "first"), (6, 72, "last"))
    )
    x = make("embedding", (table, ids))
    y = make("tanh", (make("linear", (x, first), Source("one")),))
    outputs = {
        "logits": make("linear", (y, table), Source("two")),
        "y": make("linear", (y, last), Source("three")),
    }
    return Graph((ids,), outputs, {"batch": (1, 8)})


def samples(count: int = 40) -> Given:
    chosen = np.random.default_rng(2)
    made = [{"ids": chosen.integers(0, 100, (1, 4))} for _ in range(count)]
    return Given(lambda graph: iter(made))


def changed(before: Graph, after: Graph) -> list[str]:
    def arrays(graph: Graph) -> list[Any]:
        return [values(node.inputs[1]) for node in graph.nodes if node.op == "linear"]

    names = [str(n.source) for n in before.nodes if n.op == "linear"]
    both = zip(names, arrays(before), arrays(after), strict=True)
    return [name for name, a, b in both if not np.array_equal(a, b)]


@pytest.mark.parametrize("name", ["wanda", "reconstruct"])
def test_expected_graph(name: str) -> None:
    graph = network()
    pipeline = Pipeline.parse(f"{name}{{sparsity=0.5}}", PASSES)
    with giving(samples()), listening() as told:
        after = pipeline.steps[0].change.run(graph)
    verify(after)
    assert changed(graph, after) == ["one"]
    (effect,) = told
    assert effect.changed == 1
    assert effect.left == {"looked up as well": 1, "below 4096 values": 1}
    stored = next(n.inputs[1] for n in after.nodes if str(n.source) == "one")
    assert stored.op == "bitmask"
    assert (values(stored) == 0).sum() == 72 * 72 // 2
    assert str(Pipeline.parse(str(pipeline), PASSES)) == str(pipeline)
    for sample in samples(3).samples(graph):
        for value in run(after, sample).values():
            assert np.isfinite(value).all()


def chain(*sizes: int) -> Graph:
    x: Node = input_("x", "f32", (symbol("batch"), sizes[0]))
    start = x
    for number, (k, n) in enumerate(pairwise(sizes)):
        x = make(
            "tanh", (make("linear", (x, constant(Weight(matrix(n, k, seed=number) / 6, f"w{number}")))),)
        )
    return Graph((start,), {"y": x}, {"batch": (1, 8)})


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(3))
def test_outputs_of_whole_networks_are_nearer(pattern: str, seed: int) -> None:
    graph = chain(64, 96, 64, 48)
    rows = correlated(120, 64, seed) / 4
    known = Given(lambda graph: iter([{"x": row[None]} for row in rows]))
    errors = []
    for change in (Wanda, Reconstruct):
        with giving(known):
            after = change(pattern=pattern, sparsity=0.5, least=1).run(graph)
        off = (run(after, {"x": row[None]})["y"] - run(graph, {"x": row[None]})["y"] for row in rows[:40])
        errors.append(sum(float(np.square(o).sum()) for o in off))
    assert errors[1] < 0.8 * errors[0]


def test_a_graph_without_products_is_left() -> None:
    x = input_("x", "f32", (symbol("batch"), 8))
    graph = Graph((x,), {"y": make("tanh", (x,))}, {"batch": (1, 8)})
    with giving(Given(lambda graph: iter([{"x": matrix(1, 8)}]))):
        assert Reconstruct().run(graph) is graph


def test_mistakes() -> None:
    with pytest.raises(LlmcError, match="reconstruct: damp"):
        Reconstruct(damp=0)
    with pytest.raises(LlmcError, match="wanda: weights are ranked layer by layer"):
        Wanda(scope="global")
    with pytest.raises(LlmcError, match="no such pattern"):
        Reconstruct(pattern="3x7")
    with pytest.raises(LlmcError, match="works on samples"):
        Reconstruct().run(network())
    with giving(Given(lambda graph: iter(()))), pytest.raises(LlmcError, match="no samples"):
        Wanda().run(network())
    few = Given(lambda graph: iter([{"x": matrix(1, 128)}]))
    with giving(few), pytest.raises(LlmcError, match="too few samples"):
        Reconstruct().run(chain(128, 64))


def test_the_shortcut_with_samples() -> None:
    with_samples = placed_passes({"prune": ("heads:0.25", "0.5"), "calib": "auto"}).pipeline
    names = [step.change.name for step in with_samples.steps]
    assert "reconstruct" in names
    assert "prune-heads" in names
    assert "prune" not in names
    assert "reconstruct" not in str(placed_passes({"prune": ("0.5",)}).pipeline)
