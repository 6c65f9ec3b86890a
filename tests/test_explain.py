"""`llmc explain`: where nodes came from, what rewrote them, and at which node a rule stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmc.cli import main
from llmc.compiler.conditions import Asked, why
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.history import History
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.rewrite import Rules, rewrite
from llmc.compiler.sources import roots
from llmc.compiler.watch import watching
from llmc.passes import LEVELS, PASSES
from llmc.passes.append import ones_in_place
from llmc.passes.compress.unpack import Unpack
from llmc.passes.fuse import convolutions, heads, norms, products, qkv, rms_norm
from llmc.passes.quantise.qfuse import Qfuse
from llmc.passes.simplify import RULES as SIMPLIFY
from llmc.passes.simplify import shapes
from llmc.passes.simplify.fold import Fold

EVERY_RULE = (
    *SIMPLIFY,
    *products.RULES,
    *norms.PARTS,
    *norms.RULES,
    *rms_norm.RULES,
    *convolutions.RULES,
    *heads.RULES,
    *qkv.Qkv.rules,
    *Qfuse.rules,
    shapes.view_early,
    ones_in_place,
    Fold().fold_constants,
    Unpack().decode_table,
    Unpack().decode_weight,
)
# What decides whether they apply is a trait of the op, not its name.
ANYWHERE = {"broadcast_late", "view_late", "fold_constants", "decode_table", "decode_weight"}

X = input_("x", "f32", ("n", 2))


def op(name, *inputs, place="", **attributes):
    return make(name, inputs, Source(place, "model.py:7"), **attributes)


def number(value):
    return constant(np.float32(value))


def gelu(x, half=0.5, scale=0.5**0.5, one=1.0, place="layer.0.gelu"):
    """Spelled out; its multiplication by `scale` is `inner`."""
    inner = op("mul", x, number(scale), place=place)
    sums = op("add", op("erf", inner, place=place), number(one), place=place)
    return op("mul", op("mul", x, number(half), place=place), sums, place=place), inner, sums


def of(**outputs):
    return Graph((X,), outputs, {"n": (1, 8)})


def watched(graph, text=LEVELS[3]):
    """The history of a pipeline over a graph."""
    history = History()
    with watching(history):
        Pipeline.parse(text, PASSES).run(graph)
    return history


def stops(history, rule):
    """The nearest misses of a rule first."""
    found = [r for r in history.refusals() if r.rule == rule]
    return [r.stop for r in sorted(found, key=lambda r: (not r.stop.declined, -r.stop.matched))]


@pytest.fixture
def explain(capsys, tmp_path):
    """`llmc explain` of a graph's text."""

    def run(graph, *arguments):
        file = tmp_path / "graph.txt"
        file.write_text(str(graph) if isinstance(graph, Graph) else graph)
        code = main(["explain", str(file), *arguments])
        out, err = capsys.readouterr()
        return (json.loads(out) if "--json" in arguments and not code else out), err, code

    return run


# --- the index


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda r: f"{r.__module__.split('.')[-1]}.{r.__name__}")
def test_the_root_of_every_rule_is_known(rule):
    found = roots(rule)
    assert (found is None) == (rule.__name__ in ANYWHERE)
    assert found is None or found


def test_what_a_rule_begins_with_is_its_root():
    def matched(node):
        match node:
            case Node("exp" | "sin", (x,)):
                return x
            case Node("cos", (Node("neg"),)) | Node("neg", _):
                return node
            case _:
                return None

    def guarded(node):
        if node.op not in ("exp", "sin") or not node.inputs:
            return None
        return node.inputs[0]

    assert roots(matched) == {"exp", "sin", "cos", "neg"}
    assert roots(guarded) == {"exp", "sin"}


def test_a_rule_that_begins_otherwise_is_tried_everywhere():
    def asks(node):
        if node.type.rank == 2:
            return None
        return node

    def goes_on(node):
        match node:
            case Node("exp", (x,)):
                return x
        return node.inputs[0]

    def any_op(node):
        match node:
            case Node(kind, (x,)) if kind == "exp":
                return x

    for rule in (asks, goes_on, any_op, eval("lambda node: None"), len):
        assert roots(rule) is None, rule


def test_rules_are_not_asked_about_other_ops():
    asked = []

    def exp(node):
        """exp(x) -> x"""
        if node.op != "exp":
            return None
        asked.append(node.op)

    rewrite(of(y=op("exp", op("sin", X))), [exp])
    assert asked == ["exp"]
    assert not Rules([exp]).at("sin")


# --- where rules stop


