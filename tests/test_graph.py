"""Graph: traversal, users, replace."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.dims import ceil_div, dim, dim_c, dim_text, evaluate, floor_div, parse_dim, symbol
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import constant, input_, make
from llmc.errors import LlmcError


def chain_of(count: int) -> Graph:
    node = x = input_("x", "f32", (4,))
    for _ in range(count):
        node = make("neg", (node,))
    return Graph((x,), {"y": node})


def test_deep_graph_is_walked_without_recursion():
    graph = chain_of(10_000)
    assert len(graph.nodes) == 10_001
    assert graph.nodes[0] is graph.inputs[0]
    assert all(graph.nodes[i + 1].inputs == (graph.nodes[i],) for i in range(10_000))
    assert len(graph.replace(lambda n: n).nodes) == 10_001


def test_replace_that_changes_nothing_returns_the_same_graph(random_graph):
    for seed in range(5):
        graph, _ = random_graph(seed)
        assert graph.replace(lambda n: n) is graph


def test_replace_rebuilds_only_what_depends_on_the_change():
    x = input_("x", "f32", (4,))
    kept = make("exp", (x,))
    changed = make("neg", (x,), Source("here"))
    graph = Graph((x,), {"a": kept, "b": make("add", (changed, kept), Source("there"))})

    def change(node: Node) -> Node:
        return make("abs", node.inputs, node.source) if node.op == "neg" else node

    after = graph.replace(change)
    assert after is not graph
    assert after.outputs["a"] is kept
    assert after.outputs["b"].inputs[0].op == "abs"
    assert after.outputs["b"].inputs[1] is kept
    assert str(after.outputs["b"].source) == "there"
    assert graph.outputs["b"].inputs[0] is changed  # the old graph is as it was


def test_rebuild_shows_each_node_before_and_after():
    x = input_("x", "f32", (2,))
    y = make("neg", (x,))
    graph = Graph((x,), {"z": make("exp", (y,))})
    seen = []

    def change(before, node):
        seen.append((before, node))
        return make("abs", node.inputs) if before is y else node

    after = graph.rebuild(change)
    assert [before for before, _ in seen] == list(graph.nodes)
    assert [node.op for _, node in seen] == ["input", "neg", "exp"]
    assert seen[2][1].inputs[0].op == "abs", "on inputs already replaced"
    assert [n.op for n in after.nodes] == ["input", "abs", "exp"]
    assert graph.rebuild(lambda before, node: node) is graph


def test_replace_infers_types_again():
    x = input_("x", "f32", (4,))
    graph = Graph((x,), {"y": make("exp", (make("neg", (x,)),))})
    wider = graph.replace(lambda n: make("concat", (n, n), axis=0) if n.op == "neg" else n)
    assert wider.outputs["y"].shape == (8,)


def test_users_count_each_read():
    x = input_("x", "f32", (4,))
    twice = make("add", (x, x))
    graph = Graph((x,), {"y": make("mul", (twice, x))})
    assert graph.users[x] == (twice, twice, graph.outputs["y"])
    assert graph.users[graph.outputs["y"]] == ()


def test_unused_inputs_are_nodes_too():
    x, unused = input_("x", "f32", (4,)), input_("unused", "f32", (4,))
    assert Graph((unused, x), {"y": x}).nodes == (unused, x)


def test_networkx_view_carries_positions():
    x = input_("x", "f32", (4,))
    y = make("sub", (x, constant(np.ones(4))))
    view = Graph((x,), {"y": y}).nx()
    assert sorted(d["position"] for _, _, d in view.in_edges(y, data=True)) == [0, 1]
    assert view.nodes[y]["op"] == "sub"


@pytest.mark.parametrize(
    "text", ["seq", "2*seq + 1", "floor(seq/2 + 1/2)", "Max(1, seq - 3)", "batch*seq**2", "7", "-3"]
)
def test_dims_print_and_parse_back(text):
    assert dim_text(parse_dim(text)) == dim_text(parse_dim(dim_text(parse_dim(text))))
    assert dim(parse_dim(text) - parse_dim(dim_text(parse_dim(text)))) == 0


@pytest.mark.parametrize(
    "text",
    [
        "seq",
        "2*seq + 1",
        "3*floor(seq/3 + 2/3) + 1",
        "Max(1, batch, seq)",
        "batch*seq**3",
        "Min(seq, 4)",
        "floor(seq**2/5)",
    ],
)
def test_c_form_has_the_value(text):
    value = parse_dim(text)
    names = {"llmc_max": max, "llmc_min": min, "llmc_floor": lambda a, b: a // b}
    for seq in range(1, 40):
        sizes = {"seq": seq, "batch": 3}
        # Python's // is C's / of non-negative integers
        assert eval(dim_c(value).replace("/", "//"), {}, {**names, **sizes}) == evaluate(value, sizes)


def test_dim_algebra_normalises():
    batch, seq = symbol("batch"), symbol("seq")
    assert dim((batch + 1) * seq - batch * seq - seq) == 0
    assert dim(seq - seq + 3) == 3
    assert parse_dim("floor(7/2)") == 3


def test_sizes_after_several_strides_have_one_form():
    """(n - 3) // 5, less 4, // 2 is (n - 23) // 10."""
    n = symbol("n")
    twice = floor_div(dim(floor_div(dim(n - 3), 5) - 4), 2)
    assert twice == floor_div(dim(n - 23), 10) == parse_dim("floor((floor((n - 3)/5) - 4)/2)")
    assert dim_text(twice) == "floor(n/10 + 7/10) - 3"
    kept = floor_div(dim(3 * floor_div(n, 4) + 1), 2)  # three of it: nothing to leave out
    for size in range(40):
        assert evaluate(twice, {"n": size}) == ((size - 3) // 5 - 4) // 2
        assert evaluate(kept, {"n": size}) == (3 * (size // 4) + 1) // 2
        assert evaluate(ceil_div(n, 4), {"n": size}) == -(-size // 4)


@pytest.mark.parametrize(
    "text",
    ["", "seq +", "1.5", "'a'", "seq.args", "__import__('os')", "seq[0]", "2**99", "True", "1/0", "f(seq)"],
)
def test_texts_that_are_no_dims(text):
    with pytest.raises(LlmcError, match="not a dimension"):
        parse_dim(text)
