"""The text form of passes and pipelines, both ways, and where passes are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import LOSSY, Keeps, Pass, Pipeline, close
from llmc.compiler.spec import parse_texts
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES


@dataclass(frozen=True)
class Prune(Pass):
    """Options of every type."""

    name: ClassVar[str] = "prune"
    keeps: ClassVar[Keeps] = LOSSY
    sparsity: float
    pattern: str = "none"
    rounds: int = 1
    exact: bool = False
    limit: int | None = None
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise LlmcError("prune: sparsity lies in [0, 1)", found=str(self.sparsity))

    def run(self, graph: Graph) -> Graph:
        return graph


class Nothing(Pass):
    """The shortest pass."""

    def run(self, graph: Graph) -> Graph:
        return graph


REGISTRY: dict[str, type[Pass]] = {"prune": Prune, "nothing": Nothing}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "nothing,nothing",
        'prune{sparsity=0.5,pattern="2:4"}',
        'nothing,prune{sparsity=1e-05,pattern="a \\"b\\" \\\\ {c,d}",rounds=3,exact=true,limit=-4}',
        'prune{sparsity=0.25,layers=["a","b.0"]}',
    ],
)
def test_text_round_trip(text):
    assert str(Pipeline.parse(text, REGISTRY)) == text


def test_spaces_and_defaults_are_dropped():
    written = " prune { sparsity = 0 , pattern = 2:4, exact = false, layers=[ ] } , nothing "
    pipeline = Pipeline.parse(written, REGISTRY)
    assert str(pipeline) == 'prune{sparsity=0.0,pattern="2:4"},nothing'
    assert Pipeline.parse(str(pipeline), REGISTRY) == pipeline


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_is_called_by_its_name(name):
    assert str(PASSES[name]()) == name
    assert PASSES[name].__doc__


@pytest.mark.parametrize("level", LEVELS)
def test_levels_parse(level):
    assert str(Pipeline.parse(level, PASSES)) == level


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nothin", "did you mean nothing?"),
        ("zzz", "there is: nothing, prune"),
        ("prune{sparsty=0.5}", "did you mean sparsity?"),
        ("prune", "needs the option 'sparsity'"),
        ("prune{sparsity=2}", "sparsity lies in [0, 1)"),
        ('prune{sparsity="high"}', "option prune{sparsity} takes float"),
        ("prune{sparsity=0.5,rounds=1.5}", "option prune{rounds} takes int"),
        ("prune{sparsity=0.5,exact=1}", "option prune{exact} takes bool"),
        ("prune{sparsity=0.5,limit=x}", "option prune{limit} takes NoneType or int"),
        ("prune{sparsity=0.5", "expected ',', found 'the end'"),
        ("prune{sparsity}", "expected '=', found '}'"),
        ("nothing nothing", "expected ',', found 'nothing'"),
        ("nothing,,nothing", "expected the name of a pass"),
        ('prune{pattern="2:4}', "expected a closing quote"),
        ("0.5", "expected the name of a pass"),
        ("{}", "expected the name of a pass"),
    ],
)
def test_mistakes_are_explained(text, problem):
    with pytest.raises(LlmcError) as caught:
        Pipeline.parse(text, REGISTRY)
    assert problem in str(caught.value)


def test_an_option_twice():
    with pytest.raises(LlmcError, match="given twice"):
        parse_texts("a{b=1,b=2}")


FILE = '''
from dataclasses import dataclass
from llmc.compiler.graph import Node
from llmc.compiler.pipeline import Pass
from llmc.compiler.rewrite import RewritePass

def drop_abs(node: Node) -> Node | None:
    """abs(abs(x)) -> abs(x)"""
    match node:
        case Node("abs", (Node("abs") as inner,)):
            return inner

class Mine(RewritePass):
    """A user's pass."""
    rules = (drop_abs,)

@dataclass(frozen=True)
class Counted(Pass):
    count: int = 1
    def run(self, graph):
        return graph

number = 3
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_pass.py"
    path.write_text(FILE)
    return path


def test_passes_from_a_file(file):
    text = f"nothing,{file}:Mine,{file}:Counted{{count=2}}"
    pipeline = Pipeline.parse(text, REGISTRY)
    assert str(pipeline) == text
    assert [step.change.name for step in pipeline.steps] == ["nothing", "mine", "counted"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("Mime", "did you mean Mine?"), ("number", "is not a pass"), ("Absent", "has no pass 'Absent'")],
)
def test_mistakes_with_files(file, name, problem):
    with pytest.raises(LlmcError) as caught:
        Pipeline.parse(f"{file}:{name}", REGISTRY)
    assert problem in str(caught.value)


def test_a_file_that_is_not_there_or_fails(tmp_path):
    with pytest.raises(LlmcError, match="no such pass file"):
        Pipeline.parse(f"{tmp_path}/absent.py:Mine", REGISTRY)
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(LlmcError, match="ZeroDivisionError"):
        Pipeline.parse(f"{tmp_path}/bad.py:Mine", REGISTRY)


def test_entry_points(monkeypatch):
    class Point:
        name = "installed"
        value = "other_package:Pass"

        def load(self):
            return Nothing

    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [Point()] if group == "llmc.passes" else []
    )
    assert str(Pipeline.parse("installed", REGISTRY)) == "installed"
    with pytest.raises(LlmcError, match="did you mean installed"):
        Pipeline.parse("instaled", REGISTRY)


@pytest.mark.parametrize("raised", [ImportError("no y"), SystemExit("no y")], ids=["an error", "an exit"])
def test_an_installed_pass_that_fails_is_named(monkeypatch, raised):
    """It was called a fault of llmc, or ended it without a word."""

    class Point:
        name = "installed"
        value = "other_package:Pass"

        def load(self):
            raise raised

    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [Point()] if group == "llmc.passes" else []
    )
    with pytest.raises(LlmcError) as caught:
        Pipeline.parse("installed", REGISTRY)
    assert caught.value.problem == f"the installed pass 'installed' fails: {type(raised).__name__}: no y"
    assert (caught.value.at, caught.value.hint) == ("other_package:Pass", "mend or uninstall its package")


def test_promises_as_text():
    assert [str(k) for k in (Nothing.keeps, close(1e-5), LOSSY)] == ["exact", "close(1e-05)", "lossy"]
