"""Several threads on one model, a session each: the runs they make together, over those of one thread alone.

    python bench/sessions.py ARTIFACT [--threads 2] [--batch 1] [--seq 128] [--seconds 1] [--rounds 7]

Each session works on its caller's thread alone (`threads=1`), as on a server that has as many requests as cores. One
thread and several run in turns. Every answer must have the bits of the first, or the program ends with 1.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import llmc

Arrays = dict[str, np.ndarray[Any, Any]]


def sample(model: llmc.Model, batch: int, seq: int) -> Arrays:
    """Random inputs that the model takes; those with a default are left out."""
    rng, arrays = np.random.default_rng(0), {}
    for name, info in model.inputs.items():
        if info.default is not None:
            continue
        shape = [d if isinstance(d, int) else batch if d == "batch" else seq for d in info.shape]
        low, high = info.range or (0, 1)
        values = (
            rng.standard_normal(shape) if info.numpy_dtype.kind == "f" else rng.integers(low, high, shape)
        )
        arrays[name] = values.astype(info.numpy_dtype)
    return arrays


def runs_of(sessions: Sequence[Any], inputs: Arrays, expected: Arrays, seconds: float) -> int:
    """The runs that the sessions make in `seconds`, a thread for each.

    Raises:
        SystemExit: an answer has other bits than `expected`.
    """
    counts, wrong, until = [0] * len(sessions), [], time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < until:
            found = sessions[number].run(inputs)
            counts[number] += 1
        wrong.extend(name for name, value in found.items() if not np.array_equal(value, expected[name]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise SystemExit(f"other bits in {wrong[0]}")
    return sum(counts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact")
    for name, default in (("threads", 2), ("batch", 1), ("seq", 128), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=1.0)
    asked = parser.parse_args()
    with llmc.load(asked.artifact, threads=1) as model:
        inputs = sample(model, asked.batch, asked.seq)
        expected = model.run(inputs)
        sessions = [model.session(threads=1) for _ in range(asked.threads)]
        runs_of(sessions, inputs, expected, asked.seconds)  # warm
        pairs = []
        for _ in range(asked.rounds):
            one = runs_of(sessions[:1], inputs, expected, asked.seconds)
            pairs.append((one, runs_of(sessions, inputs, expected, asked.seconds)))
    ratios = sorted(many / one for one, many in pairs)
    speeds = " -> ".join(f"{np.median(runs) / asked.seconds:.1f}" for runs in zip(*pairs, strict=True))
    print(f"1 -> {asked.threads} threads: {speeds} runs/s")
    print(f"ratio {np.median(ratios):.2f} (rounds {ratios[0]:.2f} to {ratios[-1]:.2f}), the same bits in all")


if __name__ == "__main__":
    main()
