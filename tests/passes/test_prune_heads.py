"""`prune-heads`: attentions of which some rows are read, and ranks over all layers."""

from __future__ import annotations

import numpy as np
from random_encoders import Encoder

from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, make
from llmc.compiler.pipeline import Pipeline
from llmc.passes import LEVELS, PASSES
from llmc.passes.compress.prune_heads import PruneHeads

WAYS = {"linear": "whole", "norm": "post", "sum": "ab", "attention": "explicit", "activation": "gelu"}


def encoder() -> Graph:
    made = Encoder(5, **WAYS, positions="buffer", mask="fill").graph()
    return Pipeline.parse(LEVELS[3], PASSES).run(made)[0]


def run(text: str, graph: Graph) -> Graph:
    return Pipeline.parse(text, PASSES).run(graph)[0]


def test_heads_of_which_one_row_is_read_go_too():
    """As `narrow` leaves the last attention of a classifier."""
    whole = encoder()
    (mha,) = (n for n in whole.nodes if n.op == "mha")
    (out,) = whole.users[mha]
    row = make("slice", (mha,), axis=1, start=0, stop=1, step=1)
    first = make("linear", (row, *out.inputs[1:2]))
    before = Graph(whole.inputs, {"y": first}, whole.dims)
    after = run("prune-heads{fraction=0.5}", before)
    assert [n.attributes["heads"] for n in after.nodes if n.op == "mha"] == [1]
    assert first.shape == after.outputs["y"].shape
    seen = Graph(whole.inputs, {"y": first, "row": row}, whole.dims)
    assert run("prune-heads{fraction=0.5}", seen) is seen, "an output keeps its shape"
    across = make("slice", (mha,), axis=2, start=0, stop=4, step=1)
    columns = make("linear", (across, constant(np.ones((8, 4), np.float32), "w")))
    part = Graph(whole.inputs, {"y": columns}, whole.dims)
    assert run("prune-heads{fraction=0.5}", part) is part


def test_a_global_rank_takes_as_many_where_a_layer_would_lose_all():
    scores = [np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 1.0])]
    kept = PruneHeads(0.5, "global").kept(scores)
    assert [list(k) for k in kept] == [[2], [1, 2]], "three of six, though a layer has the three least"
