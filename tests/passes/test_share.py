"""`cse` and `tie`, and that dead code vanishes by itself."""

from __future__ import annotations

import numpy as np

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.passes.simplify.share import Cse, Tie

X = input_("x", "f32", ("n", 4))
DIMS = {"n": (1, 8)}


def graph(**outputs):
    return Graph((X,), outputs, DIMS)


def test_cse_merges_equal_nodes(golden, same_output):
    one = constant(np.float32(1))
    first, second = (make("tanh", (make("add", pair),)) for pair in ((X, one), (one, X)))
    golden(same_output(Cse(), graph(y=make("mul", (first, second)))))


def test_cse_keeps_order_and_attributes_apart():
    ones = constant(np.ones(4, np.float32))
    a, b = make("sub", (X, ones)), make("sub", (ones, X))
    c, d = (make("softmax", (X,), axis=axis) for axis in (0, 1))
    before = graph(a=a, b=b, c=c, d=d)
    assert Cse().run(before) is before


def test_cse_keeps_zeros_of_both_signs_apart():
    zeros = [make("full", (), shape=(4,), value=v, dtype="f32") for v in (0.0, -0.0)]
    before = graph(y=make("div", (X, zeros[0])), z=make("div", (X, zeros[1])))
    assert Cse().run(before) is before


def test_tie_stores_equal_weights_once(golden, same_output):
    """As a head that shares the embedding's table, loaded twice."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    head, table = constant(values, "head.weight"), constant(values.copy(), "embeddings.weight")
    rows = make("embedding", (table, make("iota", (), length=symbol("n"))))
    golden(same_output(Tie(), graph(y=make("linear", (X, head)), z=make("add", (X, rows)))))


def test_tie_compares_dtype_shape_and_bits():
    weights = [
        constant(np.zeros((2, 4), np.float32)),
        constant(np.zeros((4, 2), np.float32)),
        constant(np.zeros((2, 4), np.int32)),
        constant(-np.zeros((2, 4), np.float32)),
    ]
    before = Graph((), {f"w{i}": w for i, w in enumerate(weights)})
    assert Tie().run(before) is before


def test_dead_code_is_not_in_a_graph():
    dead = make("exp", (X,))
    live = make("neg", (X,))
    assert dead not in graph(y=live).nodes
    replaced = graph(y=make("abs", (dead,))).replace(lambda n: live if n.op == "exp" else n)
    assert [n.op for n in replaced.nodes] == ["input", "neg", "abs"]
