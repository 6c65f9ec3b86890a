"""`spare`: which products of a graph with states are not on int8: their activations are int16, a head's float."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make, state_
from llmc.compiler.ops.int16 import LONGEST
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


def stored(graph: Graph, op: str = "int16_linear") -> set[str]:
    """Names of the weights in 8 bits that nodes of `op` read."""
    levels = {n.inputs[{"int16_linear": 1, "blockwise": 0}[op]] for n in graph.nodes if n.op == op}
    return {n.attributes["value"].name.removesuffix(".levels") for n in levels}


def test_what_is_kept_what_meets_it_what_is_gated_and_the_head() -> None:
    with listening() as told:
        after = Spare().run(decoder())
    verify(after)
    assert stored(after) == {"values", "queries", "down", "head"}
    assert sum(n.op == "int16_rows" for n in after.nodes) == 3  # values and queries share theirs
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


def test_activations_may_stay_float() -> None:
    after = Spare(int16=False).run(decoder())
    verify(after)
    assert stored(after) == set()
    assert stored(after, "blockwise") == {"values", "queries", "down", "head"}


def test_what_is_as_wide_as_a_table_keeps_floats() -> None:
    """An output head, whose weights have a scale for each block."""
    ids, held = input_("ids", "i64", (SEQ,)), state_("values", "f32", (PAST, 64), grows=0)
    table = constant(Weight(RNG.normal(size=(99, 64)).astype(np.float32), "table"))
    x = make("embedding", (table, ids))
    kept = make("append", (held, linear(x, "values")))
    dims = {"seq": (1, 9), "past": (0, 9)}
    head = linear(x, "head", 99)
    graph = Graph((ids,), {"logits": head}, dims, states=(held,), updates={"values": kept})
    after = Spare().run(graph)
    verify(after)
    assert stored(after) == {"values"}
    assert stored(after, "blockwise") == {"head"}


def test_answers_are_those_of_weights_in_8_bits() -> None:
    graph = decoder()
    x = RNG.normal(size=(5, 64)).astype(np.float32)
    inputs = {"x": x}
    exact, float_, levels = (
        run(g, inputs)["logits"] for g in (graph, Spare(int16=False).run(graph), Spare().run(graph))
    )
    scale = np.abs(exact).max()
    assert np.abs(levels - float_).max() < 1e-3 * scale < np.abs(float_ - exact).max() * 10


def test_a_row_too_long_for_int32_keeps_floats() -> None:
    held = state_("values", "f32", (PAST, 16), grows=0)
    x = input_("x", "f32", (SEQ, LONGEST))
    kept = make("append", (held, linear(x, "values", 16)))
    graph = Graph((x,), {}, {"seq": (1, 9), "past": (0, 9)}, states=(held,), updates={"values": kept})
    after = Spare().run(graph)
    verify(after)
    assert (stored(after), stored(after, "blockwise")) == (set(), {"values"})
