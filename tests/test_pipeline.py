"""Running pipelines: reports, printing, dumps, and faults that are attributed to their pass."""

from __future__ import annotations

import pytest

from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.module import Module
from llmc.compiler.ops import input_, make
from llmc.compiler.pipeline import Pass, Pipeline
from llmc.compiler.rewrite import Decline, RewritePass
from llmc.errors import LlmcError
from llmc.passes import PASSES

X = input_("x", "f32", ("n",))


def graph(*ops):
    node = X
    for number, name in enumerate(ops):
        node = make(name, (node,), Source(f"layer.{number}"))
    return Graph((X,), {"y": node}, {"n": (1, 8)})


def drop(node):
    """neg(neg(x)) -> x"""
    match node:
        case Node("neg", (Node("neg", (x,)),)):
            return x
        case Node("neg"):
            return Decline("there is one neg only")


class Drop(RewritePass):
    rules = (drop,)


class Bad(Pass):
    def run(self, graph):
        return self.result(graph)


def test_the_report():
    after, report = Pipeline.of(Drop(), Drop()).run(graph("neg", "neg", "neg"))
    first, second = report.runs
    assert [n.op for n in after.nodes] == ["input", "neg"]
    assert (first.name, first.nodes_before, first.nodes_after, first.applied) == ("drop", 4, 2, {"drop": 1})
    assert (first.changed, second.changed) == (True, False)
    assert [(e.source, e.reason) for e in second.declined] == [("layer.2", "there is one neg only")]
    assert "4 -> 2 nodes  drop 1" in str(report)
    assert first.seconds >= 0


def test_observers_see_each_pass():
    seen = []
    Pipeline.of(Drop(), Drop()).run(
        graph("neg", "neg"), lambda run, after: seen.append((run.name, len(after.nodes)))
    )
    assert seen == [("drop", 1), ("drop", 1)]


def test_an_empty_pipeline_returns_the_graph():
    before = graph("neg")
    after, report = Pipeline.parse("", PASSES).run(before)
    assert after is before
    assert report.runs == ()


def invalid_type(graph):
    (y,) = graph.outputs.values()
    return Graph(
        graph.inputs,
        {"y": Node(y.op, (make("neg", (X,)),), {}, input_("z", "i32", (3,)).type, y.source)},
        graph.dims,
    )


def raising(graph):
    raise KeyError("w")


def exiting(graph):
    raise SystemExit("all\n\nwell")


FAULTS = {
    "pass bad failed: KeyError": raising,
    "pass bad failed: SystemExit: all well": exiting,  # it ended the command
    "pass bad returned no graph": lambda g: None,
    "pass bad made an invalid graph": invalid_type,
    "pass bad changed the inputs or outputs": lambda g: Graph(g.inputs, {"z": g.outputs["y"]}, g.dims),
    "pass bad: no such thing": lambda g: (
        make("neg", (g,)) if False else (_ for _ in ()).throw(LlmcError("no such thing"))
    ),
}


@pytest.mark.parametrize("problem", FAULTS)
def test_faults_name_the_pass(problem):
    bad = Bad()
    object.__setattr__(bad, "result", FAULTS[problem])
    with pytest.raises(LlmcError) as caught:
        Pipeline.of(Drop(), bad).run(graph("neg", "exp"))
    assert problem in str(caught.value)
    if "invalid graph" in problem:
        assert "layer.1" in caught.value.at
    if "KeyError" in problem:
        assert "passes already run: drop" in caught.value.found


def test_print_after(capsys):
    pipeline = Pipeline.parse("simplify,cse", PASSES)
    pipeline.run(graph("neg", "neg"), print_after=["cse"])
    printed = capsys.readouterr().err
    assert "# after cse" in printed
    assert "# after simplify" not in printed
    assert "return" in printed
    pipeline.run(graph("neg", "neg"), print_after=["all"])
    assert "# after simplify" in capsys.readouterr().err
    with pytest.raises(LlmcError, match="did you mean simplify"):
        pipeline.run(graph("neg"), print_after=["simplfy"])


@pytest.mark.parametrize(
    ("level", "shown", "hidden"),
    [
        ("0", (), ("drop", "# after", "#   drop")),
        ("1", ("drop  ",), ("# after", "#   drop")),
        ("2", ("drop  ", "# after drop"), ("#   drop",)),
        ("3", ("drop  ", "# after drop", "#   drop: neg f32[n] layer.1: applied", "declined: there is"), ()),
    ],
)
def test_the_debug_ladder(level, shown, hidden, monkeypatch, capsys):
    monkeypatch.setenv("LLMC_DEBUG", level)
    Pipeline.of(Drop()).run(graph("neg", "neg", "exp", "neg"))
    printed = capsys.readouterr().err
    assert all(text in printed for text in shown)
    assert not any(text in printed for text in hidden)


def test_a_bad_debug_level(monkeypatch):
    monkeypatch.setenv("LLMC_DEBUG", "loud")
    with pytest.raises(LlmcError, match="LLMC_DEBUG"):
        Pipeline.of(Drop()).run(graph("neg"))


def test_dumps(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMC_DUMP", str(tmp_path / "dump"))
    Pipeline.parse("simplify,fold{limit=9}", PASSES).run(graph("neg", "neg"))
    assert sorted(f.name for f in (tmp_path / "dump").iterdir()) == [
        "00_input.txt",
        "01_simplify.txt",
        "02_fold.txt",
    ]
    assert "neg" in (tmp_path / "dump" / "00_input.txt").read_text()
    two = Module({"first": graph("neg"), "second": graph("exp")})
    Pipeline.parse("fold", PASSES).run_module(two)  # and nothing is written over
    later = ["03_input.txt", "04_fold.txt", "05_input.txt", "06_fold.txt"]
    assert sorted(f.name for f in (tmp_path / "dump").iterdir())[3:] == later
    assert "exp" in (tmp_path / "dump" / later[2]).read_text()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMC_DUMP", str(tmp_path / "file"))
    with pytest.raises(LlmcError, match="LLMC_DUMP: cannot write"):
        Pipeline.of(Drop()).run(graph("neg"))
