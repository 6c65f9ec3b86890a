"""Generated programs with states on the emulated GPU: the self-test, which is of sessions, passes there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stateful_graphs import EVERY, LONGEST, SEQ, WIDTH, attends, weights

from llmc.compiler.graph import Graph
from llmc.compiler.ops import input_, make
from llmc.driver import compile_graph

pytestmark = pytest.mark.xdist_group("cuda")
SELFTEST = """
import sys, llmc
with llmc.load(sys.argv[1]) as model:
    result = model.selftest()
print(result.cases, result.largest_error, *result.failures)
sys.exit(not result.passed)
"""
TOKENS = f"""
import sys, llmc, numpy as np
x = np.random.default_rng(0).normal(size=(1, 12, {WIDTH})).astype(np.float32)
with llmc.load(sys.argv[1]) as model:
    with model.session() as session:
        whole = session(x=x)["y"]
    with model.session() as session:
        tokens = [session(x=x[:, i : i + 1])["y"] for i in range(12)]
assert np.array_equal(whole, np.concatenate(tokens, 1))
print("3 times four tokens")
"""
HERE = Path(__file__).parents[1]
COMPANY = """
import sys
from company import in_company
from stateful_graphs import WIDTH, normal
in_company(sys.argv[1], lambda s, call, rows: {"x": normal(100 * s + call, 1, rows, WIDTH)}, (1,))
print("3 sessions")
"""


@pytest.mark.parametrize("name", EVERY)
def test_sessions(name: str, gpu_lab: Any, needs_nvcc: None, tmp_path: Path) -> None:
    artifact, kept = tmp_path / "m.llmc", tmp_path / "keep"
    compile_graph(EVERY[name](), artifact, target="cuda-sm_80", keep=kept)
    play(artifact, kept, gpu_lab, SELFTEST, *((COMPANY,) if name == "causal" else ()))
    program = (kept / "module.c").read_text()
    assert "p->states[0]" in program or "f->states[0]" in program
    assert "llmc_launch(f" in program
    if name == "causal":
        assert program.count("llmc_copy(f") == program.count("if (f->n_parts > 1)") == 2  # in company


def test_stored_weights(gpu_lab: Any, needs_nvcc: None, tmp_path: Path) -> None:
    """Products of few rows and of many sum alike: a text has the same bits token by token."""
    x = input_("x", "f32", (1, SEQ, WIDTH))
    wide = make("relu", (make("linear", (x, weights(20, 96, WIDTH))),))
    y, states, updates = attends(make("linear", (wide, weights(21, WIDTH, 96))))
    graph = Graph((x,), {"y": y}, {"seq": (1, LONGEST), "past": (0, LONGEST)}, states, updates)
    artifact, kept = tmp_path / "m.llmc", tmp_path / "keep"
    report = compile_graph(graph, artifact, target="cuda-sm_80", quant="w4", keep=kept)
    assert "int16" not in report.pipeline
    play(artifact, kept, gpu_lab, SELFTEST, TOKENS)


def play(artifact: Path, kept: Path, gpu_lab: Any, *programs: str) -> None:
    """Programs with the artifact on the emulated GPU; each prints that there were three of something."""
    place = artifact.parent
    environment = {
        "LD_LIBRARY_PATH": str(gpu_lab.stand_in(place)),
        "LLMC_EMULATED_KERNELS": str(gpu_lab.emulated((kept / "kernels.cu").read_text(), place)),
    }
    paths = f"import sys; sys.path.append({str(HERE)!r})\n"
    for program in programs:
        command = [sys.executable, "-c", paths + program, str(artifact)]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("3 ")
