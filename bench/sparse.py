"""Layers with zeros that products skip beside dense ones, and what zeros do to the fine-tuned sentiment model.

    python bench/sparse.py                              layers of MiniLM, one thread
    python bench/sparse.py --patterns 2:4 1:4           N of M beside dense
    python bench/sparse.py --patterns "int8 16x4" --base int8    blocks of 16x4 beside dense int8
    python bench/sparse.py --shares 0.5 0.6 0.7         where skipping begins to pay
    python bench/sparse.py --model --seconds 180        accuracy alone and recovered, latency

A layer's time is a quarter of that of a program of four products of one shape that read the same rows (of more than 16
rows, of one: a long run is seldom left alone on a shared machine); dense and sparse run in turns
(`llmc.runtime.compare`). Weights are normal numbers, and `prune` itself chooses the zeros. The
model is judged as by recovery.py: on the 2,000 test reviews, recovered by so many seconds of processor time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.driver import compile_graph
from llmc.runtime import compare

SHAPES = ((384, 384), (1536, 384), (384, 1536))  # outputs, inputs
ROWS = (1, 16, 128)
PATTERNS = ("4x1", "16x1")  # and int8: dense, beside them
INT8 = "int8 16x4"
N_OF_M = ("2:4", "1:4", "4:8", "3:8", "2:8", "1:8")  # whatever the share of zeros
LAYERS = 4  # of a program that runs at most SHORT rows
SHORT = 16


def layers(n: int, k: int, rows: int) -> Graph:
    """Products [rows, k] -> [rows, n] with a bias."""
    rng = np.random.default_rng(n + k)
    x, outputs = input_("x", "f32", (symbol("batch"), k)), {}
    for number in range(count(rows)):
        w = constant((rng.normal(size=(n, k)) / np.sqrt(k)).astype(np.float32), f"w{number}")
        bias = constant(rng.normal(size=n).astype(np.float32), f"b{number}")
        outputs[f"y{number}"] = make("linear", (x, w, bias), epilogue=("bias",))
    return Graph((x,), outputs, {"batch": (1, rows)})


def count(rows: int) -> int:
    """Layers of a program."""
    return LAYERS if rows <= SHORT else 1


def race(shape: tuple[int, int], share: float, options: Any, folder: Path) -> None:
    """Lines of the table for one shape."""
    made: dict[str, dict[str, Any]] = {"dense": {}, "int8": {"quant": "int8"}}
    for pattern in (*PATTERNS, *N_OF_M):
        sparsity = "" if ":" in pattern else f",sparsity={share}"
        made[pattern] = {"prune": f'pattern="{pattern}"{sparsity},small=true'}
    made[INT8] = {"prune": f'pattern="16x4",sparsity={share},scope="layer",whole=true', "quant": "int8"}
    loaded: dict[tuple[str, int], llmc.Model] = {}
    for rows in options.rows:
        cells = [f"{shape[0]} x {shape[1]}", f"{share:.0%}", str(rows)]
        for name in (options.base, *options.patterns):
            if (key := (name, count(rows))) not in loaded:
                path = folder / f"{name} {shape[0]} {shape[1]} {share} {key[1]}"
                graph = layers(*shape, max(r for r in options.rows if count(r) == key[1]))
                compile_graph(graph, path, target=options.target, **made[name])
                loaded[key] = llmc.load(path, threads=1, variant=options.variant)
            if name == options.base:
                continue
            found = compare(loaded[options.base, key[1]], loaded[key], batch=rows, duration=options.duration)
            if len(cells) == 3:
                flops = 2 * rows * shape[0] * shape[1] * key[1]
                cells += [f"{1e6 * found.a.p50 / key[1]:.1f}", f"{flops / found.a.p50 / 1e9:.0f}"]
            cells += [
                f"{1e6 * found.b.p50 / key[1]:.1f}",
                f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})",
            ]
        print(f"| {' | '.join(cells)} |", flush=True)


def model(options: Any) -> None:
    """Accuracy alone and recovered, and latency."""
    import recovery
    import torch
    import train_classifier

    torch.set_num_threads(1)
    source = train_classifier.classifier()
    usual = recovery.Settings("0.5")
    asked = {"seconds": options.seconds, "lr": options.lr, "latency": options.duration}
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        train, test = train_classifier.reviews()
        files = recovery.table(scratch / "train.tsv", train), recovery.table(scratch / "test.tsv", test)
        dense = scratch / "dense.llmc"
        llmc.compile(source, dense)
        columns = (*recovery.COLUMNS, "latency / dense")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        how = SimpleNamespace(**asked, hidden=usual.hidden, ramp=usual.ramp)
        print(recovery.line(recovery.measure("4x1:0.8", source, dense, files, scratch, how)), flush=True)


def main() -> int:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--patterns", nargs="+", choices=(*PATTERNS, *N_OF_M, "int8", INT8), default=PATTERNS)
    parser.add_argument(
        "--base", choices=("dense", "int8"), default="dense", help="what the others are set beside"
    )
    parser.add_argument("--target", default="x86", help="also x86-avx2")
    parser.add_argument("--variant", help="an instruction set of the target, such as avx2")
    parser.add_argument("--duration", type=float, default=1.0, help="seconds of each comparison")
    parser.add_argument("--model", action="store_true", help="the sentiment model instead")
    parser.add_argument("--seconds", type=float, default=180, help="of recovery")
    parser.add_argument("--lr", type=float, help="of recovery")
    options = parser.parse_args()
    if options.model:
        model(options)
        return 0
    columns = ["layer", "zeros", "rows", f"{options.base} us", "GFLOP/s"]
    for pattern in options.patterns:
        columns += [f"{pattern} us", "times as fast"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    with tempfile.TemporaryDirectory() as place:
        for share in options.shares:
            for shape in SHAPES:
                race(shape, share, options, Path(place))
    return 0


if __name__ == "__main__":
    sys.exit(main())
