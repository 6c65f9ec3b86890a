"""ONNX files as they are found: imported, computed by the interpreter, and compared with ONNX Runtime's answers.

    python bench/onnx_files.py FOLDER                          every .onnx below it, a line each
    python bench/onnx_files.py a.onnx --dim height=320         options of `llmc compile`
    python bench/onnx_files.py FOLDER --compile --threads 1    compiled too, and raced in turns

Inputs are random, of sizes that the graph takes (`llmc.compiler.samples`). The figure is the largest difference over
the largest answer, the worst of all outputs; of times, llmc's median over ONNX Runtime's. Needs onnxruntime.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import llmc
from llmc.cli.fixed_dims import Sized
from llmc.compiler import interpret
from llmc.compiler.frontends import onnx
from llmc.compiler.samples import samples
from llmc.errors import LlmcError

Arrays = Mapping[str, np.ndarray[Any, Any]]
ROUNDS = 15


def main() -> None:
    options = _options()
    warnings.simplefilter("ignore")
    onnxruntime.set_default_logger_severity(4)
    for path in (f for given in options.files for f in _files(given)):
        print(f"{path}: {_told(path, options)}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="files, or folders that hold some")
    parser.add_argument("--dim", action="append", default=[], type=lambda t: Sized().convert(t, None, None))
    parser.add_argument("--compile", action="store_true", help="compare and time an artifact")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quant", help="as in `llmc compile`")
    return parser.parse_args()


def _files(given: Path) -> list[Path]:
    return sorted(given.rglob("*.onnx")) if given.is_dir() else [given]


def _told(path: Path, options: argparse.Namespace) -> str:
    try:
        graph = onnx.load(path, dims=dict(options.dim)).graph
    except LlmcError as error:
        return f"refused: {error.problem} ({error.found})"
    session = _session(path, options.threads)
    calls = [call for sample in samples(graph) for call in sample.calls]
    worst = max(_apart(interpret.run(graph, call), session(call)) for call in calls)
    told = f"{worst:.1e} of scale in {len(calls)} calls"
    return f"{told}, {_compiled(path, session, calls, options)}" if options.compile else told


def _session(path: Path, threads: int) -> Callable[[Arrays], Arrays]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    found = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in found.get_outputs()]
    return lambda inputs: dict(zip(names, found.run(None, dict(inputs)), strict=True))


def _apart(found: Arrays, wanted: Arrays) -> float:
    """The worst output's largest difference, over its largest value."""
    pairs = [
        (np.asarray(found[n], np.float64), np.asarray(w, np.float64)) for n, w in wanted.items() if w.size
    ]
    return max((float(np.abs(f - w).max() / max(np.abs(w).max(), 1e-30)) for f, w in pairs), default=0.0)


def _compiled(
    path: Path, session: Callable[[Arrays], Arrays], calls: list[Arrays], options: argparse.Namespace
) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            llmc.compile(path, Path(folder) / "a.llmc", dims=dict(options.dim), quant=options.quant)
        except LlmcError as error:
            return f"not compiled: {error.problem}"
        with llmc.load(Path(folder) / "a.llmc", threads=options.threads) as model:
            worst = max(_apart(model.run(call), session(call)) for call in calls)
            ratios = [_ratio(lambda c=call: model.run(c), lambda c=call: session(c)) for call in calls]
    return f"compiled {worst:.1e}, times {min(ratios):.2f} to {max(ratios):.2f}"


def _ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """Of medians, in turns."""
    times = [(_seconds(ours), _seconds(theirs)) for _ in range(ROUNDS)]
    own, peer = (statistics.median(column) for column in zip(*times[2:], strict=True))
    return own / peer


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
