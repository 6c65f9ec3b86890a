"""How far an artifact can scale by the way its work is cut, where there are fewer cores than asked about.

    python bench/scaling.py MODEL [--shapes 1x128,8x128] [--threads 1,2,4,8,16,32,64] [--quant int8] [--json]

No time is measured. For each kernel call the pool's own rule (chunk_length of runtime/c/pool.c, compiled from there)
says how the items are cut; threads take chunks as they become free, so that a call takes as many rounds as the
fullest thread has chunks. A call costs `items x cost`, the estimate that the pool cuts by, and every call that is
shared out costs `--handover` more (in units of cost; some 5,000 are a microsecond). The speed-up is the sum over the
calls at one thread over that at T. It is a bound: memory, caches and clocks shared by the cores are left out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmc.cli.output import print_table
from llmc.compiler.calls import Call
from llmc.compiler.dims import evaluate
from llmc.compiler.frontends import dispatch
from llmc.compiler.pipeline import Pipeline
from llmc.passes import LEVELS, PASSES
from llmc.passes.quantise import QUANTISATIONS
from llmc.runtime.sources import FOLDER

Cut = Callable[
    [int, int, int], int
]  # items, cost of one, threads -> items in a chunk; 0: one thread does it all

_SHIM = """#include "pool.c"
int64_t cut(int64_t items, int64_t cost, int threads) {
    if (cost < 1) cost = 1;
    return threads == 1 || items == 1 || items < SMALL_JOB / cost ? 0 : chunk_length(items, cost, threads);
}
"""


def pool_rule(folder: Path) -> Cut:
    """The rule of runtime/c/pool.c, built with the system's C compiler in `folder`."""
    source, library = folder / "cut.c", folder / "cut.so"
    source.write_text(_SHIM)
    others = [str(FOLDER / f"{name}.c") for name in ("cpu", "error")]
    command = [
        "cc",
        "-std=gnu99",
        "-O1",
        "-shared",
        "-fPIC",
        f"-I{FOLDER}",
        str(source),
        *others,
        "-lpthread",
    ]
    subprocess.run([*command, "-o", str(library)], check=True)
    rule = ctypes.CDLL(str(library)).cut
    rule.argtypes, rule.restype = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int], ctypes.c_int64
    return lambda items, cost, threads: int(rule(items, cost, threads))


def call_time(items: int, cost: int, threads: int, cut: Cut, handover: int) -> int:
    """Units of cost from the start of a call to the end of its last chunk."""
    length = cut(items, cost, threads)
    if length == 0:
        return items * cost
    chunks = -(-items // length)
    rounds = -(-chunks // threads)
    return rounds * length * cost + handover


def work(calls: Sequence[Call], sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """Items and cost of one, of each call at these sizes of the dims."""
    return [(int(evaluate(c.items, sizes)), max(1, int(evaluate(c.cost, sizes)))) for c in calls]


def speedups(
    jobs: Sequence[tuple[int, int]], threads: Sequence[int], cut: Cut, handover: int
) -> dict[int, float]:
    """Threads -> the time of one thread over theirs."""
    totals = {t: sum(call_time(items, cost, t, cut, handover) for items, cost in jobs) for t in (1, *threads)}
    return {t: totals[1] / totals[t] for t in threads}


def lowered(model: str, quant: str) -> Sequence[Call]:
    """The calls of a model folder or file compiled for x86."""
    from llmc.targets.cpu.backend import BACKEND

    passes = ",".join(p for p in (LEVELS[3], QUANTISATIONS[quant]) if p)
    graph, _ = Pipeline.parse(passes, PASSES).run(dispatch.load(Path(model), task="auto").graph)
    return BACKEND.lower(graph)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--shapes", default="1x8,1x128,8x128,32x128")
    parser.add_argument("--threads", default="2,4,8,16,32,64")
    parser.add_argument("--quant", default="none", choices=["none", "fp16", "int8"])
    parser.add_argument("--handover", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    threads = [int(t) for t in options.threads.split(",")]
    calls, rows = lowered(options.model, options.quant), []
    with tempfile.TemporaryDirectory() as folder:
        cut = pool_rule(Path(folder))
        for shape in options.shapes.split(","):
            batch, seq = (int(n) for n in shape.split("x"))
            jobs = work(calls, {"batch": batch, "seq": seq, "tokens": batch * seq})
            rows.append({"shape": shape, "speedup": speedups(jobs, threads, cut, options.handover)})
    show(rows, threads, options.json)
    return 0


def show(rows: Sequence[Mapping[str, Any]], threads: Sequence[int], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print_table(
        "speed-up by the cut of the work; a bound",
        ["batch x seq", *(f">{t} threads" for t in threads)],
        [[row["shape"], *(f"{row['speedup'][t]:.1f}" for t in threads)] for row in rows],
    )


if __name__ == "__main__":
    sys.exit(main())
