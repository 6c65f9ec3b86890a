"""ONNX files as they are found: imported, computed by the interpreter, and compared with ONNX Runtime's answers.

    python bench/onnx_files.py FOLDER                          every .onnx below it, a line each
    python bench/onnx_files.py a.onnx --dim height=320         options of `llmc compile`
    python bench/onnx_files.py FOLDER --compile --threads 1    compiled too, and raced in turns

Inputs are random, of sizes that the graph takes (`llmc.compiler.samples`). The figures are the largest difference and
the largest answer of the output where their ratio is worst; of times, llmc's median over ONNX Runtime's. Beside the
ratio stands ONNX Runtime's to itself without its optimiser: how far rounding alone goes. Needs onnxruntime.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import llmc
from llmc.cli.fixed_dims import Sized, Valued
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
    parser.add_argument("--fix", action="append", default=[], type=lambda t: Valued().convert(t, None, None))
    parser.add_argument(
        "--below", type=int, default=2, help="integers of inputs that do not say which they take"
    )
    parser.add_argument("--compile", action="store_true", help="compare and time an artifact")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quant", default="none", help="as in `llmc compile`")
    return parser.parse_args()


def _files(given: Path) -> list[Path]:
    return sorted(given.rglob("*.onnx")) if given.is_dir() else [given]


def _told(path: Path, options: argparse.Namespace) -> str:
    try:
        graph = onnx.load(path, dims=dict(options.dim), fixed=dict(options.fix)).graph
    except LlmcError as error:
        return f"refused: {error.problem} ({error.found})"
    peer, plain = (_session(path, options, optimised) for optimised in (True, False))
    calls = [_widened(graph, call, options.below) for sample in samples(graph) for call in sample.calls]
    worst = max(_apart(interpret.run(graph, call), peer(call)) for call in calls)
    itself = max(_apart(plain(call), peer(call)) for call in calls)
    told = f"{worst} in {len(calls)} calls; ONNX Runtime to itself {itself}"
    return f"{told}; {_compiled(path, peer, calls, options)}" if options.compile else told


def _widened(graph: Any, call: Arrays, below: int) -> Arrays:
    """Integers of an input without a range are of the range that is asked for."""
    rng = np.random.default_rng(0)
    open_ = {
        n.attributes["name"]
        for n in graph.inputs
        if n.dtype in ("i32", "i64") and n.attributes["high"] is None
    }
    return {k: rng.integers(0, below, v.shape).astype(v.dtype) if k in open_ else v for k, v in call.items()}


def _session(path: Path, options: argparse.Namespace, optimised: bool) -> Callable[[Arrays], Arrays]:
    chosen, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    chosen.intra_op_num_threads = options.threads
    chosen.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    found = onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])
    names, fixed = [output.name for output in found.get_outputs()], dict(options.fix)
    numbers = {
        i.name: np.full(i.shape, fixed[i.name], _dtype(i.type)) for i in found.get_inputs() if i.name in fixed
    }
    return lambda inputs: dict(zip(names, found.run(None, {**inputs, **numbers}), strict=True))


def _dtype(kind: str) -> str:
    """NumPy's name of a type such as `tensor(float)`."""
    return {"float": "float32", "double": "float64"}.get(name := kind[len("tensor(") : -1], name)


@dataclass(order=True)
class Apart:
    """The largest difference of an output, as a share of its largest answer."""

    share: float
    difference: float
    largest: float

    def __str__(self) -> str:
        return f"{self.share:.1e} of scale, {self.difference:.1e} of {self.largest:.1e}"


def _apart(found: Arrays, wanted: Arrays) -> Apart:
    """Of the output that is worst."""
    pairs = [(np.asarray(found[n], float), np.asarray(w, float)) for n, w in wanted.items() if w.size]
    sizes = [(float(np.abs(f - w).max()), float(np.abs(w).max())) for f, w in pairs]
    return max((Apart(d / max(top, 1e-30), d, top) for d, top in sizes), default=Apart(0.0, 0.0, 0.0))


def _compiled(
    path: Path, session: Callable[[Arrays], Arrays], calls: list[Arrays], options: argparse.Namespace
) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            llmc.compile(
                path,
                Path(folder) / "a.llmc",
                dims=dict(options.dim),
                fixed=dict(options.fix),
                quant=options.quant,
            )
        except LlmcError as error:
            return f"not compiled: {error.problem}"
        with llmc.load(Path(folder) / "a.llmc", threads=options.threads) as model:
            worst = max(_apart(model.run(call), session(call)) for call in calls)
            ratios = [_ratio(lambda c=call: model.run(c), lambda c=call: session(c)) for call in calls]
    return f"compiled {worst}, times {min(ratios):.2f} to {max(ratios):.2f}"


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
