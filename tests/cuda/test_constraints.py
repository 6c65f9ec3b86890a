"""Sizes that do not fit each other are refused before anything is launched: the runtime looks, whatever the device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import input_, make
from llmc.driver import compile_graph

pytestmark = pytest.mark.xdist_group("cuda")
CALLS = """
import sys, llmc, numpy as np
with llmc.load(sys.argv[1]) as model:
    for seq, width in ((9, 5), (5, 9)):
        try:
            print(model(x=np.ones((width, 4), np.float32), y=np.ones(seq, np.float32))["out"].sum())
        except llmc.LlmcError as error:
            print(error.problem)
"""


def test_a_slice_beyond_its_axis(gpu_lab: Any, needs_nvcc: None, tmp_path: Path) -> None:
    x, y = input_("x", "f32", (symbol("width"), 4)), input_("y", "f32", (symbol("seq"),))
    cut = make("slice", (x,), axis=0, start=0, stop=symbol("seq"))
    outputs = {"out": make("add", (cut, cut)), "same": y}
    graph = Graph((x, y), outputs, {"width": (1, 64), "seq": (1, 64)})
    artifact, kept = tmp_path / "m.llmc", tmp_path / "keep"
    compile_graph(graph, artifact, target="cuda-sm_80", keep=kept)
    environment = {
        "LD_LIBRARY_PATH": str(gpu_lab.stand_in(tmp_path)),
        "LLMC_EMULATED_KERNELS": str(gpu_lab.emulated((kept / "kernels.cu").read_text(), tmp_path)),
    }
    command = [sys.executable, "-c", CALLS, str(artifact)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "slice at x: its stop, seq = 9, is above the size of axis 0, width = 5",
        "40.0",
    ], done.stderr