def test_the_multiplication_that_is_not_gelus_is_named():
    whole, inner, _ = gelu(X, scale=0.7)
    (stop, *_) = stops(watched(of(y=whole)), "gelu_from_erf")
    assert (stop.node, stop.reason, stop.matched) == (inner, "multiplies by 0.7, not by 0.7071068", 3)


def test_other_parts_that_are_not_gelus_are_named():
    whole, _, sums = gelu(X, one=2.0)
    assert stops(watched(of(y=whole)), "gelu_from_erf")[0].node is sums
    whole, _, _ = gelu(X, half=0.25)
    (stop, *_) = stops(watched(of(y=whole)), "gelu_from_erf")
    assert (stop.node, stop.reason) == (whole.inputs[0], "multiplies by 0.25, not by 0.5")


def test_gelu_itself_is_no_miss():
    whole, _, _ = gelu(X)
    history = watched(of(y=whole))
    assert [c.rule for c in history.changes if c.rule] == ["gelu_from_erf"]
    assert not stops(history, "gelu_from_erf")


def test_a_product_with_two_readers_is_named():
    product = op("matmul", X, constant(np.eye(2, dtype="f4")))
    history = watched(of(y=op("relu", product), z=op("exp", product)))
    (stop,) = stops(history, "fuse_activation")[:1]
    assert (stop.node.op, stop.declined) == ("linear", True)
    assert stop.reason == "the product is read elsewhere too"


def test_chains_say_what_stays_outside():
    shared = op("exp", X, place="shared")
    (stop,) = stops(watched(of(y=op("sin", shared), z=shared)), "fuse_chain")
    assert (str(stop.node.source), stop.reason) == ("shared (model.py:7)", "is read elsewhere too")


def test_tests_of_rules_are_told_in_words():
    node = op("exp", X)
    asked = Asked({"x": node, "c": number(3)}, X, lambda function, arguments: None)
    assert _why(asked, "x.op == 'sin'") == (node, "is exp, not sin")
    assert _why(asked, "x.op in ('exp', 'sin') and x.shape == (1,)") == (node, "x.shape is (n, 2), not (1)")
    assert _why(asked, "not (x.op == 'exp' or c is x)") == (node, "is exp")
    assert _why(asked, "x is c") == (node, "x is another value than c")


def _why(asked, text):
    import ast

    test = ast.parse(text, mode="eval").body
    miss = why(asked, test, False)
    return miss.node, miss.reason


# --- the command


def test_a_path_tells_the_history_of_its_nodes(explain):
    out, _, code = explain(of(y=gelu(X, scale=0.7)[0]), "layer.0")
    assert code == 0
    assert "%1 chain : f32[n, 2]  # layer.0.gelu (model.py:7)" in out
    assert "made of     %1@import mul of layer.0.gelu (model.py:7)" in out
    assert "rewritten   fuse: mul -> chain" in out
    assert "(f32 -> f32), 44*n FLOP" in out
    assert "gelu_from_erf, tried at %5@import mul of layer.0.gelu (model.py:7), stopped after 3 nodes" in out
    assert "at %2@import mul of layer.0.gelu (model.py:7): multiplies by 0.7, not by 0.7071068" in out


def test_an_imported_node_tells_what_it_became(explain):
    facts, _, _ = explain(of(y=gelu(X, scale=0.7)[0]), "%2@import", "--json")
    (story,) = facts["nodes"]
    assert (story["op"], story["became"]) == ("mul", "%1 chain of layer.0.gelu (model.py:7)")
    assert [(m["rule"], m["pass"], m["matched"], m["declined"]) for m in story["misses"]] == [
        ("gelu_from_erf", "fuse", 3, False)
    ]
    assert story["steps"][0]["read"] == ["f32"]
    assert story["steps"][0]["seconds"] is None


def test_what_went_into_a_node_is_told_with_its_rules(explain):
    product = op("matmul", X, constant(np.eye(2, dtype="f4")), place="dense")
    whole, _, _ = gelu(op("add", product, constant(np.ones(2, "f4")), place="dense"))
    facts, _, _ = explain(of(y=whole), "%1", "--json")
    (story,) = facts["nodes"]
    rules = [r["rule"] for r in story["rewritten"]]
    assert rules == ["linear_from_matmul", "fuse_bias", "gelu_from_erf", "fuse_activation"]
    assert len(story["made_of"]) == 7


