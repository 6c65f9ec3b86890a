"""Ops from outside on a GPU: named where they have no code for it, emulated where they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler import extensions, interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import input_, make
from llmc.errors import LlmcError
from llmc.targets.cuda import nvcc
from llmc.targets.cuda.backend import BACKEND, CudaBackend

X = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)


def graph(fused: bool) -> Graph:
    x = input_("x", "f32", (symbol("batch"), 5))
    body = (("softsign", (0,), ()), ("neg", (-1,), ()))
    y = make("chain", (x,), body=body) if fused else make("softsign", (x,))
    return Graph((x,), {"y": y}, {"batch": (1, 4)})


@pytest.mark.parametrize("fused", [False, True])
def test_without_a_kernel_it_is_named(extension: Any, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: "")
    extension("softsign")
    with pytest.raises(LlmcError, match=r"1 operations have no kernel on cuda\n  found: x: softsign$"):
        BACKEND.lower(graph(fused))


@pytest.mark.parametrize("fused", [False, True])
def test_with_a_kernel_it_runs(
    extension: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu_lab: Any, fused: bool
) -> None:
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: "")
    text = (Path(__file__).parents[2] / "examples" / "extension" / "softsign.py").read_text()
    file = tmp_path / "both.py"
    file.write_text(
        text.replace('{"cpu": {"softsign": emit}}', 'dict.fromkeys(("cpu", "cuda"), {"softsign": emit})')
    )
    extension(file)
    assert set(extensions.scalars("cuda")) == {"softsign"}
    program = graph(fused)
    (call,) = CudaBackend().lower(program)
    assert call.kernel.family == "chain_softsign"
    monkeypatch.setattr(gpu_lab, "LOWERINGS", {call.operands[-1].op: lambda node: call})
    found = gpu_lab.GpuLab(tmp_path, [program]).run(program, {"x": X}, {"batch": 3})
    np.testing.assert_allclose(found["y"], interpret.run(program, {"x": X})["y"], rtol=1e-6)
