"""What ARM code computes under qemu has the bits that x86 code computes here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from integer_products import bf16_product, extremes
from joined import join
from kernel_lab import same_bits
from random_graphs import random_inputs

import llmc
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run

pytestmark = pytest.mark.qemu


def samples(count: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(5)
    for i in range(count):
        batch, seq = (4, 16) if i == 0 else (int(rng.integers(1, 5)), int(rng.integers(1, 17)))
        yield {
            "ids": rng.integers(0, 23, (batch, seq)),
            "mask": (np.arange(seq) < rng.integers(1, seq + 1, (batch, 1))).astype(np.int64),
            "x": (rng.normal(size=(batch, seq, 70)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32),
        }


def assert_same(x86: dict[str, Any], arm: dict[str, Any]) -> None:
    assert set(x86) == set(arm)
    different = [name for name, value in x86.items() if not same_bits(value, arm[name])]
    assert different == []


def test_f32_on_20_inputs(float_pair, emulate):
    x86, arm = float_pair
    with llmc.load(x86) as model:
        for inputs in samples(20):
            assert_same(model(**inputs), emulate(arm, inputs))


@pytest.mark.parametrize("variant", ["dotprod", "neon"])
def test_int8_on_20_inputs(int8_pair, emulate, variant):
    x86, arm = int8_pair
    with llmc.load(x86) as model:
        for inputs in samples(20):
            assert_same(model(**inputs), emulate(arm, inputs, "--variant", variant))


def test_int8_of_extreme_values(int8_pair, emulate):
    """Rows of zeros, of one large value, of subnormals, with infinities and NaN."""
    x86, arm = int8_pair
    inputs = next(samples(1))
    x = inputs["x"]
    x[0, 0] = 0
    x[0, 1, 3] = 1e30
    x[0, 2] = 1e-40
    x[0, 3, 5] = np.inf
    x[0, 4, 69] = np.nan
    with llmc.load(x86) as model:
        assert_same(model(**inputs), emulate(arm, inputs))


def test_products_of_bfloat16(build, emulate):
    """A few rows and many, held to the interpreter: by `-O0`, so that nothing else is made of them."""
    made = bf16_product(45, 70, 5, ("bias", "residual"))
    graph = Graph(made.inputs, made.outputs, {"rows": (1, 100)})
    arm = build(graph, "arm", level=0)
    for m in (1, 2, 5, 7, 40):
        inputs = extremes(graph, m, 5)
        assert_same(run(graph, inputs), emulate(arm, inputs))


@pytest.mark.slow
def test_random_graphs(random_graph, build, emulate):
    graphs = {f"g{seed}": random_graph(seed)[0] for seed in range(8)}
    graph = join(graphs, shared=False)
    x86, arm = build(graph, "x86-avx2"), build(graph, "arm-neon")
    with llmc.load(x86) as model:
        for sizes in ({"batch": 1, "seq": 1}, {"batch": 3, "seq": 7}, {"batch": 2, "seq": 33}):
            inputs = random_inputs(graph, 0, sizes)
            assert_same(model(**inputs), emulate(arm, inputs))
