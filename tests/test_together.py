"""Which steps serve all sessions of a run: what the analysis finds, and why it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import writers
from rows_lab import by_row
from stateful_graphs import (
    BATCH,
    PAST,
    SEQ,
    WIDTH,
    accumulator,
    attends,
    causal,
    encoder_decoder,
    normal,
    weights,
)

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make, state_
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.plan import make_plan
from llmc.compiler.together import Together
from llmc.passes import LEVELS, PASSES
from llmc.targets.cpu.backend import BACKEND

X = input_("x", "f32", (1, SEQ, WIDTH))


def passed(graph: Graph, text: str) -> Graph:
    return Pipeline.parse(text, PASSES).run(graph)[0]


@pytest.mark.parametrize("text", ["", "append", f"append,{LEVELS[3]}"])
def test_what_works_by_row_does(text: str) -> None:
    graph = passed(writers.step(), text)

    def call(seed: int, tokens: int, *keep: int) -> dict[str, Any]:
        ids = np.random.default_rng(seed).integers(0, 32, (1, tokens))
        return {"input_ids": ids, "logits_to_keep": np.array(keep)}

    sessions = [
        [call(0, 5, 0), call(1, 1, 0)],
        [call(2, 7, 6, 0)],
        [call(3, 2, 1), call(4, 1, 0), call(5, 3, 1)],
    ]
    found = by_row(graph, sessions)
    assert found.count("linear") == 5
    assert {"embedding", "add"} & set(found)


@pytest.mark.parametrize("seed", range(12))
def test_random_chains_of_ops(seed: int) -> None:
    """Whatever is said to work by row does; sums over rows, tables and columns that broadcast are not."""
    rng = np.random.default_rng(seed)
    pool: list[Node] = [
        X,
        make("reshape", (X,), shape=(SEQ, 1, WIDTH)),
        make("reshape", (X,), shape=(SEQ, WIDTH)),
    ]
    row = constant(normal(seed, WIDTH))
    for _ in range(14):
        x = pool[rng.integers(len(pool))]
        last = x.type.rank - 1
        pool.append(
            [
                lambda x=x: make("tanh", (x,)),
                lambda x=x: make("mul", (x, row)),
                lambda x=x: make("add", (x, pool[0])),
                lambda x=x: make("linear", (x, weights(seed, WIDTH, WIDTH))),
                lambda x=x, last=last: make("softmax", (x,), axis=last),
                lambda x=x: make("softmax", (x,), axis=0),
                lambda x=x, last=last: make("add", (x, make("mean", (x,), axes=(last,), keepdims=True))),
                lambda x=x: make("add", (x, make("mean", (x,), axes=(0,), keepdims=True))),
                lambda x=x: make("reshape", (x,), shape=(1, SEQ, WIDTH)),
                lambda x=x: make("cumsum", (x,), axis=0),
            ][rng.integers(10)]()
        )
        if pool[-1].shape not in ((1, SEQ, WIDTH), (SEQ, 1, WIDTH), (SEQ, WIDTH)):
            pool.pop()  # rows against rows
    state = state_("s", "f32", (PAST, WIDTH), grows=0)
    update = make("append", (state, pool[2]))
    outputs = {f"y{i}": node for i, node in enumerate(pool[3:])}
    graph = Graph((X,), outputs, {"seq": (1, 9), "past": (0, 30)}, (state,), {"s": update})
    by_row(graph, [[{"x": normal(i, 1, n, WIDTH)}] for i, n in enumerate((3, 1, 4))])


REFUSED = {
    "input x has no rows side by side, its shape is f32[batch, seq, 32]": lambda: causal(BATCH),
    "input x has no rows side by side, its shape is f32[batch, 8]": accumulator,
    "it keeps no state, and a batch does the same": lambda: Graph(
        (X,), {"y": make("neg", (X,))}, {"seq": (1, 9)}
    ),
    "input text has no rows side by side, its shape is f32[1, src, 32]": lambda: encoder_decoder().functions[
        "encode"
    ],
    "output total has no rows side by side, its shape is f32[32]": lambda: _with(
        total=make("sum", (X,), axes=(0, 1), keepdims=False)
    ),
    "output turned has no rows side by side, its shape is f32[1, 32, seq]": lambda: _with(
        turned=make("transpose", (X,), perm=(0, 2, 1))
    ),
}


def _with(**outputs: Node) -> Graph:
    y, states, updates = attends(X)
    return Graph((X,), {"y": y, **outputs}, {"seq": (1, 9), "past": (0, 30)}, states, updates)


@pytest.mark.parametrize("told", REFUSED)
def test_why_a_function_runs_for_one_session(told: str) -> None:
    graph = REFUSED[told]()
    assert Together(graph).refusal == told
    assert make_plan(graph, BACKEND.lower(graph)).together is None


def test_a_row_that_reads_others_is_for_each_session() -> None:
    """Sums over rows, what is read of a table of rows, and what a size decides."""
    graph = _with()
    together = Together(graph)
    table = make("embedding", (make("reshape", (X,), shape=(SEQ, WIDTH)), constant(np.zeros(3, np.int64))))
    size = make("cast", (make("dim", (), value=symbol("past")),), dtype="f32")
    cases = {
        "softmax over rows": make("softmax", (X,), axis=1),
        "cumsum": make("cumsum", (X,), axis=1),
        "a size": make("mul", (X, size)),
        "of a table": make("add", (X, make("mean", (table,), axes=(0,), keepdims=True))),
    }
    for name, node in cases.items():
        made = Together(_with(**{name: node}))
        assert not made.works_by_row(node, "seq"), name
    assert together.works_by_row(make("neg", (X,)), "seq")
