"""A loop under qemu: a recurrent network both ways over rows, and branches, with the bits of x86."""

from __future__ import annotations

import numpy as np
import pytest
from joined import join
from kernel_lab import same_bits
from random_loops import DIMS, random_loop, random_values

import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make, results

pytestmark = pytest.mark.qemu

BATCH, SEQ, UNITS = symbol("batch"), symbol("seq"), 20


def cells() -> Graph:
    """An LSTM's cell forth, a GRU's back."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> object:
        return constant((rng.normal(size=shape) / 4).astype(np.float32))

    zero = make("full", (), shape=(BATCH, UNITS), value=0.0, dtype="f32")
    made = {}
    for op, gates in (("lstm_cell", 4), ("gru_cell", 3)):
        given = [input_("x", "f32", (BATCH, gates * UNITS)), input_("h", "f32", (BATCH, UNITS))]
        rest = [weight(gates * UNITS, UNITS)]
        if op == "lstm_cell":
            given.append(input_("c", "f32", (BATCH, UNITS)))
            after = results(make(op, (*given, *rest)))
        else:
            after = (make(op, (*given, *rest, weight(UNITS))),)
        named = dict(zip("hc", after, strict=False)) | {"y": after[0]}
        x = input_(op, "f32", (SEQ, BATCH, gates * UNITS))
        states = (zero,) * len(after)
        loop = make(
            "loop",
            (x, *states),
            body=Graph(tuple(given), named),
            count=SEQ,
            scanned=1,
            carried=len(after),
            reverse=op == "gru_cell",
        )
        made[op] = Graph((x,), {name: n for name, n in zip(named, results(loop), strict=True)}, DIMS)
    return join(made, shared=True)


def test_cells(build, emulate):
    graph = cells()
    x86, arm = build(graph, "x86-avx2"), build(graph, "arm")
    rng = np.random.default_rng(1)
    with llmc.load(x86) as model:
        for batch, seq in ((1, 1), (3, 9), (2, 16)):
            shapes = {n.attributes["name"]: (seq, batch, int(n.shape[2])) for n in graph.inputs}
            inputs = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
            here, there = model(**inputs), emulate(arm, inputs)
            assert [name for name in here if not same_bits(here[name], there[name])] == []


@pytest.mark.slow
def test_random_loops(build, emulate):
    graph = join({f"g{seed}": random_loop(seed) for seed in range(4)}, shared=True)
    x86, arm = build(graph, "x86-avx2"), build(graph, "arm-neon")
    with llmc.load(x86) as model:
        for batch, seq in ((1, 1), (3, 7)):
            inputs = random_values(graph, batch, seq)
            here, there = model(**inputs), emulate(arm, inputs)
            assert [name for name in here if not same_bits(here[name], there[name])] == []
