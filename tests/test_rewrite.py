"""The rewrite engine: use counts, declines, sources, and rules that misbehave."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.graph import Graph, Source
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.rewrite import Decline, RewritePass, recording, rewrite
from llmc.errors import LlmcError

X = input_("x", "f32", ("n",))


def graph(*outputs):
    return Graph((X,), {f"y{i}": node for i, node in enumerate(outputs)}, {"n": (1, 8)})


def op(name, *inputs, place="", **attributes):
    return make(name, inputs, Source(place) if place else None, **attributes)


def drop_neg(node):
    """neg(neg(x)) -> x"""
    if node.op == "neg" and node.inputs[0].op == "neg":
        return node.inputs[0].inputs[0]


def test_rules_run_until_none_applies():
    x = X
    for _ in range(9):
        x = op("neg", x)
    with recording() as journal:
        after = rewrite(graph(x), [drop_neg])
    assert [n.op for n in after.nodes] == ["input", "neg"]
    assert journal.applied == {"drop_neg": 4}


def test_nothing_to_do_returns_the_graph():
    before = graph(op("neg", X))
    assert rewrite(before, [drop_neg]) is before
    assert rewrite(before, []) is before


def test_a_result_is_rewritten_again():
    """A rule's own result, and what it puts below that, are seen by all rules."""

    def sin_to_negs(node):
        """sin(x) -> neg(neg(neg(neg(x))))"""
        if node.op == "sin":
            return op("neg", op("neg", op("neg", op("neg", node.inputs[0]))))

    assert rewrite(graph(op("exp", op("sin", X))), [sin_to_negs, drop_neg]).nodes[-1].inputs == (X,)


def test_use_counts():
    seen = {}

    def look(node, context):
        """nothing"""
        seen[node] = context.uses(node)

    once, twice, both = op("sin", X), op("cos", X), op("exp", X)
    rewrite(graph(op("add", twice, twice), op("mul", once, both), both), [look])
    assert [seen[n] for n in (once, twice, both)] == [1, 2, 2]
    assert X not in seen


def test_use_counts_follow_rewrites():
    """While a sweep runs, a value counts the readers it has by then."""
    single = []

    def share(node):
        """cos(x) -> sin of the same"""
        if node.op == "cos":
            return shared

    def look(node, context):
        """nothing"""
        if node.op == "exp":
            single.append(context.single(node.inputs[0]))

    shared = op("sin", X)
    rewrite(graph(op("add", op("exp", shared), op("cos", X)), op("exp", op("sin", X))), [share, look])
    assert single[-2:] == [False, True]


def test_a_replaced_reader_no_longer_counts():
    def drop_exp(node):
        """exp(x) -> cos(the input)"""
        if node.op == "exp":
            return op("cos", X)

    def look(node, context):
        """nothing"""
        if node.op == "tanh":
            single.append(context.single(shared))

    single: list[bool] = []
    shared = op("sin", X)
    rewrite(graph(op("exp", shared), op("tanh", shared)), [drop_exp, look])
    assert single == [True, True]


def test_declines_are_noted_with_place_and_reason():
    def never(node):
        """exp(x) -> nothing"""
        if node.op == "exp":
            return Decline("because")

    with recording() as journal:
        rewrite(graph(op("exp", X, place="layer.0")), [never])
    (event,) = journal.declined
    assert (event.rule, event.node, event.source, event.reason) == (
        "never",
        "exp f32[n]",
        "layer.0",
        "because",
    )


def test_a_decline_that_a_later_sweep_resolves_is_dropped():
    def inside_out(node):
        """sin(neg(x)) -> neg(sin(x))"""
        if node.op == "sin" and node.inputs[0].op == "neg":
            return op("neg", op("sin", node.inputs[0].inputs[0]))

    def wait(node):
        """sin(x) -> cos(x), not yet for exp(neg(...))"""
        if node.op == "exp":
            return Decline("a neg is in the way") if node.inputs[0].op != "cos" else None
        if node.op == "sin" and node.inputs[0].op != "neg":
            return op("cos", node.inputs[0])

    with recording() as journal:
        rewrite(graph(op("exp", op("sin", X))), [inside_out, wait])
    assert not journal.declined


def test_sources_are_kept():
    def to_cos(node):
        """sin(x) -> cos(x)"""
        if node.op == "sin":
            return op("cos", node.inputs[0])

    def to_named(node):
        """exp(x) -> tanh(x), with a place of its own"""
        if node.op == "exp":
            return op("tanh", node.inputs[0], place="made")

    after = rewrite(graph(op("exp", op("sin", X, place="layer.1"), place="layer.2")), [to_cos, to_named])
    assert [str(n.source) for n in after.nodes] == ["x", "layer.1", "made"]
    before = graph(op("neg", op("neg", op("exp", X, place="layer.3"), place="a"), place="b"))
    assert str(rewrite(before, [drop_neg]).nodes[-1].source) == "layer.3"


def test_rules_that_undo_each_other_are_named():
    def to_cos(node):
        """sin(x) -> cos(x)"""
        if node.op == "sin":
            return op("cos", *node.inputs)

    def to_sin(node):
        """cos(x) -> sin(x)"""
        if node.op == "cos":
            return op("sin", *node.inputs)

    with pytest.raises(LlmcError, match="do not come to an end: to_cos, to_sin"):
        rewrite(graph(op("sin", X)), [to_cos, to_sin])


def test_a_rule_that_grows_for_ever_is_named():
    def grow(node):
        """exp(x) -> exp(neg(x))"""
        if node.op == "exp":
            return op("exp", op("neg", node.inputs[0]))

    with pytest.raises(LlmcError, match="do not come to an end: grow"):
        rewrite(graph(op("exp", X)), [grow])


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (constant(np.float32(1)), "rule bad changes the type"),
        ("exp", "rule bad returned no node"),
        (ValueError("oh"), "rule bad failed: ValueError: oh"),
        (ValueError("oh\n  no"), "rule bad failed: ValueError: oh no"),
        (SystemExit(3), "rule bad failed: SystemExit: 3"),
        (LlmcError("wrong", found="it"), "rule bad: wrong"),
    ],
)
def test_bad_results_name_the_rule_and_the_node(result, problem):
    def bad(node):
        """exp(x) -> trouble"""
        if node.op == "exp":
            if isinstance(result, BaseException):
                raise result
            return result

    with pytest.raises(LlmcError, match=problem) as caught:
        rewrite(graph(op("exp", X, place="layer.7")), [bad])
    assert "layer.7" in caught.value.at


def test_deep_graphs():
    x = X
    for _ in range(3000):
        x = op("neg", op("sin", x))
    assert rewrite(graph(x), [drop_neg]).nodes[-1] is x


def test_a_rewrite_pass_is_its_rules():
    class Drop(RewritePass):
        rules = (drop_neg,)

    assert str(Drop()) == "drop"
    assert Drop().run(graph(op("neg", op("neg", X)))).nodes == (X,)
