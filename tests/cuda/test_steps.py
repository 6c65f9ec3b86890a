"""Texts on the emulated GPU: models that generate have the functions and states of x86, and make the same tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import instruction_sets
import numpy as np
import pytest
import steps

import llmc

pytestmark = pytest.mark.xdist_group("cuda")
PATHS = f"import sys; sys.path.append({str(Path(steps.__file__).parent)!r})\n"
PROGRAM = PATHS + "import steps\nsteps.main(*sys.argv[1:])\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", steps.MODELS)
def test_the_tokens_are_those_of_x86(name: str, gpu_lab: Any, needs_nvcc: None, tmp_path: Path) -> None:
    with instruction_sets.code_of_this_processor():
        artifact = steps.compiled(name, tmp_path / "x86.llmc", target="x86-avx2")
    with llmc.load(artifact, threads=1) as model:
        here = steps.steps(model, name)
    other = steps.compiled(name, tmp_path / "gpu.llmc", target="cuda-sm_80", keep=tmp_path / "kept")
    steps.assert_alike(artifact, other)
    there = said(other, name, gpu_lab)
    assert [token for token, _ in there] == [token for token, _ in here]
    for (_, a), (_, b) in zip(there, here, strict=True):
        words = range(steps.WORDS)
        np.testing.assert_allclose([a[w] for w in words], [b[w] for w in words], rtol=0, atol=1e-4)


def said(artifact: Path, name: str, lab: Any) -> steps.Steps:
    """What a process with the stand-in driver says."""
    place = artifact.parent
    environment = {
        "LD_LIBRARY_PATH": str(lab.stand_in(place)),
        "LLMC_EMULATED_KERNELS": str(lab.emulated((place / "kept" / "kernels.cu").read_text(), place)),
    }
    command = [sys.executable, "-c", PROGRAM, str(artifact), name]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return steps.read(done.stdout)
