"""Extensions: what loading does and leaves alone, and how faults of theirs are told."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmc
from llmc.compiler import extensions, interpret
from llmc.compiler.graph import Graph
from llmc.compiler.ops import OPS, declare, input_, make
from llmc.compiler.ops.declare import Op, define
from llmc.compiler.parse import parse_graph
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes import PASSES

EXAMPLES = Path(__file__).parents[1] / "examples" / "extension"
SOFTSIGN = EXAMPLES / "softsign.py"

HEAD = """
import numpy as np
from llmc import Extension
from llmc.compiler.graph import TensorType
from llmc.compiler.ops.declare import REQUIRED, define
def rule(x): return x
def double(x): return x + x
OP = define("double", double, traits={"elementwise": True})(rule)
"""


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """The tables after each test are those before it."""
    before = dict(OPS)
    yield
    for item in extensions.loaded():
        extensions.unload(item.given.name)
    assert dict(OPS) == before


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write("extension = ...")`: a file that begins with HEAD."""

    def one(text: str, name: str = "mine.py") -> Path:
        (tmp_path / name).write_text(HEAD + text)
        return tmp_path / name

    return one


def state() -> Any:
    return dict(OPS), extensions.loaded(), dict(extensions.passes())


def graph_of(op: str, **attributes: Any) -> Graph:
    x = input_("x", "f32", (2, 3))
    return Graph((x,), {"y": make(op, (x,), **attributes)})


X = {"x": np.array([[-2, 0, 0.5], [1, 3, -1e30]], np.float32)}


# --- loading


def test_the_same_twice_changes_nothing(tmp_path: Path) -> None:
    first = llmc.load_extension(SOFTSIGN)
    before = state()
    assert llmc.load_extension(str(SOFTSIGN)) is first
    assert llmc.load_extension(shutil.copy(SOFTSIGN, tmp_path / "copy.py")) is first
    assert llmc.load_extension(first) is first
    assert state() == before
    assert OPS["softsign"].origin.startswith("extension softsign (")


def test_a_file_that_changed_is_loaded_anew(write: Callable[..., Path]) -> None:
    llmc.load_extension(write('extension = Extension("mine", ops=(OP,))'))
    assert interpret.run(graph_of("double"), X)["y"][1, 1] == 6
    llmc.load_extension(
        write('OP = define("triple", lambda x: 3 * x)(rule)\nextension = Extension("mine", (OP,))')
    )
    assert interpret.run(graph_of("triple"), X)["y"][1, 1] == 9
    with pytest.raises(LlmcError, match="no op 'double'"):
        graph_of("double")


def test_its_op_is_an_op() -> None:
    llmc.load_extension(SOFTSIGN)
    graph = graph_of("softsign")
    verify(graph)
    expected = X["x"] / (1 + np.abs(X["x"].astype(np.float64)))
    np.testing.assert_array_equal(interpret.run(graph, X)["y"], expected.astype(np.float32))
    assert "to_softsign" in extensions.passes()
    assert str(Pipeline.parse("fold,to_softsign", PASSES)) == "fold,to_softsign"


def test_a_pass_named_by_its_file_brings_its_op() -> None:
    pipeline = Pipeline.parse(f"{SOFTSIGN}:ToSoftsign", PASSES)
    x = input_("x", "f32", (2, 3))
    parts = make(
        "div", (x, make("add", (make("abs", (x,)), make("full", (), shape=(), value=1, dtype="f32"))))
    )
    simple, _ = Pipeline.parse("simplify,fold", PASSES).run(Graph((x,), {"y": parts}))
    after, _ = pipeline.run(simple)
    assert after.outputs["y"].op == "softsign"


