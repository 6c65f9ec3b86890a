"""What an artifact costs beside its runs: start-up of the commands, opening, memory, size.

    python bench/footprint.py M.llmc [--json]

Times are medians of several tries with the file cache warm, in milliseconds; memory is what one run at batch 1,
sequence 128 adds to a Python process that has imported numpy, in MB (10**6 bytes).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

_MEMORY = """
import sys, numpy
def peak():
    line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before = peak()
import llmc
with llmc.load(sys.argv[1], threads=2) as model:
    names = {n: numpy.ones((1, 128), numpy.int64) for n, t in model.inputs.items() if t.default is None}
    model(**names)
    print(peak() - before)
"""
_COMMAND = [sys.executable, "-c", "import sys; from llmc.cli import main; sys.exit(main())"]
_TRIES = 7


def first_line(*arguments: str) -> float:
    """Milliseconds from starting a command to its first line."""
    start = time.perf_counter()
    with subprocess.Popen([*_COMMAND, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        seconds = time.perf_counter() - start
        process.stdout.read()
    return 1e3 * seconds


def opening(path: Path) -> float:
    """Milliseconds that `llmc.load` takes."""
    import llmc

    start = time.perf_counter()
    llmc.load(path).close()
    return 1e3 * (time.perf_counter() - start)


def measure(path: Path) -> dict[str, float]:
    """All figures of one artifact."""
    memory = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(path)], capture_output=True, text=True, check=True
    )
    weights = (path / "weights.bin").stat().st_size
    return {
        "llmc --help, first line (ms)": median(first_line("--help") for _ in range(_TRIES)),
        "llmc inspect, first line (ms)": median(first_line("inspect", str(path)) for _ in range(_TRIES)),
        "llmc bench --help, first line (ms)": median(first_line("bench", "--help") for _ in range(_TRIES)),
        "open (ms)": median(opening(path) for _ in range(_TRIES)),
        "memory of a run, weights included (MB)": int(memory.stdout) / 1e6,
        "weights (MB)": weights / 1e6,
        "module.so and bench (kB)": sum((path / name).stat().st_size for name in ("module.so", "bench"))
        / 1e3,
    }


def main() -> None:
    """Print the figures of the artifact given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.artifact)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<40} {value:9.1f}")


if __name__ == "__main__":
    main()
