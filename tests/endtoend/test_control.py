"""Loops and branches as artifacts: the bits of the interpreter, on every variant, at every size and thread count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joined import join
from kernel_lab import same_bits
from random_loops import BATCH, DIMS, SEQ, random_loop, random_values

import llmc
from llmc.compiler import interpret
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make, results
from llmc.driver import compile_graph

SEEDS = range(12)


@pytest.fixture(scope="module")
def loops() -> Graph:
    """Random loops of integers beside each other, on the same inputs."""
    return join({f"g{seed}": random_loop(seed) for seed in SEEDS}, shared=True)


@pytest.fixture(scope="module", params=[0, 3], ids=["O0", "O3"])
def artifact(request: Any, loops: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("control") / "loops.llmc"
    compile_graph(loops, path, level=request.param)
    return path


def test_random_loops_have_the_interpreters_bits(loops: Graph, artifact: Path) -> None:
    with llmc.load(artifact) as one, llmc.load(artifact, threads=4) as four:
        for batch, seq in ((1, 1), (1, 64), (3, 5), (8, 2)):
            values = random_values(loops, batch, seq)
            expected = interpret.run(loops, values)
            for model in (one, four):
                found = model(**values)
                assert [n for n in expected if not same_bits(found[n], expected[n])] == []


def recurrent(units: int) -> Graph:
    """An LSTM's cell over time, both ways, for rows of different lengths."""
    rng = np.random.default_rng(0)
    w = constant((rng.normal(size=(4 * units, units)) / 8).astype(np.float32))
    inputs = [input_("x", "f32", (BATCH, 4 * units))]
    inputs += [input_(name, "f32", (BATCH, units)) for name in "hc"]
    h, c = results(make("lstm_cell", (*inputs, w)))
    body = Graph(tuple(inputs), {"h": h, "c": c, "y": h})
    x = input_("x", "f32", (SEQ, BATCH, 4 * units))
    zero = make("full", (), shape=(BATCH, units), value=0.0, dtype="f32")
    made = {}
    for reverse in (False, True):
        node = make("loop", (x, zero, zero), body=body, count=SEQ, scanned=1, carried=2, reverse=reverse)
        made |= {f"{name}{reverse:d}": n for name, n in zip("hcy", results(node), strict=True)}
    return Graph((x,), made, DIMS)


def test_a_network_has_the_same_bits_everywhere(
    tmp_path: Path, variants: Callable[[Path], list[str]]
) -> None:
    graph = recurrent(80)
    compile_graph(graph, tmp_path / "m.llmc", target="x86")
    whole = np.random.default_rng(1).normal(size=(17, 8, 320)).astype(np.float32)
    expected = interpret.run(graph, {"x": whole})
    reference: dict[str, Any] | None = None
    for variant in variants(tmp_path / "m.llmc"):
        for threads in (1, 3):
            with llmc.load(tmp_path / "m.llmc", threads=threads, variant=variant) as model:
                found = {name: value.copy() for name, value in model(x=whole).items()}
                alone = model(x=whole[:, 2:3])
                assert same_bits(alone["y0"], found["y0"][:, 2:3])
            reference = reference or found
            assert all(same_bits(found[name], value) for name, value in reference.items())
    assert reference is not None
    for name, value in expected.items():
        np.testing.assert_allclose(reference[name], value, atol=2e-6)


def test_steps_of_a_loop_are_counted_by_their_trips(tmp_path: Path) -> None:
    graph = recurrent(16)
    compile_graph(graph, tmp_path / "m.llmc")
    with llmc.load(tmp_path / "m.llmc") as model:
        reports = [model.benchmark(duration=0.05, profile=True, batch=2, seq=seq) for seq in (4, 40)]
    flops = [[step.flops for step in r.steps if step.kernel == "lstm_cell"] for r in reports]
    assert flops[0] == [2 * 2 * 64 * 16 * 4] * 2
    assert flops[1] == [10 * f for f in flops[0]]


def test_a_branch_takes_its_condition_from_memory(tmp_path: Path) -> None:
    x, inner = input_("x", "f32", (BATCH, 4)), input_("x", "f32", (BATCH, 4))
    then = Graph((inner,), {"y": make("tanh", (inner,)), "x": inner})
    otherwise = Graph((inner,), {"y": inner, "x": make("neg", (inner,))})
    first = make("max", (x,), axes=(0, 1), keepdims=False)
    node = make("branch", (make("gt", (first, constant(np.float32(1)))), x), then=then, otherwise=otherwise)
    y, z = results(node)
    graph = Graph((x,), {"y": y, "z": z}, {"batch": (1, 8)})
    compile_graph(graph, tmp_path / "m.llmc")
    with llmc.load(tmp_path / "m.llmc") as model:
        for value in (0.5, 3.0):
            given = {"x": np.full((2, 4), value, np.float32)}
            expected = interpret.run(graph, given)
            found = model(**given)
            np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-6)
            assert same_bits(found["z"], expected["z"])