WRONG: list[tuple[str, str]] = [
    ("1 / 0", "the extension file fails: ZeroDivisionError"),
    ("def f(:", "the extension file fails: SyntaxError"),
    ("raise SystemExit(3)", "the extension file fails: SystemExit: 3"),
    ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
    ("", "it holds no extension"),
    ('a = Extension("a")\nb = Extension("b")', "it holds 2 extensions"),
    ("a = Extension(3)", "its name is not a text"),
    ('a = Extension("a", ops=(rule,))', "is <function rule"),
    ('a = Extension("a", ops=OP)', "ops is of type Op, not a sequence of ops"),
    ('a = Extension("a", ops=(OP, OP))', "op double is declared twice"),
    ('a = Extension("a", ops=(define("relu", double)(rule),))', "op relu is an op of llmc itself"),
    ('define("t", double, traits={"elementwize": True})(rule)', "op t: there is no trait 'elementwize'"),
    ('define("t", double, traits={"cost": 0})(rule)', "op t: the trait cost is 0, not a positive integer"),
    (
        'define("t", double, traits={"rows": (0,)})(rule)',
        "the trait rows is (0,), not a llmc.compiler.ops.traits.Rows",
    ),
    ('define("t", double, traits={"counts": "n"})(rule)', "the trait counts names no attribute of it"),
    ('define("a b", double)(rule)', "'a b' cannot be the name of an op"),
    ('define("t", double, axis=0)(rule)', "op t: its type rule takes no 'axis', which it declares"),
    (
        'define("t", double, axis=0)(lambda x, axis: x)',
        "op t: its reference takes no 'axis', which it declares",
    ),
    (
        'define("t", double)(lambda x, *, axis: x)',
        "op t: its type rule wants 'axis', which it does not declare",
    ),
    ('define("t", double, traits={"symbolic": True})(rule)', "op t: its reference takes no 'sizes'"),
    ('a = Extension("a", scalars={"cpu": {"relu": rule}})', "'relu' is not an element-wise op of its own"),
    ('a = Extension("a", (OP,), scalars={"cpu": {"double": 3}})', "for double there is 3, not a function"),
    ('a = Extension("a", kernels={"cpu": {"dobule": rule}})', "'dobule' is not an op"),
    ('a = Extension("a", (OP,), passes=(rule,))', "is not a pass"),
    ('a = Extension("a", (OP,), targets=(3,))', "3 is not a target"),
    ('a = Extension("a", (OP,), backends=(3,))', "3 is not a backend"),
    (
        'a = Extension("a", (OP,), formats={"cpu": {"double": rule}})',
        "not an op of its own with the trait stored",
    ),
    ('a = Extension("a", {OP.name: OP})', "not a sequence of ops"),
    (
        'a = Extension("a", (OP,), passes="fuse")',
        "passes is of type str, not a sequence of classes of passes",
    ),
    ('a = Extension("a", targets=None)', "targets is of type NoneType, not a sequence of targets"),
    ('a = Extension("a", (OP,), [rule])', "not a table by backend"),
    ('a = Extension("a", (OP,), {"cpu": rule})', "not a table by op"),
    ('a = Extension("a", kernels={3: {}})', "kernels has 3, which is no backend's name"),
    ('a = Extension("a", formats=("cpu", {}))', "formats is of type tuple, not a table by backend"),
    ('from llmc.compiler.ops.declare import op\nop("stray", double)(rule)', "op stray is declared by `op`"),
    ('from llmc.compiler.ops.declare import op\nop("stray", double)(rule)\n1 / 0', "ZeroDivisionError"),
]


@pytest.mark.parametrize(("text", "problem"), WRONG)
def test_a_failed_load_leaves_all_as_it_was(write: Callable[..., Path], text: str, problem: str) -> None:
    llmc.load_extension(SOFTSIGN)
    before, file = state(), write(text)
    with pytest.raises(LlmcError) as caught:
        llmc.load_extension(file)
    assert problem in str(caught.value)
    assert "mine.py" in str(caught.value), "the message names the file"
    assert state() == before


def test_every_trait_may_be_declared() -> None:
    fields = {f.name for f in dataclasses.fields(Op)}
    assert set(declare._TRAITS) == fields - {"name", "rule", "reference", "defaults", "fusible", "origin"}


def test_two_extensions_with_one_op(write: Callable[..., Path]) -> None:
    llmc.load_extension(SOFTSIGN)
    before = state()
    for text, problem in (
        ('Extension("other", (define("softsign", double)(rule),))', "op softsign is extension softsign ("),
        ('Extension("softsign", (OP,))', "another extension of that name is loaded"),
    ):
        with pytest.raises(LlmcError) as caught:
            llmc.load_extension(write(f"extension = {text}"))
        assert problem in str(caught.value)
        assert state() == before


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="no such extension file"):
        llmc.load_extension(tmp_path / "absent.py")
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(LlmcError, match="is not Python"):
        llmc.load_extension(tmp_path / "text.txt")


class Point:
    """An entry point that loads to `found`, or raises it."""

    value = "other_package:EXTENSION"

    def __init__(self, name: str, found: Any) -> None:
        self.name, self.found = name, found

    def load(self) -> Any:
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found


def offer(monkeypatch: pytest.MonkeyPatch, *points: Point) -> None:
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: points if group == "llmc.extensions" else ()
    )


def test_an_installed_package_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    op = define("installed_op", np.negative, traits={"elementwise": True})(lambda x: x)
    offer(monkeypatch, Point("theirs", llmc.Extension("theirs", ops=(op,))))
    extensions.load_installed()
    before = state()
    extensions.load_installed()
    assert state() == before
    assert OPS["installed_op"].origin == "extension theirs (entry point theirs = other_package:EXTENSION)"


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (3, "it holds no extension"),
        (ImportError("no y"), "ImportError: no y"),
        (SystemExit(0), "SystemExit: 0"),
    ],
)
def test_an_installed_one_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, found: Any, problem: str
) -> None:
    offer(monkeypatch, Point("theirs", found))
    before = state()
    with pytest.raises(LlmcError) as caught:
        llmc.compile_graph(graph_of("relu"), "never.llmc")
    assert problem in str(caught.value)
    assert "theirs = other_package:EXTENSION" in str(caught.value)
    assert state() == before
    assert not Path("never.llmc").exists()


