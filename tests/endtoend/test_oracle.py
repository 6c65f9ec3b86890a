"""The self-test of a compile: what it is compared with, and who is named when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.declare import define
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.runtime.selftest import read_selftest

BATCH, SEQ = symbol("batch"), symbol("seq")
HEAD = """import numpy as np
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, make
from llmc.compiler.pipeline import LOSSY, Pass

def changed(graph, change):
    return Graph(graph.inputs, {"y": change(graph.outputs["y"])}, graph.dims)

class Idle(Pass):
    keeps = LOSSY

    def run(self, graph):
        return changed(graph, lambda y: make("mul", (y, constant(np.float32(1)))))

class Late(Pass):
    def run(self, graph):
        seq = graph.inputs[0].shape[1]
        rows = make("ge", (make("iota", (), length=seq), constant(np.int64(START))))
        wrong = make("mul", (make("cast", (rows,), dtype="f32"), constant(np.float32(0.3))))
        return changed(graph, lambda y: make("add", (y, make("reshape", (wrong,), shape=(1, seq, 1)))))

class Writes(Pass):
    def run(self, graph):
        import torch

        for node in graph.nodes:
            if node.op == "constant":
                torch.from_numpy(node.attributes["value"].array).mul_(3)
        return graph
"""


def network(*ops: str, weights: float = 1.0) -> Graph:
    x = input_("x", "f32", (BATCH, SEQ, 8))
    w = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    w[0, 0] *= weights
    y = make("linear", (x, constant(w, "w")))
    for op in ops:
        y = make(op, (y,))
    return Graph((x,), {"y": y}, {"batch": (1, 8), "seq": (1, 64)})


def refused(tmp_path: Path, start: int, *passes: str) -> LlmcError:
    file, output = tmp_path / "mine.py", tmp_path / "m.llmc"
    file.write_text(HEAD.replace("START", str(start)))
    with pytest.raises(LlmcError) as caught:
        compile_graph(network(), output, target="x86-avx2", add_passes=[f"{file}:{name}" for name in passes])
    assert not output.exists()
    return caught.value


def test_a_pass_wrong_above_16_tokens(tmp_path: Path) -> None:
    error = refused(tmp_path, 16, "Late")
    assert error.problem == f"pass {tmp_path}/mine.py:Late promises exact and breaks it"
    assert "add" in (error.found or "")
    assert "llmc:" not in (error.hint or "")


@pytest.mark.parametrize("passes", [("Late", "Idle"), ("Idle", "Late")])
def test_a_pass_wrong_above_8_beside_a_lossy_one(passes: tuple[str, ...], tmp_path: Path) -> None:
    error = refused(tmp_path, 8, *passes)
    assert error.problem == f"pass {tmp_path}/mine.py:Late promises exact and breaks it"


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("passes", [("Writes",), ("Writes", "Idle")])
def test_a_pass_that_writes_into_weights_behind_numpy(passes: tuple[str, ...], tmp_path: Path) -> None:
    """PyTorch takes no notice of arrays that are read-only."""
    error = refused(tmp_path, 16, *passes)
    assert "a pass wrote into the graph" in error.problem
    assert f"{tmp_path}/mine.py:Writes" in (error.at or "")


def test_a_target_that_does_not_run_here_is_held_by_the_graphs(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(HEAD.replace("START", "16"))
    with pytest.raises(LlmcError, match=r"mine\.py:Late promises exact and breaks it"):
        compile_graph(network(), tmp_path / "m.llmc", target="arm-neon", add_passes=f"{file}:Late")


@pytest.mark.parametrize("passes", ["", "quantize{min_columns=1},qfuse"], ids=["float", "int8"])
def test_what_is_no_number_is_compared(passes: str, tmp_path: Path) -> None:
    compile_graph(network("log"), tmp_path / "m.llmc", target="x86-avx2", only_passes=passes)
    with llmc.load(tmp_path / "m.llmc") as model:
        rtol, atol = model.manifest.selftest
        assert np.isfinite([rtol, atol]).all()
        assert model.selftest().passed
    _, cases = read_selftest(tmp_path / "m.llmc" / "selftest.bin")
    assert any(np.isnan(call.outputs["y"]).any() for case in cases for call in case)


def test_a_weight_that_is_no_number_is_not_taken_for_a_right_one(tmp_path: Path) -> None:
    compile_graph(network(weights=float("nan")), tmp_path / "m.llmc", target="x86-avx2")
    folder = tmp_path / "m.llmc"
    with llmc.load(folder) as model:
        _, ((call, *_), *_) = read_selftest(folder / "selftest.bin")
        assert np.isnan(call.outputs["y"]).any()
        assert model.selftest().passed


def test_a_kernel_of_an_extension_is_named(tmp_path: Path, extension: Any) -> None:
    """No pass is at fault, nor llmc. The fixture unloads it."""
    op = define("thrice", lambda x: x * np.float32(3), traits={"elementwise": True})(lambda x: x)
    wrong = llmc.Extension("wrong", ops=(op,), scalars={"cpu": {"thrice": lambda k, dtype, x: x}})
    llmc.load_extension(wrong)
    x = input_("x", "f32", (BATCH, 8))
    with pytest.raises(LlmcError, match="does not compute what the source model does") as caught:
        compile_graph(
            Graph((x,), {"y": make("thrice", (x,))}, {"batch": (1, 8)}),
            tmp_path / "m.llmc",
            target="x86-avx2",
        )
    assert caught.value.hint == "no pass changes it: look at the kernels of extension wrong"
    assert "for x [" in (caught.value.found or "")


def test_losses_are_reported(tmp_path: Path) -> None:
    report = compile_graph(network(), tmp_path / "m.llmc", only_passes="quantize{min_columns=1},qfuse")
    assert [loss["pass"] for loss in report.losses] == ["quantize"]
    assert 0 < report.losses[0]["difference"] < 0.5
    manifest = json.loads((tmp_path / "m.llmc" / "manifest.json").read_text())
    assert manifest["losses"] == report.to_dict()["losses"]
