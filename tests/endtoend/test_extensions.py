"""Ops from outside in artifacts: fused, quantised around, profiled; and what is told when their kernels fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, run_all

import llmc
from llmc.compiler import extensions, interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.targets.cpu.lower import LOWERINGS
from llmc.targets.lowering import layered

B, S = symbol("batch"), symbol("seq")
BATCH = {"batch": (1, 4)}
RNG = np.random.default_rng(9)
Load = Callable[..., None]


def weights(*shape: int) -> Node:
    return constant((RNG.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32))


def softsign_of(x: Node) -> Node:
    """In parts, as a model has it."""
    return make("div", (x, make("add", (make("abs", (x,)), constant(np.float32(1))))))


def network() -> Graph:
    """x [batch, seq, 20] -> 48 -> 2 * exp(softsign) -> swiglu -> 24, one softsign alone."""
    x = input_("x", "f32", (B, S, 20))
    y = make("linear", (x, weights(48, 20)))
    y = make("mul", (make("exp", (softsign_of(y),)), constant(np.float32(2))))
    left, right = (make("slice", (y,), axis=2, start=24 * i, stop=24 * i + 24) for i in (0, 1))
    y = make("linear", (make("mul", (make("silu", (left,)), right)), weights(24, 24)))
    return Graph((x,), {"y": y, "alone": softsign_of(x)}, {**BATCH, "seq": (1, 16)})


X = {"x": RNG.normal(size=(3, 7, 20)).astype(np.float32)}
STEPS = ("to_softsign", "to_swiglu")


@pytest.mark.parametrize("quant", ["none", "int8"])
def test_an_artifact(extension: Load, tmp_path: Path, quant: str) -> None:
    extension("softsign", "swiglu", "to_swiglu")
    graph, path = network(), tmp_path / "m.llmc"
    report = compile_graph(
        graph, path, target="x86-avx2", add_passes=STEPS, quant=quant, keep=tmp_path / "keep"
    )
    text = (tmp_path / "keep" / "optimised.txt").read_text()
    assert '("softsign", (0,), ())' in text, "in a chain"
    assert "softsign(" in text
    assert "swiglu(" in text
    assert report.pipeline.count("to_softsign") == 1
    expected = interpret.run(graph, X)
    with llmc.load(path, threads=2) as model:
        found = model(**X)
        steps = {step.kernel for step in model.benchmark(batch=2, seq=5, duration=0.05, profile=True).steps}
    tolerance = {"none": 2e-5, "int8": 5e-2}[quant]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * np.abs(value).max())
    assert {"chain_softsign", "swiglu", "linear" if quant == "none" else "qlinear"} <= steps
    named = json.loads((path / "manifest.json").read_text())["extensions"]
    assert [entry["name"] for entry in named] == ["softsign", "swiglu", "to_swiglu"]
    assert all(len(entry["sha256"]) == 64 for entry in named)


def test_no_extension_leaves_no_trace(tmp_path: Path) -> None:
    x = input_("x", "f32", (B, 4))
    compile_graph(Graph((x,), {"y": make("relu", (x,))}, BATCH), tmp_path / "m.llmc", target="x86-avx2")
    assert "extensions" not in json.loads((tmp_path / "m.llmc" / "manifest.json").read_text())


@pytest.mark.parametrize("size", [1, 5, 16, 17, 40])
def test_the_kernels_of_the_examples(extension: Load, tmp_path: Path, size: int) -> None:
    """Every instruction set, any cut, nothing written past the end, no contraction."""
    extension("softsign", "swiglu")
    x, h = input_("x", "f32", (B, 2 * size)), input_("h", "f16", (B, size))
    outputs = {
        "swiglu": make("swiglu", (x,)),
        "softsign": make("softsign", (x,)),
        "half": make("softsign", (h,)),
    }
    graph = Graph((x, h), outputs, BATCH)
    values = (RNG.normal(size=(3, 3 * size)) * 10).astype(np.float32)
    values[0, 0], values[1, -1] = np.inf, np.nan
    inputs = {"x": values[:, : 2 * size], "h": values[:, 2 * size :].astype(np.float16)}
    outside = dict.fromkeys(extensions.scalars("cpu"), LOWERINGS["chain"])
    found = run_all(Lab(tmp_path, layered(extensions.kernels("cpu"), outside)), graph, inputs)
    for name, expected in interpret.run(graph, inputs).items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-3 if name == "half" else 1e-6, atol=1e-6)


def test_a_target_of_ones_own(extension: Load, tmp_path: Path) -> None:
    extension("target")
    x = input_("x", "f32", (B, 4))
    compile_graph(Graph((x,), {"y": make("exp", (x,))}, BATCH), tmp_path / "m.llmc", target="epyc-milan")
    manifest = json.loads((tmp_path / "m.llmc" / "manifest.json").read_text())
    assert (manifest["target"], manifest["variants"][0]["name"]) == ("epyc-milan", "zen3")


# --- what is told when a kernel is missing or fails

HEAD = """
from llmc import Extension
from llmc.compiler.calls import Call, Kernel
from llmc.compiler.ops.declare import define
OP = define("mine", lambda x: x, traits={"elementwise": True})(lambda x: x)
def call(node, emit, moved=8):
    return Call(Kernel("mine", 0, ("f32", "f32"), 0, emit), (*node.inputs, node), (), 1, 1, 1, moved, node.source)
