"""Backends of others: the example in plain C, compiled, linked and run; what one cannot do is said in a sentence."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmc
from llmc.compiler import interpret
from llmc.compiler.calls import Call
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import input_, make
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.targets import TARGETS, Target, backends, host, lowering
from llmc.targets.backend import Backend
from llmc.targets.cpu.backend import BACKEND

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plain_c(monkeypatch: pytest.MonkeyPatch) -> Any:
    """examples/backend/plain_c.py, installed by an entry point."""
    module = load(EXAMPLES / "backend" / "plain_c.py")

    class Point:
        name, value = "plain-c", "plain_c:TARGET"

        def load(self) -> Any:
            return module.TARGET

    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [Point()] if group == host.ENTRY_POINTS else []
    )
    return module


def graph(*ops: str) -> Graph:
    """relu(x * y + x), and each of `ops` on top."""
    x, y = (input_(name, "f32", (symbol("batch"), 700)) for name in "xy")
    node = make("relu", (make("add", (make("mul", (x, y)), x)),))
    for op in ops:
        node = make(op, (node,))
    return Graph((x, y), {"z": node}, {"batch": (1, 64)})


@pytest.mark.parametrize("level", [1, 3])  # an op each, and fused
def test_a_backend_in_plain_c_runs(plain_c: Any, tmp_path: Path, level: int) -> None:
    program, rng = graph("exp"), np.random.default_rng(0)
    report = compile_graph(
        program, tmp_path / "m.llmc", target="plain-c", level=level, keep=tmp_path / "keep"
    )
    assert report.kernels == report.steps == {1: 4, 3: 1}[level]
    assert len(list((tmp_path / "keep").glob("plain_*.c"))) == report.kernels
    with llmc.load(tmp_path / "m.llmc") as model:
        for batch in (1, 5):
            given = {name: rng.normal(size=(batch, 700)).astype(np.float32) for name in "xy"}
            np.testing.assert_allclose(model.run(given)["z"], interpret.run(program, given)["z"], rtol=1e-6)
    manifest = json.loads((tmp_path / "m.llmc" / "manifest.json").read_text())
    assert manifest["variants"] == [{"name": "c", "features": ["any x86_64"]}]


def test_an_op_without_a_kernel_is_named(plain_c: Any, tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="1 operations have no kernel on plain-c") as caught:
        compile_graph(graph("tanh"), tmp_path / "m.llmc", target="plain-c", level=1)
    assert "tanh" in str(caught.value.found)
    with pytest.raises(LlmcError, match="no kernel on plain-c") as caught:
        compile_graph(graph("tanh"), tmp_path / "m.llmc", target="plain-c")  # within a chain
    assert "no kernel for tanh" in str(caught.value.found)
    assert not (tmp_path / "m.llmc").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant": "int8"}, "plain-c has no kernels for int8"),
        ({"tune": True}, "there is nothing to tune: the kernels of plain-c"),
        ({"emit": "static"}, "artifacts for plain-c have no other form than module.so"),
        ({"matmul": "int8x3"}, "is for processors with AMX"),
    ],
)
def test_what_a_backend_does_not_do(plain_c: Any, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(LlmcError, match=message):
        compile_graph(graph(), tmp_path / "m.llmc", target="plain-c", **options)


def test_backends_are_found_by_name(plain_c: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.find_backend("cpu") is BACKEND
    assert backends.backend_of(TARGETS["cuda"]).name == "cuda"
    monkeypatch.setattr(backends, "_REGISTERED", {})
    named = Target("other", "", "x86_64-linux-gnu", "x86_64-linux-gnu", backend="plane-c")
    with pytest.raises(LlmcError, match="no backend 'plane-c'"):
        backends.backend_of(named)
    backends.register(plain_c.TARGET.backend)
    with pytest.raises(LlmcError, match="no backend 'plane-c'") as caught:
        backends.backend_of(named)
    assert caught.value.hint == "did you mean plain-c?"
    assert caught.value.at == "target other"
    assert backends.find_backend("plain-c") is plain_c.TARGET.backend


@pytest.mark.parametrize(
    ("found", "message"), [(BACKEND, "a backend 'cpu' already"), ("cpu", "this is not a backend")]
)
def test_what_cannot_be_registered(found: Any, message: str) -> None:
    with pytest.raises(LlmcError, match=message):
        backends.register(found)


def test_nobody_outside_asks_what_kind_of_machine_it_is() -> None:
    """The words stay in the folders of the backends; the compiler's C template has the runtime's names."""
    root = EXAMPLES.parent
    files = [
        f for top in ("compiler", "passes") for f in (root / top).rglob("*.py") if "ops" not in f.parts
    ] + [*(root / "targets").glob("*.py")]
    words = (".gpus", "is_gpu", 'backend.name == "', "backend == ")
    assert not [f for f in files for word in words if word in f.read_text()]


def test_lowerings_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last registered is asked first; one that declines leaves the node to the next, the backend's own at last."""
    monkeypatch.setattr(lowering, "_REGISTERED", {})
    (usual, *_), asked = BACKEND.lower(graph()), []

    def declines(node: Node) -> Call | None:
        asked.append("declines")
        return None

    def takes(node: Node) -> Call | None:
        asked.append("takes")
        return usual if node.inputs[1].op == "input" else None

    lowering.register("cpu", "mul", takes)
    lowering.register("cpu", "mul", declines)
    (first, *_) = BACKEND.lower(graph())
    assert asked == ["declines", "takes"]
    assert first is usual
    assert lowering.registered("cuda") == {}


def test_a_backend_is_an_interface() -> None:
    assert Backend.__abstractmethods__ == {"variants", "lowerings", "compile"}


INT4 = """
import sys
import numpy as np
import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.driver import compile_graph

rng = np.random.default_rng(0)
x = input_("x", "f32", (symbol("batch"), 33))
weights = [constant(rng.normal(size=size).astype(np.float32), name) for name, size in (("a", (70, 33)), ("b", (5, 70)))]
graph = Graph((x,), {"y": make("linear", (make("linear", (x, weights[0])), weights[1]))}, {"batch": (1, 300)})
given, found = {"x": rng.normal(size=(201, 33)).astype(np.float32)}, {}
int4 = sys.argv[1] + ":Int4@compress"
for name, added in (("dense", ()), ("int4", int4), ("unpacked", [int4, "unpack@final"])):
    report = compile_graph(graph, f"{name}.llmc", add_passes=added)
    with llmc.load(f"{name}.llmc") as model:
        found[name] = model.run(given)["y"]
    print(name, report.pipeline, report.sizes["weights.bin"])
assert np.array_equal(found["int4"], found["unpacked"]), "the bits of the decoded weight"
apart = np.abs(found["int4"] - found["dense"]).max() / np.abs(found["dense"]).max()
assert 0 < apart < 0.2, apart
again = compile_graph(graph, "again.llmc", only_passes=report.pipeline)
assert again.pipeline == report.pipeline
"""


def test_a_storage_format_of_its_own_file(tmp_path: Path) -> None:
    """In a process of its own, for it declares an op."""
    file = EXAMPLES / "storage" / "int4_rows.py"
    done = subprocess.run(
        [sys.executable, "-c", INT4, file], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    lines = {name: (text, int(size)) for name, text, size in map(str.split, done.stdout.splitlines())}
    assert f"{file}:Int4" in lines["int4"][0]
    assert (
        lines["int4"][1] < 0.4 * lines["dense"][1]
    )  # panels of 16 columns, of which the second product has 5
