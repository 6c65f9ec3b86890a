"""What more threads gain one run, in turns with one thread: medians of paired ratios.

    python bench/threads.py ARTIFACT... [--threads 2] [--shapes 1x8,1x128,8x64] [--variants avx512vnni,avx2]
        [--seconds 0.1] [--rounds 15] [--pause 0]

With `--pause` each sample is one run, after so many seconds of sleep, in which the threads fall asleep too.
Of several artifacts, as those of two commits, every one takes its turn in each round, and the first is what the others'
times are compared with. All must give the same bits.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence

import numpy as np
from sessions import Arrays, sample

import llmc

Run = tuple[str, int]  # an artifact and its threads


def seconds_of(model: llmc.Model, inputs: Arrays, least: float, pause: float) -> float:
    """Of one run, from as many as fill `least` seconds; after a pause, if there is one, from one."""
    time.sleep(pause)
    least = 0 if pause else least
    runs, begin = 0, time.perf_counter()
    while not runs or time.perf_counter() - begin < least:
        model.run(inputs)
        runs += 1
    return (time.perf_counter() - begin) / runs


def measure(
    models: dict[Run, llmc.Model], inputs: Arrays, rounds: int, least: float, pause: float = 0.0
) -> dict[Run, list[float]]:
    """The seconds of each, round by round, in turns.

    Raises:
        SystemExit: two give other bits.
    """
    first, *others = (model.run(inputs) for model in models.values())
    if any(not np.array_equal(first[name], other[name]) for other in others for name in first):
        raise SystemExit("the bits differ")
    seconds: dict[Run, list[float]] = {run: [] for run in models}
    order = [*models]
    for _ in range(rounds):
        for run in order:
            seconds[run].append(seconds_of(models[run], inputs, least, pause))
        order.reverse()  # what ran before a turn tells on it
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """The median of the rounds' ratios, and what all but the outer tenths lie between."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    cut = len(ratios) // 10
    return f"{statistics.median(ratios):.2f} ({ratios[cut]:.2f}-{ratios[-1 - cut]:.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", default="1x8,1x128,8x64")
    parser.add_argument("--variants", default="", help="of the code; the best if empty")
    parser.add_argument("--seconds", type=float, default=0.1, help="of one turn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of sleep before each run")
    options = parser.parse_args(arguments)
    for variant, shape in itertools.product(options.variants.split(","), options.shapes.split(",")):
        batch, seq = map(int, shape.split("x"))
        runs = itertools.product(options.artifacts, (1, options.threads))
        models = {(a, t): llmc.load(a, threads=t, variant=variant or None) for a, t in runs}
        inputs = sample(next(iter(models.values())), batch, seq)
        seconds = measure(models, inputs, options.rounds, options.seconds, options.pause)
        for artifact in options.artifacts:
            one, more = seconds[artifact, 1], seconds[artifact, options.threads]
            told = f"{shape} {variant or 'best'} {artifact}: {statistics.median(one) * 1e3:.3g} ms"
            told += f" -> {statistics.median(more) * 1e3:.3g} ms, {ratio(one, more)} times"
            if artifact != options.artifacts[0]:
                told += ", over the first's time"
                told += "".join(
                    f" {ratio(seconds[artifact, t], seconds[options.artifacts[0], t])}"
                    for t in (1, options.threads)
                )
            print(told, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
