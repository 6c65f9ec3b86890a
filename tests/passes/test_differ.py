"""`differ`: weights as what they differ by from another, within the error that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.parse import parse_graph
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.text import weights_of
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes import PASSES

N, K, RANK = 96, 80, 4
RNG = np.random.default_rng(3)
BASE = RNG.normal(size=(N, K)).astype(np.float32)
Array = np.ndarray[Any, Any]


def run(text: str, graph: Graph) -> Graph:
    return Pipeline.parse(text, PASSES).run(graph)[0]


def near(rank: int = RANK, size: float = 0.1, noise: float = 0.0) -> Array:
    """A weight that differs from `BASE` by `size` of it, by a matrix of some rank and noise."""
    low = RNG.normal(size=(N, rank)) @ RNG.normal(size=(rank, K))
    low *= size * np.linalg.norm(BASE) / np.linalg.norm(low)
    return np.asarray(BASE + low + noise * RNG.normal(size=(N, K)), np.float32)


def product(x: Node, name: str, array: Array, *extras: Node, epilogue: Sequence[str] = ()) -> Node:
    weight = constant(array, f"{name}.weight")
    return make("linear", (x, weight, *extras), Source(name), epilogue=tuple(epilogue))


def two(array: Array, *extras: str) -> Graph:
    """A product with `BASE`, and one with a weight like it and steps after it, on another input."""
    x, y = (input_(name, "f32", (symbol("rows"), K)) for name in "xy")
    given = {
        "bias": constant(RNG.normal(size=N).astype(np.float32), "bias"),
        "residual": input_("r", "f32", (symbol("rows"), N)),
    }
    reads = [given[step] for step in extras if step in given]
    outputs = {"a": product(x, "a.dense", BASE), "b": product(y, "b.dense", array, *reads, epilogue=extras)}
    inputs = (x, y, *(node for node in reads if node.op == "input"))
    return Graph(inputs, outputs, {"rows": (1, 8)})


def answers(graph: Graph) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    inputs = {n.attributes["name"]: rng.normal(size=(5, n.shape[1])).astype(np.float32) for n in graph.inputs}
    return interpret.run(graph, inputs)


def stored(graph: Graph) -> int:
    return sum(n.attributes["value"].array.size for n in graph.nodes if n.op == "constant")


def test_golden(golden: Callable[[object], None]) -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(-2, 3, (N, 1)) * rng.integers(-2, 3, (1, K))
    base = rng.integers(-9, 10, (N, K)).astype(np.float32)
    x = input_("x", "f32", (symbol("rows"), K))
    outputs = {"a": product(x, "a", base), "b": product(x, "b", (base + low).astype(np.float32))}
    after = run("differ", Graph((x,), outputs, {"rows": (1, 8)}))
    text = "\n".join(
        line for line in str(after).splitlines() if "constant(" not in line
    )  # LAPACK's last bits
    golden(text)


@pytest.mark.parametrize(
    "steps",
    [
        (),
        ("bias",),
        ("residual",),
        ("bias", "residual"),
        ("bias", "gelu"),
        ("bias", "residual", "tanh"),
        ("relu",),
    ],
    ids="+".join,
)
def test_a_difference_of_low_rank_is_found(steps: tuple[str, ...]) -> None:
    before = two(near(), *steps)
    after = run("differ{error=1e-4}", before)
    verify(after)
    assert str(parse_graph(str(after), weights_of(after))) == str(after)
    assert stored(after) == stored(before) - N * K + RANK * (N + K)
    old, new = answers(before), answers(after)
    np.testing.assert_array_equal(new["a"], old["a"])
    np.testing.assert_allclose(new["b"], old["b"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("error", [0.3, 0.05, 0.02])
def test_the_error_is_a_bound(error: float) -> None:
    array = near(RANK, 0.4, noise=0.01)
    after = run(f"differ{{error={error}}}", two(array))
    u, v = (
        next(
            n.attributes["value"].array
            for n in after.nodes
            if n.op == "constant" and n.source.path.endswith(end)
        )
        for end in (".u", ".v")
    )
    left = np.linalg.norm(array - BASE - u.astype(np.float64) @ v) / np.linalg.norm(array)
    assert left <= error * (1 + 1e-5)
    fewer = u[:, :-1].astype(np.float64) @ v[:-1]
    assert np.linalg.norm(array - BASE - fewer) / np.linalg.norm(array) > error, "one rank less is too few"


def effect(text: str, graph: Graph) -> tuple[Graph, dict[str, int]]:
    with listening() as heard:
        after = Pipeline.parse(text, PASSES).steps[0].change.run(graph)
    return after, dict(heard[-1].left)


def test_what_stays_and_why() -> None:
    for array, told in (
        (RNG.normal(size=(N, K)).astype(np.float32), {"like no weight before it": 2}),
        (near(1, 0.01, noise=0.3), {"like no weight before it": 1, "whose difference is no smaller": 1}),
    ):
        before = two(array)
        after, left = effect("differ", before)
        assert after is before
        assert left == told
    for steps in (("bias", "gelu", "residual"), ("residual", "residual")):
        before = two(near(), *steps)
        after, left = effect("differ", before)
        assert after is before
        assert left["read where nothing can be added"] == 1
    before = two(near())
    assert run('differ{skip=["b.*"]}', before) is before
    assert run("differ{least=10000}", before) is before


def test_every_reader_of_a_weight_reads_its_difference() -> None:
    x, y = (input_(name, "f32", (symbol("rows"), K)) for name in "xy")
    shared = constant(near(), "b.weight")
    outputs = {"a": product(x, "a", BASE)}
    outputs |= {n: make("linear", (node, shared), Source(n)) for n, node in (("b", x), ("c", y))}
    before = Graph((x, y), outputs, {"rows": (1, 8)})
    after = run("differ{error=1e-4}", before)
    assert stored(after) == N * K + RANK * (N + K)
    old, new = answers(before), answers(after)
    for name in old:
        np.testing.assert_allclose(new[name], old[name], rtol=1e-3, atol=1e-3)


def test_the_nearest_weight_is_taken() -> None:
    """The third differs from the first by rank 2, from the second by a little, of rank 1."""
    x = input_("x", "f32", (symbol("rows"), K))
    column, row = RNG.normal(size=(N, 1)), RNG.normal(size=(1, K))
    far = (BASE + 0.2 * column @ row + 0.15 * RNG.normal(size=(N, K))).astype(np.float32)
    third = (far + 0.1 * row[:, ::-1] * column[::-1]).astype(np.float32)
    outputs = {name: product(x, name, a) for name, a in (("a", BASE), ("b", far), ("c", third))}
    after = run("differ{error=1e-4}", Graph((x,), outputs, {"rows": (1, 8)}))
    assert after.outputs["c"].inputs[1] is after.outputs["b"].inputs[1]
    assert [n.shape[0] for n in after.nodes if n.source.path.endswith(".v")] == [1]


@pytest.mark.parametrize("error", ["0", "-1", "0.5"])
def test_errors_that_are_none(error: str) -> None:
    with pytest.raises(LlmcError, match="differ: error is above 0 and below"):
        run(f"differ{{error={error}}}", two(near()))
