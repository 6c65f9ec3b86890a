"""What kernels cost: figures for all that a candidate makes, bytes as they are stored."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from llmc import costs
from llmc.candidates import ATTENTION, CANDIDATES, WEIGHT, Candidate, candidates, layers, pipeline_of
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make
from llmc.costs import Costs, kind_of, variant_of
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.kernels import Kernels
from llmc.targets.backends import backend_of
from llmc.targets.host import find_target

TARGET = find_target("x86-avx2")


def network(*sizes: int) -> Graph:
    """Products one after the other; rows of the first are looked up."""
    rng = np.random.default_rng(0)
    at = input_("at", "i64", (symbol("n"),))
    table = constant(rng.normal(size=(300, sizes[0])).astype(np.float32), "table")
    y: Node = make("embedding", (table, at), Source("embed"))
    for number, (k, n) in enumerate(pairwise(sizes)):
        low_rank = rng.normal(size=(n, 8)) @ rng.normal(size=(8, k))
        w = constant((low_rank + 0.01 * rng.normal(size=(n, k))).astype(np.float32), f"w{number}")
        y = make("linear", (y, w), Source(f"layer.{number}"))
    return Graph((at,), {"y": y}, {"n": (1, 512)})


def after(candidate: Candidate, graph: Graph) -> Graph:
    """With all layers that the candidate is for."""
    every = layers(graph)
    return pipeline_of({x: candidate for x in every if x.kind == candidate.kind}, every).run(graph)[0]


@pytest.mark.parametrize("candidate", [c for c in CANDIDATES if c.kind == WEIGHT], ids=lambda c: c.name)
def test_there_are_figures_of_all_its_kernels(candidate: Candidate) -> None:
    """A candidate more needs `python bench/costs.py --write --candidates NAME`."""
    calls = Kernels.of(Module.of(after(candidate, network(128, 128, 96))), TARGET).every
    for table in costs.figures().values():
        assert {kind_of(call) for call in calls} - {"embedding", "dequantize_rows"} <= table.keys()


def test_fewer_bytes_and_another_time() -> None:
    graph = network(128, 128, 96)
    found = Costs(TARGET, {"n": 64}, "avx2")
    base = found.of(graph)
    assert base.bytes == 4 * (300 * 128 + 128 * 128 + 96 * 128)
    for candidate in candidates(backend_of(TARGET)):
        if candidate.kind != ATTENTION:
            cost = found.of(after(candidate, graph))
            assert cost.bytes < base.bytes
            assert cost.seconds > 0
    int8 = found.of(after(CANDIDATES[0], graph))
    assert int8.bytes == pytest.approx(base.bytes / 4, rel=0.15)
    assert int8.seconds < base.seconds
    longer = Costs(TARGET, {"n": 256}, "avx2").of(graph)
    assert longer.seconds > 3 * base.seconds


def test_what_follows_has_kernels() -> None:
    """GPUs have none of `int16`: there products with stored weights have float rows."""
    found = {c.name: c for c in candidates(backend_of(find_target("cuda"))) if c.kind == WEIGHT}
    assert {name: found[name].after for name in ("w8", "w4", "w4a8")} == dict.fromkeys(
        ("w8", "w4", "w4a8"), "cse"
    )
    made = after(found["w4"], network(128, 128, 96))
    assert [n.op for n in made.nodes].count("linear") == 2
    assert all(c in CANDIDATES for c in candidates(backend_of(TARGET)))


def test_the_same_wherever_it_is_asked() -> None:
    assert variant_of(find_target("x86")) == "avx512amx"
    assert variant_of(TARGET) == "avx2vnni"
    with pytest.raises(LlmcError, match="no figures of the time that kernels take") as caught:
        variant_of(find_target("rpi5"))
    assert "avx2" in str(caught.value.hint)


@pytest.mark.slow
def test_kernels_are_timed_on_this_machine() -> None:
    graph = network(64, 48)
    graphs = [(g, [{"n": 1}, {"n": 32}]) for g in (graph, after(CANDIDATES[0], graph))]
    found = costs.measured(graphs, TARGET, compile_graph)
    assert {"linear", "qlinear", "others"} <= found.keys()
    assert Costs(TARGET, {"n": 32}, "here", found).of(graph).seconds > 0


def test_what_is_not_timed() -> None:
    assert Costs(TARGET, {"n": 64}, "").of(network(128, 96)).seconds == 0
