"""`smooth`: large columns of norms become smaller, floats keep their bits, and integers lose less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph, Node, Source, Weight
from llmc.compiler.interpret import run
from llmc.compiler.moments import Columns, of_columns
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.optimise import optimise
from llmc.options import Options, Order
from llmc.passes import PASSES
from llmc.passes.quantise import Smooth
from llmc.report import Stages

B = symbol("batch")
WIDTH, LARGE = 24, {5: 40.0, 11: 9.0}


def weights(seed: int, *shape: int) -> Node:
    array = np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])
    return constant(Weight(array.astype(np.float32), f"w{seed}"))


def gains() -> Node:
    """Of a norm, with two large columns."""
    gain = np.random.default_rng(1).uniform(0.5, 1, WIDTH).astype(np.float32)
    gain[list(LARGE)] = list(LARGE.values())
    return constant(Weight(gain, "gain"))


def block(norm: str = "layer_norm", residual: bool = True) -> Graph:
    """A norm, two products that read it, and what else does."""
    x = input_("x", "f32", (B, WIDTH))
    own = (gains(), *((weights(2, WIDTH),) if norm == "layer_norm" else ()))
    y = make(norm, (x, *own), Source("norm"), eps=1e-5)
    a = make("linear", (y, weights(3, 32, WIDTH)), Source("a"), epilogue=())
    b = make("linear", (a, weights(4, WIDTH, 32), *((y,) if residual else ())), Source("b"),
             epilogue=("residual",) if residual else ())  # fmt: skip
    c = make("linear", (y, weights(5, 20, WIDTH)), Source("c"), epilogue=())
    return Graph((x,), {"b": b, "c": c}, {"batch": (1, 8)})


def samples(graph: Graph) -> Iterator[Mapping[str, Any]]:
    rng = np.random.default_rng(7)
    for _ in range(4):
        yield {"x": rng.normal(size=(8, WIDTH)).astype(np.float32)}


GIVEN = Given(samples)


def smoothed(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    factors = Smooth().found(graph, GIVEN)
    after = Smooth(factors=factors).run(graph)
    verify(after)
    return after, factors


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("residual", [True, False])
def test_floats_keep_their_bits(norm: str, residual: bool) -> None:
    graph = block(norm, residual)
    after, (factors,) = smoothed(graph)
    assert set(LARGE) <= {int(part.split(":")[0]) for part in factors.split()}
    assert [n.op for n in after.nodes].count("mul") == residual
    for sample in samples(graph):
        for name, expected in run(graph, sample).items():
            np.testing.assert_array_equal(run(after, sample)[name], expected)


def test_one_scale_for_all_loses_less() -> None:
    graph = block()
    after, _ = smoothed(graph)
    losses = []
    for one in (graph, after):
        (site, *_) = [n for n in one.nodes if n.op == "layer_norm"]
        top = of_columns(one, [site], GIVEN)[site].top.max() / 127
        inner = [of_columns(one, [n], GIVEN)[n].top.max() / 127 for n in one.nodes if n.source.path == "a"]
        text = f'quantize{{mode="int8-static",scales=[{top:.6g},{inner[0]:.6g}]}}'
        integer, _ = Pipeline.parse(text, PASSES).run(one)
        (sample, *_) = samples(graph)
        losses.append(np.square(run(integer, sample)["c"] - run(graph, sample)["c"]).sum())
    assert losses[1] < 0.2 * losses[0]


def test_it_runs_on_samples_by_itself_and_tells() -> None:
    graph = block()
    with giving(GIVEN):
        after, report = Pipeline.parse("smooth", PASSES).run(graph)
    assert report.runs[0].changed
    assert str(after) == str(smoothed(graph)[0])
    assert Smooth().wants_samples
    assert not Smooth(factors=("",)).wants_samples
    (effect,) = report.runs[0].effects
    assert (effect.what, effect.changed) == ("norms", 1)


def test_what_stays() -> None:
    even = block()
    flat = constant(Weight(np.ones(WIDTH, np.float32), "gain"))
    even = even.replace(
        lambda n: n.with_inputs((n.inputs[0], flat, n.inputs[2])) if n.op == "layer_norm" else n
    )
    shared = block()
    tied = next(n for n in shared.nodes if n.source.path == "a").inputs[1]
    other = make("linear", (shared.inputs[0], tied), Source("other"), epilogue=())
    shared = Graph(shared.inputs, {**shared.outputs, "other": other}, shared.dims)
    for graph, change, reason in (
        (even, Smooth(), "whose columns are even enough"),
        (block(), Smooth(skip=("no*",)), "named by skip"),
        (shared, Smooth(), "whose products share weights with others"),
    ):
        with giving(GIVEN), listening() as heard:
            assert change.run(graph) is graph
        assert heard[0].left == {reason: 1}


def test_without_norms_no_samples_are_needed() -> None:
    x = input_("x", "f32", (B, WIDTH))
    graph = Graph((x,), {"y": make("linear", (x, weights(3, 32, WIDTH)), epilogue=())}, {"batch": (1, 8)})
    assert Smooth().run(graph) is graph


@pytest.mark.parametrize(
    ("factors", "problem"),
    [
        (("5",), "columns and exponents of two"),
        (("5:-1",), "columns and exponents of two"),
        (("5:0",), "from 1 to 16"),
        (("24:1",), "no such column"),
        (("5:1", "5:1"), "2 factors are given for 1 norms"),
    ],
)
def test_mistakes(factors: tuple[str, ...], problem: str) -> None:
    with pytest.raises(LlmcError, match=problem):
        Smooth(factors=factors).run(block())


def test_the_text_says_it_all() -> None:
    change = Smooth(factors=("5:6 11:3", ""))
    (step,) = Pipeline.parse(str(change), PASSES).steps
    assert step.change == change


def test_a_value_that_is_not_finite_is_named() -> None:
    bad = Given(lambda graph: iter([{"x": np.full((1, WIDTH), np.nan, np.float32)}]))
    with pytest.raises(LlmcError, match="not finite") as caught:
        Smooth().found(block(), bad)
    assert (caught.value.at, caught.value.found) == ("input of a, b, c", "NaN in sample 1")


def test_columns_are_merged_from_parts() -> None:
    rows = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
    whole, first, second = Columns(4), Columns(4), Columns(4)
    whole.add(rows)
    first.add(rows[:2])
    second.add(rows[2:])
    first.merge(second)
    assert first.rows == whole.rows == 6
    np.testing.assert_allclose(first.squares, whole.squares)
    np.testing.assert_allclose(first.sums, whole.sums)
    np.testing.assert_array_equal(first.top, whole.top)


def test_norms_without_bias_or_weight() -> None:
    def of(*own: Node, **flags: bool) -> Graph:
        x = input_("x", "f32", (B, WIDTH))
        y = make("layer_norm", (x, *own), Source("norm"), eps=1e-5, **flags)
        a = make("linear", (y, weights(3, 32, WIDTH)), Source("a"), epilogue=())
        return Graph((x,), {"a": a, "y": y}, {"batch": (1, 8)})

    graph = of(gains(), has_bias=False)
    after, (factors,) = smoothed(graph)
    assert factors
    (sample, *_) = samples(graph)
    for name, expected in run(graph, sample).items():
        np.testing.assert_array_equal(run(after, sample)[name], expected)
    assert not Smooth().norms(of(has_weight=False, has_bias=False))


def test_int8_static_has_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors and scales are in the pipeline's text; a few rows beyond all others cost the product its one scale."""

    @contextmanager
    def interpreted(watched: Graph, compile_graph: Callable[..., Any]) -> Iterator[Any]:
        yield lambda sample: list(run(watched, sample).values())

    for module in ("llmc.quantisation", "llmc.optimise"):
        monkeypatch.setattr(f"{module}.observer", interpreted)
    x = np.random.default_rng(9).normal(size=(64, WIDTH)).astype(np.float32)
    x[::16] *= 300
    np.savez(tmp_path / "x.npz", x=x)
    graph = block()
    first = make("linear", (graph.inputs[0], weights(8, 16, WIDTH)), Source("first"), epilogue=())
    graph = Graph(graph.inputs, {**graph.outputs, "first": first}, graph.dims)
    options = {"target": "x86-avx512", "level": 0, "quant": "int8-static", "calib": tmp_path / "x.npz"}
    order = Order("m.llmc", None, Options(**options, calib_method="entropy"))
    imported = Imported(graph, "m", "graph", "", "", (), None, None)
    done = optimise(imported, order, Stages(None), lambda *a, **b: pytest.fail("no native code is needed"))
    assert done.pipeline.startswith('smooth{factors=["5:')
    told = {effect["of"]: (effect["changed"], effect["left"]) for effect in done.effects}
    assert told["norms"] == (1, {})
    assert told["inputs of products with one range"][1] == {"by token, as one would lose too much": 1}
    assert done.effects[0]["pass"] == "smooth"
    again, _ = Pipeline.parse(done.pipeline, PASSES).run(graph)
    assert [str(again)] == [str(after) for after in done.module.functions.values()]
