"""A loop on the emulated GPU: launches in order, states that take turns, slices by address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from llmc.compiler import interpret
from llmc.compiler.frontends.module import graph
from llmc.driver import compile_graph

pytestmark = pytest.mark.xdist_group("cuda")
STEPS, WIDTH, UNITS = 5, 12, 16


class Network(torch.nn.Module):
    """An LSTM both ways over rows of different lengths, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = torch.nn.LSTM(WIDTH, UNITS, bidirectional=True, batch_first=True)
        self.gru = torch.nn.GRU(2 * UNITS, UNITS, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=STEPS)
        return self.gru(output)[0]


def test_recurrent_networks(gpu_lab: Any, needs_nvcc: None, tmp_path: Path) -> None:
    model = Network().eval()
    sample = {"x": torch.zeros(2, STEPS, WIDTH), "lengths": torch.tensor([STEPS, STEPS])}
    made = graph(model, sample, ("y",), 8)
    report = compile_graph(made, tmp_path / "m.llmc", target="cuda-sm_80", keep=tmp_path / "keep")
    assert "expand-cells" in report.pipeline
    program = (tmp_path / "keep" / "module.c").read_text()
    assert program.count("/* loop") == 3
    environment = {
        "LD_LIBRARY_PATH": str(gpu_lab.stand_in(tmp_path)),
        "LLMC_EMULATED_KERNELS": str(
            gpu_lab.emulated((tmp_path / "keep" / "kernels.cu").read_text(), tmp_path)
        ),
    }
    rng = np.random.default_rng(0)
    cases = [
        {"x": rng.normal(size=(len(n), STEPS, WIDTH)).astype(np.float32), "lengths": np.array(n)}
        for n in ([5], [1, 5, 3])
    ]
    for case, found in zip(
        cases, gpu_lab.run_artifact(tmp_path / "m.llmc", cases, tmp_path, environment), strict=True
    ):
        np.testing.assert_allclose(found["y"], interpret.run(made, case)["y"], rtol=0, atol=1e-5)
