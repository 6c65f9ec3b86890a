"""Time several implementations of one thing in turns: a slow second of the machine hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def race(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    threads: int = 1,
    *,
    pause: float | None = None,
    fewest: int = 15,
    warm: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Array]:
    """Run the calls in turns for `seconds`, at least `fewest` rounds, after `warm` rounds of warm-up.

    The order rotates from round to round. With more than one thread there is a pause before each call: thread
    pools spin for a while after their work and would take the cores from the next in turn.

    Args:
        pause: its seconds; None: 3 ms with more than one thread.
        clock: what a call's seconds are of; that of processors, on a machine with other work.

    Returns:
        name -> f64[rounds], seconds of each call.
    """
    names, times = list(calls), {name: list[float]() for name in calls}
    wait = (0.003 if threads > 1 else 0) if pause is None else pause
    for call in list(calls.values()) * warm:
        call()
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < fewest or time.perf_counter() < end:
        for i in range(len(names)):
            name = names[(i + rounds) % len(names)]
            time.sleep(wait)
            start = clock()
            calls[name]()
            times[name].append(clock() - start)
        rounds += 1
    return {name: np.array(values) for name, values in times.items()}


def ratio(times: Array, base: Array, resamples: int = 2000) -> tuple[float, float, float]:
    """median(times) / median(base) of paired rounds with its 95 % interval.

    Percentile bootstrap over rounds (Efron 1979): a round is drawn with both its times, so what slowed
    the machine in that round cancels.
    """
    assert len(times) == len(base), "rounds are paired"
    drawn = np.random.default_rng(0).integers(0, len(times), (resamples, len(times)))
    ratios = np.median(times[drawn], axis=1) / np.median(base[drawn], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(np.median(times) / np.median(base)), float(low), float(high)