"""
FAULTS: list[tuple[str, str]] = [
    (
        'scalars={"cpu": {"mine": lambda k, dtype, x: x.nothing}}',
        "the cpu kernel of mine fails: AttributeError",
    ),
    ('scalars={"cpu": {"mine": lambda k, dtype: 0}}', "the cpu kernel of mine fails: TypeError"),
    (
        'scalars={"cpu": {"mine": lambda k, dtype, x: None}}',
        "the cpu kernel of mine gives None, not float32x16",
    ),
    ('scalars={"cpu": {"mine": lambda k, dtype, x: x > x}}', "the cpu kernel of mine gives bool"),
    ('kernels={"cpu": {"mine": lambda node: 1 / 0}}', "the cpu kernel of mine fails: ZeroDivisionError"),
    ('kernels={"cpu": {"mine": lambda node: 3}}', "the cpu kernel of mine gives 3, not a Call"),
    (
        'kernels={"cpu": {"mine": lambda node: call(node, lambda s, c: 1 / 0)}}',
        "the cpu kernel of mine fails",
    ),
    (  # it was called a bug in llmc
        'kernels={"cpu": {"mine": lambda node: call(node, None, float("nan"))}}',
        "the cpu kernel of mine fails: ValueError: cannot convert float NaN to integer",
    ),
]


def mine(path: Path, fields: str) -> Path:
    file = path / "mine.py"
    file.write_text(f'{HEAD}extension = Extension("mine", (OP,), {fields})\n')
    return file


def chain(op: str) -> Graph:
    x = input_("x", "f32", (B, 4))
    return Graph((x,), {"y": make("exp", (make(op, (make("neg", (x,)),)),))}, BATCH)


@pytest.mark.parametrize(("fields", "problem"), FAULTS)
def test_a_kernel_that_fails(extension: Load, tmp_path: Path, fields: str, problem: str) -> None:
    file = mine(tmp_path, fields)
    extension(file)
    with pytest.raises(LlmcError) as caught:
        compile_graph(chain("mine"), tmp_path / "m.llmc", target="x86-avx2")
    assert problem in str(caught.value)
    assert f"extension mine ({file})" in str(caught.value)
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"mine.py"}, "nothing half written"


def test_an_op_without_a_kernel_is_named(extension: Load, tmp_path: Path) -> None:
    extension(mine(tmp_path, ""))
    with pytest.raises(LlmcError, match=r"1 operations have no kernel on cpu\n  found: x: mine"):
        compile_graph(chain("mine"), tmp_path / "m.llmc", target="x86-avx2")


def test_a_kernel_that_declines(extension: Load, tmp_path: Path) -> None:
    """An extension's kernel for an op of llmc's own is asked first; None leaves it to llmc."""
    lower = "lambda node: None if node.shape[1] > 3 else 1 / 0"
    file = tmp_path / "mine.py"
    file.write_text(f'{HEAD}extension = Extension("mine", kernels={{"cpu": {{"relu": {lower}}}}})\n')
    extension(file)
    for size in (4, 3):
        x = input_("x", "f32", (B, size))
        graph, path = Graph((x,), {"y": make("relu", (x,))}, BATCH), tmp_path / "m.llmc"
        if size == 4:
            compile_graph(graph, path, target="x86-avx2")
            continue
        with pytest.raises(LlmcError, match="the cpu kernel of relu fails: ZeroDivisionError"):
            compile_graph(graph, path, target="x86-avx2")


# --- the command line


@pytest.fixture
def run(capsys: Any) -> Callable[..., tuple[int, str, str]]:
    from llmc.cli import main

    def one(*arguments: Any) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return one


def test_the_command_line(extension: Load, run: Any, tmp_path: Path) -> None:
    extension()  # what the commands load goes when the test ends
    here = Path(__file__).parents[2] / "examples" / "extension"
    code, out, _ = run("passes", "-x", here / "softsign.py", "--extension", here / "to_swiglu.py")
    assert code == 0
    assert "to_softsign" in out
    assert "to_swiglu" in out
    assert "epyc-milan" in run("targets", "-x", here / "target.py")[1]
    (tmp_path / "graph.txt").write_text(str(network()))
    code, out, err = run(
        "opt", tmp_path / "graph.txt", "-x", here / "softsign.py", "--only-passes", "to_softsign"
    )
    assert code == 1
    assert "no weight with digest" in err
    x = input_("x", "f32", (B, 8))
    (tmp_path / "graph.txt").write_text(str(Graph((x,), {"y": softsign_of(x)}, BATCH)))
    code, out, _ = run("opt", tmp_path / "graph.txt", "-x", here / "softsign.py", "--passes", "to_softsign")
    assert (code, "softsign(%0)" in out, out.startswith("# op softsign is of")) == (0, True, True)
    code, _, err = run("opt", tmp_path / "graph.txt", "-x", tmp_path / "absent.py")
    assert (code, "no such extension file" in err) == (1, True)
    (tmp_path / "bad.py").write_text("1 / 0")
    code, _, err = run("compile", tmp_path, "-x", tmp_path / "bad.py", "-o", tmp_path / "m.llmc")
    assert code == 1
    assert f"ZeroDivisionError: division by zero\n  at:    {tmp_path}/bad.py:1" in err
    assert "Traceback" not in err
    assert not (tmp_path / "m.llmc").exists()
