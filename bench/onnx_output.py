"""Graphs go out as ONNX and come in again: the same outputs by the interpreter, and by ONNX Runtime where it is there.

    python bench/onnx_output.py                     200 random graphs, 60 with loops, 40 encoders on rows of tokens
    python bench/onnx_output.py --graphs 1000
    python bench/onnx_output.py kept/optimised.txt  the functions of graphs that `opt -o` or `compile --keep` wrote

Prints, for each kind, how many were tried and the largest difference as a share of the largest value of an output.
Exit code 1 if one is above the tolerance.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from random_encoders import random_encoder
from random_graphs import random_graph
from random_loops import random_loop, random_values

from llmc.compiler import interpret
from llmc.compiler.frontends import graph_text
from llmc.compiler.frontends import onnx as frontend
from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.samples import samples
from llmc.compiler.to_onnx.file import write
from llmc.passes import LEVELS, PASSES
from llmc.passes.rows.ragged import ragged_steps

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Call = tuple[Graph, Arrays, Arrays]  # inputs, and states before the call
Runner = Callable[[Path, Graph, Arrays, Arrays], Arrays]


def main() -> int:
    options = _options()
    runners: dict[str, Runner] = {"in again": _again}
    try:
        import onnxruntime
    except ImportError:
        print("without onnxruntime")
    else:
        onnxruntime.set_default_logger_severity(3)
        runners["ONNX Runtime"] = _onnxruntime
    kinds = {str(f): _of_file(f) for f in options.files} if options.files else _random(options.graphs)
    return int(sum(_tried(kind, calls, runners, options.tolerance) for kind, calls in kinds.items()) > 0)


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="graphs' texts")
    parser.add_argument("--graphs", type=int, default=200, help="random graphs without loops")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of the largest value of an output")
    return parser.parse_args()


def _random(count: int) -> dict[str, Iterator[Call]]:
    graphs = ((*random_graph(seed), {}) for seed in range(count))
    loops = ((g := random_loop(seed), random_values(g, 2, 5), {}) for seed in range(60))
    return {"random graphs": graphs, "loops and branches": loops, "encoders after -O3": _encoders(40)}


def _encoders(count: int) -> Iterator[Call]:
    for seed in range(count):
        graph, inputs = random_encoder(seed)
        graph, _ = Pipeline.parse(LEVELS[3], PASSES).run(graph)
        yield ragged_steps(graph, blank=True).run(graph)[0], inputs, {}


def _of_file(path: Path) -> Iterator[Call]:
    """Calls of sessions of several sizes, of each function."""
    for graph in graph_text.load(path).module.functions.values():
        grows = {n.attributes["name"]: n.attributes["grows"] or 0 for n in graph.states}
        for session in samples(graph):
            states: Arrays = {
                n: np.moveaxis(v, 0, grows[n]) if v.ndim else v for n, v in session.states.items()
            }
            for inputs in session.calls:
                yield graph, inputs, states
                states = interpret.step(graph, inputs, states)[1]


def _tried(kind: str, calls: Iterator[Call], runners: Mapping[str, Runner], tolerance: float) -> int:
    """How many calls were wrong; prints them, and the largest difference."""
    worst, wrong, number = dict.fromkeys(runners, 0.0), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path, last = Path(folder) / "m.onnx", None
        for number, (graph, inputs, states) in enumerate(calls, 1):
            if graph is not last:
                write(path, graph, {})
                last = graph
            wanted = _interpreted(graph, inputs, states)
            for name, run in runners.items():
                apart = _difference(run(path, graph, inputs, states), wanted)
                worst[name] = max(worst[name], apart)
                if not apart <= tolerance:
                    wrong += 1
                    print(f"{kind}, {number}, {name}: {apart:.1e}")
    told = ", ".join(f"{name} {apart:.1e}" for name, apart in worst.items())
    print(f"{kind}: {number} tried, {wrong} wrong; largest difference: {told}", flush=True)
    return wrong


def _interpreted(graph: Graph, inputs: Arrays, states: Arrays) -> Arrays:
    outputs, after = interpret.step(graph, inputs, states)
    return {**outputs, **{f"present.{name}": after[name] for name in graph.updates}}


def _again(path: Path, graph: Graph, inputs: Arrays, states: Arrays) -> Arrays:
    return _interpreted(frontend.load(path).graph, inputs, states)


def _onnxruntime(path: Path, graph: Graph, inputs: Arrays, states: Arrays) -> Arrays:
    import onnxruntime

    options = (
        onnxruntime.SessionOptions()
    )  # its products of 8 and 4 bits round what they multiply, unless asked
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(path), options)
    given = {**inputs, **{f"past.{name}": np.ascontiguousarray(v) for name, v in states.items()}}
    named = {i.name for i in session.get_inputs()}
    made = session.run(None, {name: value for name, value in given.items() if name in named})
    return dict(zip((o.name for o in session.get_outputs()), made, strict=True))


def _difference(found: Arrays, wanted: Arrays) -> float:
    """The largest, infinite where an output has another type; NaN in the same places is the same."""
    if found.keys() != wanted.keys():
        return float("inf")
    return max(_apart(found[name], value) for name, value in wanted.items())


def _apart(found: Array, wanted: Array) -> float:
    if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        return float("inf")
    if not wanted.size or np.array_equal(found, wanted, equal_nan=wanted.dtype.kind == "f"):
        return 0.0
    return float(np.abs(found.astype(np.float64) - wanted).max() / (np.abs(wanted).max() or 1))


if __name__ == "__main__":
    sys.exit(main())
