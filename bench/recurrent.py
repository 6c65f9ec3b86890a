"""Recurrent networks beside their peers: latency of LSTM and GRU, two layers, both directions, fp32.

    python bench/recurrent.py [--hidden 128 256] [--batch 1 8] [--steps 64] [--threads 1 2] [--seconds 3]

PyTorch eager, ONNX Runtime (ONNX's own LSTM and GRU) and llmc in turns in one process, equal threads, outputs checked
against each other first. Each line has the medians, and llmc's over each peer's with a 95 % interval of paired rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import llmc
from llmc.demo.race import race, ratio

TOLERANCE = 1e-5
KINDS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}

Array = np.ndarray[Any, Any]


class Network(torch.nn.Module):
    """Batch first, the output only."""

    def __init__(self, kind: str, hidden: int) -> None:
        super().__init__()
        self.rnn = KINDS[kind](hidden, hidden, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.rnn(x)[0]
        return output


def racers(model: Network, x: torch.Tensor, threads: int, folder: Path) -> dict[str, Callable[[], Array]]:
    """Each as a call on x [batch, steps, hidden]."""
    torch.set_num_threads(threads)
    array = x.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), folder / "m.onnx", input_names=["x"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        str(folder / "m.onnx"), options, providers=["CPUExecutionProvider"]
    )
    llmc.compile_module(model, {"x": x}, folder / "m.llmc")
    compiled = llmc.load(folder / "m.llmc", threads)

    def pytorch() -> Array:
        with torch.inference_mode():
            result: Array = model(x).numpy()
        return result

    return {
        "pytorch": pytorch,
        "onnxruntime": lambda: session.run(None, {"x": array})[0],
        "llmc": lambda: compiled(x=array)["output"],
    }


def compare(kind: str, hidden: int, batch: int, steps: int, threads: int, seconds: float) -> None:
    torch.manual_seed(0)
    model = Network(kind, hidden).eval()
    x = torch.randn(batch, steps, hidden)
    with tempfile.TemporaryDirectory() as folder:
        calls = racers(model, x, threads, Path(folder))
        expected = calls["pytorch"]()
        for name, call in calls.items():
            apart = float(np.abs(call() - expected).max())
            assert apart <= TOLERANCE, f"{name} differs from PyTorch by {apart:.1e}"
        times = race(calls, seconds, threads)
    medians = "  ".join(f"{name} {1e3 * np.median(t):7.3f} ms" for name, t in times.items())
    ratios = (ratio(times["llmc"], times[peer]) for peer in ("pytorch", "onnxruntime"))
    texts = "  ".join(f"{middle:.2f} ({low:.2f}-{high:.2f})" for middle, low, high in ratios)
    print(
        f"{kind:5}{hidden:5}{batch:4} x {steps}{threads:3} threads  {medians}  llmc / peers: {texts}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--hidden", nargs="+", type=int, default=[128, 256])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=3.0)
    chosen = parser.parse_args()
    for kind in chosen.kind:
        for hidden in chosen.hidden:
            for batch in chosen.batch:
                for threads in chosen.threads:
                    compare(kind, hidden, batch, chosen.steps, threads, chosen.seconds)


if __name__ == "__main__":
    main()
