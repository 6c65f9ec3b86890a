"""One race: racers that agree, in turns with the machine's peak loops; what comes out is a row of the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from peaks import KINDS, Peaks
from racers import Array, Call, Setting

from llmc.demo.race import race, ratio
from llmc.errors import LlmcError

TOLERANCE = 5e-4  # of the largest difference of an fp32 peer to PyTorch
COSINE = 0.9  # of an int8 output to PyTorch's fp32 output, at least
LOWEST_SHARE = 0.5  # of the peak: a guess of how slow a racer is, only to tell how long a race will take
LONG = 0.05  # seconds; runs that take longer are repeated less often
ONE = " x1"  # ends the name of what runs on one thread beside racers on several


@dataclass(frozen=True)
class Budget:
    """How long a race may be.

    Args:
        seconds: of one round.
        rounds: races of each shape, one after the other.
        limit: seconds that a race may take by the model's FLOP and the machine's peak; it is skipped otherwise.
    """

    seconds: float
    rounds: int
    limit: float

    def turns(self, run: float) -> tuple[int, int]:
        """Turns at least, and turns of warm-up, if a run takes `run` seconds."""
        return (15, 3) if run < LONG else (7, 1)

    def foreseen(self, run: float, racers: int) -> float:
        """Seconds of the race if each of the racers takes `run` seconds."""
        fewest, warm = self.turns(run)
        return self.rounds * max(self.seconds + warm * racers * run, (fewest + warm) * racers * run)


def is_peer(name: str) -> bool:
    """Whether it is what llmc is compared with: neither llmc nor a loop that measures a peak."""
    return not name.startswith("llmc") and name.removesuffix(ONE) not in KINDS


def compare(output: Array, expected: Array) -> dict[str, float]:
    """The largest difference, and the cosine over all of the output."""
    a, b = output.ravel().astype(np.float64), expected.ravel().astype(np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return {"difference": float(np.abs(a - b).max()), "cosine": float(a @ b) / length if length else 0.0}


def agree(
    calls: Mapping[str, Call], expected: Array, precision: str
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """How far each racer is from PyTorch's fp32 output; and of those too far, which must not race, why.

    Raises:
        LlmcError: llmc computes something else; a race would mean nothing.
    """
    apart = {name: compare(np.array(call()), expected) for name, call in calls.items()}
    refused = {}
    for name, found in apart.items():
        exact = precision == "fp32" or name.endswith("fp32")
        if found["difference"] <= TOLERANCE if exact else found["cosine"] >= COSINE:
            continue
        refused[name] = f"largest difference {found['difference']:.2e}, cosine {found['cosine']:.4f}"
    if "llmc" in refused:
        raise LlmcError("llmc and pytorch disagree", at=precision, found=refused["llmc"])
    return apart, refused


def settle(calls: Mapping[str, Call], longest: float = 0.04, tries: int = 3) -> dict[str, float]:
    """Processor seconds that each racer's threads burn after its call has returned, waiting for more work.

    The least of several tries: a machine that is busy delays the call's own end.
    """

    def burnt(call: Call) -> float:
        call()
        before = time.process_time()
        time.sleep(longest)
        return time.process_time() - before

    return {name: min(burnt(call) for _ in range(tries)) for name, call in calls.items()}


def pause_after(burnt: Iterable[float]) -> float:
    """Seconds between calls in which every pool has gone to sleep."""
    return 0.001 + 1.2 * max(burnt, default=0.0)


def peak_calls(peaks: Peaks, threads: int) -> dict[str, Callable[[], float]]:
    """The loops as racers; on one thread too, for what several threads can gain."""
    calls: dict[str, Callable[[], float]] = {}
    calls |= {name: partial(peaks.run, name, threads) for name in peaks.names}
    if threads > 1:
        calls |= {f"{name}{ONE}": partial(peaks.run, name, 1) for name in peaks.names if name != "stream"}
    return calls


def measure(
    calls: Mapping[str, Call], expected: Array, peaks: Peaks, setting: Setting, budget: Budget, flops: float
) -> dict[str, Any]:
    """Check, then race.

    Args:
        calls: racers by name, bound to the same inputs.
        expected: PyTorch's fp32 output on them.
        flops: of one run.

    Returns:
        apart, refused, turns, pause and burnt seconds, median_seconds, least_seconds, llmc_over, and what `judge` adds.

    Raises:
        LlmcError: llmc computes something else.
    """
    apart, refused = agree(calls, expected, setting.precision)
    calls = {name: call for name, call in calls.items() if name not in refused}
    start = time.perf_counter()
    calls[list(calls)[-1]]()
    run = time.perf_counter() - start
    fewest, warm = budget.turns(run)
    burnt = settle(calls)
    pause = pause_after(burnt.values())
    everyone = {**calls, **peak_calls(peaks, setting.threads)}
    runs = [
        race(everyone, budget.seconds, pause=pause, fewest=fewest, warm=warm) for _ in range(budget.rounds)
    ]
    times = {name: np.concatenate([part[name] for part in runs]) for name in everyone}
    row = {
        "turns": len(times["llmc"]),
        "pause_seconds": pause,
        "burnt_seconds": burnt,
        "apart": {name: found for name, found in apart.items() if name in calls},
        "refused": refused,
        "median_seconds": {name: float(np.median(times[name])) for name in calls},
        "least_seconds": {name: float(times[name].min()) for name in calls},
    }
    return row | judge(times, runs, peaks, setting, flops)


def judge(
    times: Mapping[str, Array], runs: list[dict[str, Array]], peaks: Peaks, setting: Setting, flops: float
) -> dict[str, Any]:
    """The ratios: llmc over every peer and over the best, of each round too; its share of the machine's peak."""
    others = [name for name in times if is_peer(name)]
    medians = {name: float(np.median(times[name])) for name in others}
    rates = {name: peaks.work(name, setting.threads) / float(np.median(times[name])) for name in peaks.names}
    row: dict[str, Any] = {
        "llmc_over": {name: ratio(times["llmc"], times[name]) for name in others},
        "peak_per_second": rates,
        "flops": flops,
    }
    extra = [name for name in times if name.startswith("llmc-") and name != "llmc-fp32"]
    if extra:
        row["others_over"] = {own: {n: ratio(times[own], times[n]) for n in others} for own in extra}
    if others:
        best = min(others, key=medians.__getitem__)
        each = [float(np.median(part["llmc"]) / np.median(part[best])) for part in runs]
        row |= {"best": best, "rounds_over_best": each}
    if setting.precision == "int8" and "llmc-fp32" in times:
        row["faster_than_fp32"] = ratio(times["llmc-fp32"], times["llmc"])
    return row | _scaling(times, peaks, setting)


