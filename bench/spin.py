"""What a process that spins on one core costs those who run on all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from contest import ONE, Budget, pause_after, settle
from racers import LOADERS, Call, Setting
from stock import Stock

from llmc.demo.race import race, ratio

NAMES = ("llmc", "onnxruntime", "openvino")
_SPIN = "import os; os.sched_setaffinity(0, {%d})\nwhile True: pass"


@contextmanager
def spinner() -> Iterator[int]:
    """A process that spins on the last usable core, whose number it gives."""
    core = max(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", _SPIN % core]) as process:
        try:
            yield core
        finally:
            process.kill()


def calls_of(stock: Stock, isa: str, precision: str, threads: int, shape: tuple[int, int]) -> dict[str, Call]:
    """The racers of NAMES, each on `threads` threads and on one."""
    arrays = stock.subject.sample(*shape)
    calls = {}
    for name in NAMES:
        for count in (threads, 1):
            racer = LOADERS[precision][name](stock, Setting(precision, count, isa))
            calls[name if count == threads else f"{name}{ONE}"] = racer(arrays)
    return calls


def disturb(calls: Mapping[str, Call], budget: Budget) -> dict[str, Any]:
    """Each racer's time on all threads over its own on one, in turns: with the core busy, then with it free.

    Returns:
        "busy" and "free" -> {"median_seconds", "over_one": name -> ratio with its interval}.
    """
    pause = pause_after(settle(calls).values())

    def part() -> dict[str, Any]:
        runs = [race(calls, budget.seconds, pause=pause) for _ in range(budget.rounds)]
        times = {name: np.concatenate([run[name] for run in runs]) for name in calls}
        names = [name for name in calls if not name.endswith(ONE)]
        return {
            "median_seconds": {name: float(np.median(t)) for name, t in times.items()},
            "over_one": {name: ratio(times[name], times[f"{name}{ONE}"]) for name in names},
        }

    with spinner():
        busy = part()
    return {"busy": busy, "free": part()}