# --- faults of what was loaded


def fault(call: Callable[[], Any]) -> str:
    with pytest.raises(LlmcError) as caught:
        call()
    return str(caught.value)


def test_a_type_rule_that_raises(write: Callable[..., Path]) -> None:
    file = write(
        'OP = define("half", lambda x, by: x, by=REQUIRED)(lambda x, by: TensorType("f32", (1 // by,)))\n'
        'extension = Extension("mine", (OP,))'
    )
    llmc.load_extension(file)
    text = fault(lambda: graph_of("half", by=0))
    assert text.startswith("extension mine (")
    assert "the type rule of half fails: ZeroDivisionError" in text
    assert f"{file}:{len(HEAD.splitlines()) + 1}" in text
    assert "inputs f32[2, 3]; attributes {'by': 0}" in text
    assert fault(lambda: make("half", (), by=1)).startswith("half: wrong number of inputs")


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ('define("bad", double)(lambda x: None)', "the type rule of bad returns None, not a TensorType"),
        (
            'define("bad", double, traits={"elementwise": True})(lambda x: TensorType("f32", (3,)))',
            "the type rule of bad breaks its trait elementwise",
        ),
        (
            'define("bad", double, traits={"moves": True})(lambda x: TensorType("i64", x.shape))',
            "the type rule of bad breaks its trait moves",
        ),
        (
            'define("bad", double, traits={"view": True})(lambda x: TensorType("f32", (5,)))',
            "the type rule of bad breaks its trait view",
        ),
    ],
)
def test_a_type_rule_that_is_wrong(write: Callable[..., Path], declared: str, problem: str) -> None:
    file = write(f'extension = Extension("mine", ({declared},))')
    llmc.load_extension(file)
    text = fault(lambda: graph_of("bad"))
    assert problem in text
    assert "extension mine (" in text
    assert f"{file}:" in text


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("lambda x: x.no_such_thing", "the reference of bad fails: AttributeError"),
        ("lambda x: exec('raise SystemExit(3)')", "the reference of bad fails: SystemExit: 3"),
        ("lambda x: exec('raise ValueError(chr(10).join(map(str, x)))')", "ValueError: [-2. 0. 0.5] [ "),
        ("lambda x: x.sum()", "the reference of bad gives float32[], its type rule float32[2, 3]"),
        ("lambda x: x.astype(np.float64)", "the reference of bad gives float64[2, 3]"),
    ],
)
def test_a_reference_that_is_wrong(write: Callable[..., Path], reference: str, problem: str) -> None:
    file = write(f'extension = Extension("mine", (define("bad", {reference})(rule),))')
    llmc.load_extension(file)
    graph = graph_of("bad")
    text = fault(lambda: interpret.run(graph, X))
    assert problem in text
    assert "extension mine (" in text
    assert f"{file}:" in text


# --- the text of graphs


def test_a_text_says_what_it_needs() -> None:
    llmc.load_extension(SOFTSIGN)
    x = input_("x", "f32", (2,))
    chain = make("chain", (x,), body=(("softsign", (0,), ()), ("neg", (-1,), ())))
    for node in (make("softsign", (x,)), chain):
        text = str(Graph((x,), {"y": node}))
        assert text.startswith(f"# op softsign is of extension softsign ({SOFTSIGN})\n")
        assert str(parse_graph(text)) == text
        extensions.unload("softsign")
        problem = fault(lambda: parse_graph(text))  # noqa: B023
        assert problem.startswith(f"op softsign is of extension softsign ({SOFTSIGN}), which is not loaded")
        assert "--extension FILE" in problem
        llmc.load_extension(SOFTSIGN)
    assert "# op" not in str(graph_of("relu"))


def test_an_op_that_nobody_knows() -> None:
    assert "needs --extension FILE" in fault(lambda: graph_of("softsign"))


# --- passes and targets


def test_a_pass_with_the_name_of_another(write: Callable[..., Path]) -> None:
    file = write(
        "from llmc.compiler.pipeline import Pass\n"
        "class Fold(Pass):\n    def run(self, graph): return graph\n"
        'extension = Extension("mine", passes=(Fold,))'
    )
    llmc.load_extension(file)
    assert "is llmc's own, and an extension's" in fault(lambda: Pipeline.parse("fold", PASSES))


def test_a_target_from_outside() -> None:
    from llmc.targets import host

    assert "unknown target" in fault(lambda: host.find_target("epyc-milan"))
    llmc.load_extension(EXAMPLES / "target.py")
    assert [cpu.mcpu for cpu in host.find_target("epyc-milan").cpus] == ["znver3"]
    assert "epyc-milan" in host.all_targets()


def test_the_examples_are_short() -> None:
    files = list(EXAMPLES.glob("*.py"))
    assert len(files) >= 4
    assert all(len(file.read_text().splitlines()) <= 60 for file in files)
