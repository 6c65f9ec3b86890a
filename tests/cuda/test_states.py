"""Generated programs with states on the emulated GPU: the self-test, which is of sessions, passes there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stateful_graphs import EVERY

from llmc.driver import compile_graph

pytestmark = pytest.mark.xdist_group("cuda")
SELFTEST = """
import sys, llmc
with llmc.load(sys.argv[1]) as model:
    result = model.selftest()
print(result.cases, result.largest_error, *result.failures)
sys.exit(not result.passed)
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
    program = (kept / "module.c").read_text()
    assert "p->states[0]" in program or "f->states[0]" in program
    assert "llmc_launch(f" in program
    if name == "causal":
        assert program.count("llmc_copy(f") == program.count("if (f->n_parts > 1)") == 2  # in company
    environment = {
        "LD_LIBRARY_PATH": str(gpu_lab.stand_in(tmp_path)),
        "LLMC_EMULATED_KERNELS": str(gpu_lab.emulated((kept / "kernels.cu").read_text(), tmp_path)),
    }
    paths = f"import sys; sys.path.append({str(HERE)!r})\n"
    for program in (SELFTEST, *((paths + COMPANY,) if name == "causal" else ())):
        command = [sys.executable, "-c", program, str(artifact)]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("3 ")