def of_parts(row: Mapping[str, Any], racer: str) -> dict[str, Any]:
    """The same race as seen by another of llmc's racers, `racer`; nothing if it was not there or has no rival."""
    if racer not in row.get("median_seconds", {}) or "best" not in row:
        return {}
    gone = {"scaling", "machine_scaling", "rounds_over_best"}
    medians = {**row["median_seconds"], "llmc": row["median_seconds"][racer]}
    kept = {name: value for name, value in row.items() if name not in gone}
    return {**kept, "median_seconds": medians, "llmc_over": row["others_over"][racer]}


def _scaling(times: Mapping[str, Array], peaks: Peaks, setting: Setting) -> dict[str, Any]:
    """What several threads gain over one: llmc, and the machine's own fma loop."""
    loop = peaks.of("fp32")
    if f"llmc{ONE}" not in times or loop is None:
        return {}
    gain = setting.threads * float(np.median(times[f"{loop}{ONE}"]) / np.median(times[loop]))
    return {"scaling": ratio(times[f"llmc{ONE}"], times["llmc"]), "machine_scaling": gain}


def share_of_peak(row: Mapping[str, Any], loop: str) -> float:
    """llmc's FLOP per second over the loop's."""
    return float(row["flops"] / row["median_seconds"]["llmc"] / row["peak_per_second"][loop])
