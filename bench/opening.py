"""What opening an artifact costs with its weights checked, beside reading as many bytes once from memory.

    python bench/opening.py ARTIFACT [--rounds 31] [--threads N]

All in turns, medians, with the files in the system's cache:

    read      the sum of weights.bin as 64-bit numbers on one thread, pages mapped before: memory alone
    map+read  the same by a mapping of its own, which is what a program does that reads the file once
    copy      weights.bin to other memory, both mapped before
    open      `llmc.load`: manifest, hashes of the other files, threads, weights checked
    unchecked `llmc.load(check_weights=False)`

Beside the time that passed is that of processors, of all threads, which other work on the machine changes less. The
bound is open <= 2 * map+read; the program ends with 1 if it is broken.
"""

from __future__ import annotations

import argparse
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import llmc


def mapped_sum(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        words = np.frombuffer(pages, np.uint64, count=len(pages) // 8)
        words.sum()
        del words


def tasks(artifact: Path, threads: int | None, c_times: list[float]) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    weights = artifact / "weights.bin"
    words = np.fromfile(weights, np.uint64)
    other = words.copy()

    def opened() -> llmc.Model:
        model = llmc.load(artifact, threads=threads)
        c_times.append(model.load_seconds)
        return model

    return {
        "read": words.sum,
        "map+read": lambda: mapped_sum(weights),
        "copy": lambda: np.copyto(other, words),
        "open": opened,
        "unchecked": lambda: llmc.load(artifact, threads=threads, check_weights=False),
    }


def measure(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds, and seconds of processors: a sample of each in every round, after one round that is thrown away."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, task in work.items():
            begin, busy = time.perf_counter(), time.process_time()
            made = task()  # a model is closed after the clock is read
            if number:
                samples[name].append((time.perf_counter() - begin, time.process_time() - busy))
            del made
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    c_times: list[float] = []
    samples = measure(tasks(arguments.artifact, arguments.threads, c_times), arguments.rounds)
    size = (arguments.artifact / "weights.bin").stat().st_size
    print(f"{size / 1e6:.1f} MB of weights, {arguments.rounds} rounds")
    for name, values in samples.items():
        seconds, busy = np.median(values, axis=0)
        low, high = np.quantile([value for value, _ in values], (0.25, 0.75))
        spread = f"{low * 1e3:6.2f} to {high * 1e3:6.2f}"
        print(f"{name:10} {seconds * 1e3:7.2f} ms   quartiles {spread}   processors {busy * 1e3:6.2f} ms")
    print(f"of open, llmc_open {np.median(c_times[1:]) * 1e3:.2f} ms")
    ratios = {name: ratio(samples, name) for name in ("read", "map+read", "copy")}
    for name, (seconds, busy) in ratios.items():
        print(f"open / {name:9} {seconds:.2f}   of processors {busy:.2f}")
    raise SystemExit(ratios["map+read"][0] > 2)


def ratio(samples: dict[str, list[tuple[float, float]]], name: str) -> tuple[float, float]:
    """What `open` takes over what `name` takes, by medians."""
    seconds, busy = np.median(samples["open"], axis=0) / np.median(samples[name], axis=0)
    return float(seconds), float(busy)


if __name__ == "__main__":
    main()