def test_the_overview_counts(explain):
    layers = X
    for layer in range(3):
        layers, _, _ = gelu(layers, scale=0.7 if layer else 0.5**0.5, place=f"layer.{layer}.gelu")
    facts, _, _ = explain(of(y=layers), "--json")
    assert [(a["rule"], a["count"]) for a in facts["applied"]] == [("gelu_from_erf", 1)]
    (miss,) = [m for m in facts["misses"] if m["reason"] == "multiplies by 0.7, not by 0.7071068"]
    assert miss["count"] == 2
    assert "layer.1.gelu" in miss["stopped"]
    assert facts["nodes_before"] > facts["nodes_after"]


def test_one_rule_shows_where_it_stopped_at_once_too(explain):
    graph = of(y=gelu(X, scale=0.7)[0])
    out, _, _ = explain(graph, "--rule", "gelu_from_tanh")
    assert "has no factor 1 + tanh(...)" in out
    out, _, _ = explain(graph, "%1", "--rule", "silu_from_sigmoid")
    assert "is add, not sigmoid" in out


def test_a_rule_of_an_extension_is_explained(explain, extension):
    extension(Path(__file__).parents[1] / "examples" / "extension" / "softsign.py")
    size = op("abs", X, place="act")
    graph = of(y=op("div", X, op("add", size, number(2), place="act"), place="act"))
    facts, _, _ = explain(graph, "act", "--add-pass", "to_softsign", "--json")
    (miss,) = [m for s in facts["nodes"] for m in s["misses"] if m["rule"] == "from_parts"]
    assert (miss["pass"], miss["reason"]) == ("to_softsign", "is 2, not 1")


@pytest.mark.parametrize(
    ("arguments", "problem", "hint"),
    [
        (["layer.0.gelo"], "no node at 'layer.0.gelo'", "did you mean layer.0.gelu"),
        (["zebra"], "no node at 'zebra'", "the model has: layer"),
        (["%77"], "the graph after the passes has no node %77", "it has %0 to %1"),
        (["%77@import"], "the graph as imported has no node %77", "it has %0 to %5"),
        (["--rule", "gelu_from_erv"], "no rule 'gelu_from_erv' was tried", "did you mean gelu_from_erf?"),
    ],
)
def test_what_there_is_not(explain, arguments, problem, hint):
    _, err, code = explain(of(y=gelu(X)[0]), *arguments)
    assert code == 1
    assert problem in err
    assert hint in err


def test_nothing_to_do_is_told_too(explain):
    facts, _, code = explain(of(y=op("exp", X, place="act")), "act", "--json")
    assert code == 0
    assert facts["nodes"][0]["rewritten"] == []
    assert facts["nodes"][0]["misses"] == []


def test_measured_times_go_to_their_nodes(explain, monkeypatch):
    steps = [runtime_step("chain", "layer.0.gelu", 2e-6), runtime_step("linear", "elsewhere", 1.0)]
    monkeypatch.setattr("llmc.cli.explain.require_artifact", lambda path: path)
    monkeypatch.setattr("llmc.cli.explain._profile", lambda artifact, sizes: steps)
    out, _, _ = explain(of(y=gelu(X, scale=0.7)[0]), "layer.0", "--measure", "m.llmc")
    assert "12 bytes, 2 us" in out


def runtime_step(kernel, source, seconds):
    from llmc.runtime.reports import Step

    return Step(kernel, source, seconds, 44.0, 28.0)


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    """A folder that looks like an artifact of one kernel."""
    folder = tmp_path / "m.llmc"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    monkeypatch.setattr("llmc.cli.explain.require_artifact", lambda path: path)
    monkeypatch.setattr("llmc.cli.explain._profile", lambda *_: [runtime_step("chain", "layer.0.gelu", 2e-6)])
    return folder


def test_an_artifact_shows_its_kernels(artifact, capsys):
    assert main(["explain", str(artifact), "layer.0"]) == 0
    out = capsys.readouterr().out
    assert "layer.0.gelu" in out
    assert "llmc explain MODEL" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rule", "fuse_bias"], "an artifact has no graph any more"),
        (["%3"], "an artifact has no graph: give a path"),
        (["layer.0.gelo"], "did you mean layer.0.gelu?"),
    ],
)
def test_an_artifact_has_no_history(artifact, capsys, arguments, said):
    assert main(["explain", str(artifact), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_sizes_are_for_measurements(explain):
    _, err, code = explain(of(y=op("exp", X)), "--batch", "2")
    assert code == 2
    assert "--measure" in err


def test_a_compile_watches_nothing():
    """Nobody looks on unless somebody asked."""
    history = History()
    with watching(history), watching(None):
        Pipeline.parse("fuse", PASSES).run(of(y=gelu(X)[0]))
    assert history.imported is None
