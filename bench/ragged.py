"""What padding costs: a batch of texts of different length beside what its tokens are worth.

    python bench/ragged.py MODEL [--threads 1] [--quant int8] [--batch 32] [--low 5] [--high 128] [--seed 0]

In turns in one process, medians (and minima) of `--rounds` rounds:

    batch / share    the padded batch, over the batch without padding times its share of tokens
    batch / alone    the padded batch, over the sum of its rows run one by one without padding
    fixed / any      for each length in `--lengths`: the artifact for every length, over one compiled for that alone

The last compiles an artifact for each length. The fma peak of the machine is measured before and after, since
clocks drift; figures of different runs do not compare, ratios do.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.frontends import dispatch
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make

Runs = Mapping[str, Callable[[], Any]]


def measure(runs: Runs, rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turns, after one run of each that is not counted."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(a: list[float], b: list[float], scale: float = 1.0) -> str:
    """Of the medians, and of the minima."""
    return f"{statistics.median(a) / statistics.median(b) / scale:.3f} ({min(a) / min(b) / scale:.3f})"


def peak(model: Any) -> float:
    """GFLOP/s of the runtime's own fma loop."""
    report = model.benchmark(duration=0.05, profile=True, batch=1, seq=8)
    return float(report.peak_flops_per_second) / 1e9


def padded_batch(model: Any, arguments: argparse.Namespace) -> None:
    """The first two lines."""
    rng, shape = np.random.default_rng(arguments.seed), (arguments.batch, arguments.high)
    lengths = rng.integers(arguments.low, arguments.high + 1, arguments.batch)
    width = int(lengths.max())  # as a tokenizer pads
    ids = rng.integers(5, 1000, shape)[:, :width]
    mask = (np.arange(width) < lengths[:, None]).astype(np.int64)

    def alone() -> None:
        for row, length in enumerate(lengths):
            model(input_ids=ids[row : row + 1, :length])

    runs = {
        "batch": lambda: model(input_ids=ids, attention_mask=mask),
        "full": lambda: model(input_ids=ids),
        "alone": alone,
    }
    found = measure(runs, arguments.rounds)
    share = float(mask.mean())
    print(f"{arguments.batch} rows, {lengths.sum()} tokens, {share:.1%} of {width} columns")
    print(f"batch / share  {ratio(found['batch'], found['full'], share)}")
    print(f"batch / alone  {ratio(found['batch'], found['alone'])}")


def fixed(graph: Graph, length: int) -> Graph:
    """A graph for batch 1 and one length: no dim is left."""

    def known(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(known, value))
        sizes = {symbol("batch"): 1, symbol("seq"): length}
        return int(value.subs(sizes)) if hasattr(value, "subs") else value

    done: dict[Node, Node] = {}
    for node in graph.nodes:
        attributes = {name: known(value) for name, value in node.attributes.items()}
        done[node] = make(node.op, [done[i] for i in node.inputs], node.source, **attributes)
    outputs = {name: done[node] for name, node in graph.outputs.items()}
    return Graph(tuple(done[i] for i in graph.inputs), outputs)


def lengths(model: Any, arguments: argparse.Namespace, folder: Path) -> None:
    """The third line."""
    from llmc.driver import compile_graph

    graph = dispatch.load(arguments.model).graph
    for length in arguments.lengths:
        path = folder / f"{length}.llmc"
        compile_graph(fixed(graph, length), path, quant=arguments.quant)
        ids = np.random.default_rng(length).integers(5, 1000, (1, length))
        with llmc.load(path, threads=arguments.threads) as one:
            runs: Runs = {"any": lambda: model(input_ids=ids), "fixed": lambda: one(input_ids=ids)}  # noqa: B023
            found = measure(runs, 10 * arguments.rounds)
        print(f"any / fixed at length {length}: {ratio(found['any'], found['fixed'])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quant", default="none")
    for name, default in (
        ("threads", 1),
        ("batch", 32),
        ("low", 5),
        ("high", 128),
        ("seed", 0),
        ("rounds", 9),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lengths", type=int, nargs="*", default=[7, 23, 77, 128])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmc-ragged-") as place:
        path = Path(place) / "any.llmc"
        llmc.compile(arguments.model, path, quant=arguments.quant)
        with llmc.load(path, threads=arguments.threads) as model:
            before = peak(model)
            padded_batch(model, arguments)
            lengths(model, arguments, Path(place))
            print(f"fma peak, all threads: {before:.0f} GFLOP/s before, {peak(model):.0f} after")


if __name__ == "__main__":
    main()
