"""`spare`: which products of a graph with states keep float activations on int8."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import constant, input_, make, state_
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify
from llmc.passes import PASSES
from llmc.passes.compress.spare import Spare
from llmc.passes.quantise import QUANTISATIONS

RNG = np.random.default_rng(6)
SEQ, PAST = symbol("seq"), symbol("past")


def linear(x: Node, name: str, columns: int = 64, **attributes: Any) -> Node:
    array = RNG.normal(size=(columns, int(x.shape[-1]))).astype(np.float32)
    return make("linear", (x, constant(Weight(array, name))), **attributes)


def decoder() -> Graph:
    """Values that are kept, a mixture with them, a gated product and a head."""
    x = input_("x", "f32", (SEQ, 64))
    held = state_("values", "f32", (PAST, 64), grows=0)
    kept = make("append", (held, linear(x, "values")))
    scores = make("matmul", (linear(x, "queries"), make("transpose", (kept,), perm=(1, 0))))
    mixed = linear(make("add", (x, make("matmul", (scores, kept)))), "mixed")
    gate, up = linear(mixed, "gate", 128, epilogue=("silu",)), linear(mixed, "up", 128)
    down = linear(make("mul", (gate, up)), "down")
    head = linear(make("layer_norm", (down, *_norm()), eps=1e-5), "head", 99)
    dims = {"seq": (1, 9), "past": (0, 9)}
    return Graph((x,), {"logits": head}, dims, states=(held,), updates={"values": kept})


def _norm() -> tuple[Node, Node]:
    return constant(np.ones(64, np.float32)), constant(np.zeros(64, np.float32))


def stored(graph: Graph) -> set[str]:
    """Names of the weights that are stored in 8 bits."""
    return {
        n.inputs[0].attributes["value"].name.removesuffix(".levels")
        for n in graph.nodes
        if n.op == "blockwise"
    }


def test_what_is_kept_what_meets_it_what_is_gated_and_the_head() -> None:
    with listening() as told:
        after = Spare().run(decoder())
    verify(after)
    assert stored(after) == {"values", "queries", "down", "head"}
    assert str(told[0]) == "4 of 7 weights; left: 3 not sensitive"


def test_the_rest_goes_to_int8() -> None:
    graph = decoder()
    for step in Pipeline.parse(f"spare,{QUANTISATIONS['int8']}", PASSES).steps:
        graph = step.change.run(graph)
    verify(graph)
    assert stored(graph) == {"values", "queries", "down", "head"}
    assert sum(n.op == "qlinear" for n in graph.nodes) == 3


def test_a_graph_without_states_is_left() -> None:
    x = input_("x", "f32", (SEQ, 64))
    graph = Graph((x,), {"y": linear(x, "head")}, {"seq": (1, 9)})
    assert Spare().run(graph) is graph


def test_what_a_function_only_reads_is_met_too() -> None:
    """As keys and values of a source, which another function left."""
    x, held = input_("x", "f32", (SEQ, 64)), state_("cross", "f32", (9, 64))
    queries, other = linear(x, "queries"), linear(x, "other")
    scores = make("matmul", (queries, make("transpose", (held,), perm=(1, 0))))
    mixed = linear(make("layer_norm", (make("add", (other, x)), *_norm()), eps=1e-5), "mixed")
    graph = Graph((x,), {"scores": scores, "y": mixed}, {"seq": (1, 9)}, states=(held,))
    after = Spare().run(graph)
    verify(after)
    assert stored(after) == {"queries", "mixed"}
