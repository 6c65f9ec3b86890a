"""`run_verified`: planted wrong passes are caught, traced to their rewrite and node, and can be run again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.equality import equal
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import LOSSY, Pass, Pipeline, close
from llmc.compiler.promises import run_verified
from llmc.compiler.reproducer import read_text
from llmc.compiler.rewrite import RewritePass
from llmc.compiler.samples import samples
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES

X = input_("x", "f32", ("n",))


def chain_of(*ops: str) -> Graph:
    node = X
    for number, name in enumerate(ops):
        node = make(name, (node,), Source(f"layer.{number}"))
    return Graph((X,), {"y": node}, {"n": (1, 8)})


def drop_double(node: Node) -> Node | None:
    """neg(neg(x)) -> x"""
    match node:
        case Node("neg", (Node("neg", (x,)),)):
            return x


def sin_for_cos(node: Node) -> Node | None:
    """cos(x) -> sin(x), which is wrong"""
    return make("sin", node.inputs, node.source) if node.op == "cos" else None


class Wrong(RewritePass):
    rules = (drop_double, sin_for_cos)


class AlsoWrong(RewritePass):
    keeps = close(1e-3)
    rules = (sin_for_cos,)


class Honest(RewritePass):
    keeps = LOSSY
    rules = (sin_for_cos,)


class ByHand(Pass):
    """No rewrite rules: one node is another afterwards."""

    def run(self, graph: Graph) -> Graph:
        return graph.replace(lambda n: make("exp", n.inputs, n.source) if n.op == "tanh" else n)


@dataclass(frozen=True)
class Raising(Pass):
    def run(self, graph: Graph) -> Graph:
        raise KeyError("w")


GRAPH = chain_of("neg", "neg", "tanh", "neg", "neg", "abs", "cos", "neg", "neg", "sigmoid")


def breach(*passes: Pass, graph: Graph = GRAPH) -> LlmcError:
    with pytest.raises(LlmcError) as caught:
        run_verified(Pipeline.of(*passes), graph)
    return caught.value


def reproducer(error: LlmcError) -> Path:
    return Path(error.hint.split("llmc opt ")[1].split(" --verify-each")[0])


@pytest.mark.parametrize("kind", [Wrong, AlsoWrong])
def test_a_planted_rewrite_is_attributed(kind):
    error = breach(kind())
    assert error.problem == f"pass {kind.name} promises {kind.keeps} and breaks it"
    assert error.at == "layer.6"
    assert "sin_for_cos at cos f32[n] of layer.6" in error.found
    assert "first differing node: sin f32[n]" in error.found
    number = "rewrite 3:" if kind is Wrong else "rewrite 1:"
    assert number in error.found


def test_a_pass_without_rules_is_traced_to_its_node():
    error = breach(ByHand())
    assert "pass byhand promises exact and breaks it" in error.problem
    assert error.at == "layer.2"
    assert "first differing node: exp f32[n]" in error.found
    assert "not made by a rewrite rule" in error.found


def test_the_pass_is_the_one_that_broke_it():
    """What an earlier lossy pass changed is not held against a later one."""
    said: list[str] = []
    run_verified(Pipeline.of(Honest(), PASSES["simplify"]()), GRAPH, say=said.append)
    assert len(said) == 2
    assert "promised lossy" in said[0]
    assert said[1].startswith("simplify: y differs by 0.0e+00")


def test_the_reproducer_runs_again():
    path = reproducer(breach(PASSES["simplify"](), Wrong()))
    graph, pipeline = read_text(path, {})
    assert pipeline == "wrong"
    simplified, _ = Pipeline.of(PASSES["simplify"]()).run(GRAPH)
    assert equal(graph, simplified)
    with pytest.raises(LlmcError, match="breaks it"):
        run_verified(Pipeline.of(Wrong()), graph)


def test_the_reproducer_holds_the_weights():
    weight = constant(np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32), "dense.weight")
    x = input_("x", "f32", ("n", 5))
    y = make("cos", (make("linear", (x, weight), Source("dense")),), Source("act"))
    path = reproducer(breach(AlsoWrong(), graph=Graph((x,), {"y": y}, {"n": (1, 8)})))
    graph, _ = read_text(path, {})
    assert any(
        n.op == "constant" and n.attributes["value"] == weight.attributes["value"] for n in graph.nodes
    )
    path.with_suffix(".npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(LlmcError, match="not weights that can be read"):
        read_text(path, {})


def test_a_pass_that_raises_leaves_a_reproducer_too():
    error = breach(PASSES["simplify"](), Raising())
    assert "pass raising failed: KeyError" in error.problem
    assert read_text(reproducer(error), {})[1] == "raising"


def test_a_false_tolerance_is_caught():
    class Rounded(RewritePass):
        keeps = close(1e-12)

        def round(self, node: Node) -> Node | None:
            """tanh(x) -> tanh of a shifted x"""
            if node.op == "tanh" and node.inputs[0].op != "add":
                shifted = make("add", (node.inputs[0], constant(np.float32(1e-5))))
                return make("tanh", (shifted,), node.source)

        @property
        def rules(self):
            return (self.round,)

    assert "promises close(1e-12)" in breach(Rounded()).problem


def test_level_3_keeps_its_promises(random_encoder):
    said: list[str] = []
    for seed in range(5):
        pipeline = Pipeline.parse(LEVELS[3], PASSES)
        plain, _ = pipeline.run(random_encoder(seed)[0])
        after, report = run_verified(pipeline, random_encoder(seed)[0], say=said.append)
        assert equal(after, plain)
        assert len(report.runs) == len(pipeline.steps)
    assert any("promised close" in line for line in said)


def test_samples_are_legal_and_of_many_sizes(random_encoder):
    graph, _ = random_encoder(0)
    found = [session.calls[0] for session in samples(graph)]
    longest = graph.dims["seq"].high
    sizes = [(1, min(9, longest)), (3, 1), (3, min(17, longest))]
    assert [call["ids"].shape for call in found[:3]] == sizes
    masks = [call["mask"] for call in found]
    assert all(mask[0].all() for mask in masks)
    assert 0 < masks[2][1].sum() < sizes[2][1]
    assert [mask.any(axis=1).all() for mask in masks[:3]] == [True, True, False]


def test_a_pass_that_reports_no_change_is_checked_too():
    class Underhand(Pass):
        def run(self, graph: Graph) -> Graph:
            cos = next(n for n in graph.nodes if n.op == "cos")
            object.__setattr__(cos, "op", "sin")
            return graph

    graph = chain_of("neg", "cos")
    error = breach(Underhand(), graph=graph)
    assert error.problem == "pass underhand changes the graph that it was given, and reports no change"
